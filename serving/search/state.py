"""What a beam search is about, begins with, and has after each level.

Letters: B requests, n beams, R codes that a SID can begin with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.index.eligible import Eligible
from serving.index.trie import PrefixTree
from serving.search.bound import Bound
from serving.search.cold_start import ColdStart
from serving.search.copy_path import CopyBeams, MixedLevel
from serving.search.executor import Carry, Executor
from serving.search.forced import ForcedMoves
from serving.search.remembered import RememberedTails


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is the same for every level of a search.

    Attributes:
        widths: of each SID level, the last one at least the beams wanted.
        num_values: most beams of a request that get a value.
        own_beams: int [B], most beams of each request.
        own_values: int [B], how many of them get a value.
        needed: int [B], eligible SIDs that the kept prefixes of a request must lead to, with banned ones.
        banned: of each request, sorted leaves; None where nothing is.
        eligible: of each request; None where all that is live is.
        most_banned: leaves of a request.
        live: of each level, whether its probabilities add up to 1 over the live children of a beam.
        tails: who asks the engine: leaves out beams whose score is final, or those of an earlier search.
        bound: what a beam must reach; None where nothing is left out.
    """

    executor: Executor
    trie: PrefixTree
    widths: tuple[int, ...]
    num_values: int
    own_beams: np.ndarray
    own_values: np.ndarray
    needed: np.ndarray
    banned: list[np.ndarray] | None
    eligible: list[Eligible | None] | None
    most_banned: int
    live: tuple[bool, ...]
    tails: ForcedMoves | RememberedTails
    cold_start: ColdStart | None
    bound: Bound | None = None


@dataclass(frozen=True)
class Start:
    """What searches of the same requests begin with.

    Attributes:
        candidates: float32 [B, R], log-probability of the codes that a SID can begin with.
        order: what beams are chosen by, [B, R]; None where that is the candidates.
        mixed: who speaks for them, model or history; None of a model without a copy path.
        carry: what the prefix graph returned besides.
    """

    candidates: np.ndarray
    order: np.ndarray | None
    mixed: MixedLevel | None
    carry: Carry


@dataclass(frozen=True)
class Frontier:
    """Beams [B, n] that a level kept, best first.

    Attributes:
        nodes: of the trie; -1 is padding.
        scores: float32, log-probability of the codes so far; -inf is padding.
        carry: what the level's graph returned.
        ancestors: node of each beam at every level before.
        parents: for j = 2 .. of the graphs that ran, int32: row of past_kv_j that each beam descends from.
        widths: beams that each level held.
        copies: who speaks for them, model or history; None of a model without a copy path.
        bound: for the levels below.
    """

    nodes: np.ndarray
    scores: np.ndarray
    carry: Carry
    ancestors: list[np.ndarray]
    parents: list[np.ndarray]
    widths: list[int]
    copies: CopyBeams | None
    bound: Bound | None
