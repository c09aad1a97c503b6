"""Constrained beam search over live semantic IDs, batched over requests, a width for every level.

Letters: B requests, n beams, C children of the beam that has most, V codes of a level, T SID levels, M live
SIDs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from serving.index.trie import PrefixTree
from serving.search.cold_start import ColdStart
from serving.search.executor import Carry, Executor
from serving.search.selection import top_k
from serving.search.widths import WidthPlan

Normalise = Literal["codebook", "live"]
"""Over what the probabilities of a level add up to 1: all codes, or the live children of the beam."""

NORMALISE: tuple[Normalise, ...] = get_args(Normalise)

_FLOOR = np.float32(-1e30)  # a live child's score is never below it, so -inf always means "not a candidate"


def parse_normalise(text: str, *, levels: int) -> tuple[Normalise, ...]:
    """Read "codebook-codebook-live", one word a SID level.

    Raises:
        ValueError: not of that form, or not one word a level.
    """
    words = text.split("-")
    found = tuple(known for word in words for known in NORMALISE if word == known)
    if len(words) != levels or len(found) != levels:
        raise ValueError(f"normalise: expected {levels} of {NORMALISE} (a SID level each), got {text!r}")
    return found


@dataclass(frozen=True)
class Beams:
    """Result of a search, best first.

    Attributes:
        sids: int32 [B, n, T]; -1 where a request has fewer than n beams.
        leaves: int32 [B, n] leaf of the trie; -1 is padding.
        scores: float32 [B, n], log p(s_1 .. s_T | X), see also `ColdStart`; -inf is padding.
        expected_value: float32 [B, n], mean eCPM under p(v | y, X); NaN beyond the value width and in
            padding.
        widths: int32 [T + 1], beams that each level and the value level really held.
    """

    sids: np.ndarray
    leaves: np.ndarray
    scores: np.ndarray
    expected_value: np.ndarray
    widths: np.ndarray


def beam_search(
    executor: Executor,
    trie: PrefixTree,
    slots: np.ndarray,
    profile: np.ndarray,
    *,
    plan: WidthPlan,
    num_results: np.ndarray,
    value_table: np.ndarray,
    banned: list[np.ndarray] | None = None,
    normalise: tuple[Normalise, ...] | None = None,
    cold_start: ColdStart | None = None,
) -> Beams:
    """Find the SIDs of highest probability for each request.

    Every request gets at least min(num_results, live SIDs that are not banned) beams: a level keeps more than
    its width where the kept prefixes would not lead to that many.

    Args:
        executor: engine.
        trie: live SIDs.
        slots: int32 [B, S, T + 3].
        profile: int32 [B, P].
        plan: widths.
        num_results: int [B], beams wanted of each request.
        value_table: float32 [V_value], mean eCPM of each value bucket.
        banned: for each request, sorted leaves that must not be returned.
        normalise: a level each, "codebook" for all where left out. A beam that has one live SID below it and
            only "live" levels ahead cannot change its score any more: it is not sent through the tails.
        cold_start: what SIDs get that the model was not trained on; None for what the model says. Not used
            with one level, which has no prefix.
    """
    batch, levels = len(slots), trie.levels
    if trie.leaves == 0:
        return _empty(batch, levels)
    live = [n == "live" for n in normalise or ("codebook",) * levels]
    bans = np.array([len(b) for b in banned]) if banned is not None else np.zeros(batch, np.int64)
    needed = np.maximum(num_results, 1) + bans  # [B] leaves that kept prefixes must lead to
    num_values = max(plan.value, int(num_results.max(initial=1)))

    logprob, carry = executor.prefix(slots, profile)  # [B, V_1]
    codes, roots = trie.roots
    candidates = np.fmax(logprob[:, codes], _FLOOR)  # [B, root children]
    if live[0]:
        candidates = candidates - _log_sum_exp(candidates)
    if levels == 1 and banned is not None:
        _ban(candidates, np.broadcast_to(roots, candidates.shape), banned)
    kept = _keep(candidates, trie, 0, _width(plan, 0, levels, num_results), needed, ids=lambda at: roots[at])
    nodes, scores = np.where(kept >= 0, roots[np.maximum(kept, 0)], -1), _scores_at(candidates, kept)
    chain: list[np.ndarray] = []  # node of each beam at every level so far, realigned as beams are reordered
    parents: list[np.ndarray] = []  # parents[j - 2]: row of past_kv_j that each beam descends from; -1: none
    widths = [nodes.shape[1]]
    before_skip: tuple[int, Carry] | None = None  # first level that some beams skipped, and its carry

    for t in range(1, levels):
        below = trie.children(t, nodes)
        allowed = below.allowed  # [B, n, C]
        token = trie.code(t - 1, nodes)  # [B, n]
        # Beams that skipped a level have no keys and values there: they skip the later ones too.
        worth = num_values if before_skip is None else -1
        sent = _to_score(trie, t, nodes, live=live, worth=worth)  # [B, n'] beams that a tail must see
        if sent is None:
            logprob, carry = executor.tail(t + 1, carry, parents=parents, token=token, allowed=allowed)
            row = np.broadcast_to(np.arange(nodes.shape[1], dtype=np.int32), nodes.shape)
        else:
            before_skip = before_skip or (t, carry)
            logprob = np.zeros(allowed.shape, np.float32)  # a forced move has probability 1
            row = np.full(nodes.shape, -1, np.int32)  # [B, n] row of past_kv_{t + 1}
            if sent.shape[1]:
                scored, carry = executor.tail(
                    t + 1,
                    carry,
                    parents=[np.maximum(np.take_along_axis(p, sent, 1), 0) for p in parents],
                    token=np.take_along_axis(token, sent, 1),
                    allowed=np.take_along_axis(allowed, sent[:, :, None], 1),
                )
                np.put_along_axis(logprob, sent[:, :, None], scored, 1)
                np.put_along_axis(row, sent, np.arange(sent.shape[1], dtype=np.int32)[None], 1)
        logprob = np.where(allowed >= 0, np.fmax(logprob, _FLOOR), -np.inf)
        if live[t]:
            logprob = logprob - _log_sum_exp(logprob)
        joint = scores[:, :, None] + logprob
        if cold_start and t == levels - 1:
            prefixes = trie.sids(t - 1, nodes, parents=chain)
            worth = _width(plan, t, levels, num_results) + int(bans.max())
            joint = cold_start.lift(joint, scores=scores, prefixes=prefixes, codes=allowed, worth=worth)
        candidates = joint.reshape(batch, -1)  # [B, n * C]
        if t == levels - 1 and banned is not None and bans.any():
            every = np.broadcast_to(np.arange(candidates.shape[1]), candidates.shape)
            _ban(candidates, below.nodes(every), banned)
        kept = _keep(candidates, trie, t, _width(plan, t, levels, num_results), needed, ids=below.nodes)
        scores = _scores_at(candidates, kept)
        at = np.maximum(kept, 0)
        parent = at // allowed.shape[2]  # [B, n'] beam of the level before
        chain = [np.take_along_axis(c, parent, 1) for c in [*chain, nodes]]
        parents = [np.take_along_axis(p, parent, 1) for p in [*parents, row]]
        nodes = np.where(kept >= 0, below.nodes(at), -1)
        widths.append(nodes.shape[1])

    sids = np.where(nodes[..., None] >= 0, trie.sids(levels - 1, nodes, parents=chain), -1)
    count = min(nodes.shape[1], num_values)
    top, parents = np.maximum(sids[:, :count], 0), [np.ascontiguousarray(p[:, :count]) for p in parents]
    if before_skip is not None and any((p < 0).any() for p in parents):
        carry, parents = _catch_up(executor, top, parents, since=before_skip)
    buckets = np.broadcast_to(np.arange(len(value_table), dtype=np.int32), (batch, count, len(value_table)))
    logprob, _ = executor.tail(
        levels + 1,
        carry,
        parents=parents,
        token=np.ascontiguousarray(top[:, :, -1]),
        allowed=np.ascontiguousarray(buckets),
    )
    value = np.full(nodes.shape, np.nan, np.float32)
    value[:, :count] = np.exp(logprob) @ value_table
    value[nodes < 0] = np.nan
    return Beams(sids, nodes.astype(np.int32), scores, value, np.array([*widths, count], np.int32))


def _to_score(
    trie: PrefixTree, t: int, nodes: np.ndarray, *, live: list[bool], worth: int
) -> np.ndarray | None:
    """Beams [B, n'] that the tail of level t must see, where it need not see all; None for all.

    Left out are beams whose remaining codes are forced. They lack keys and values of the level, which the
    value level may want for up to `worth` of them later: fewer left out than that would not pay.
    """
    if not all(live[t:]):
        return None
    wanted = trie.leaf_counts(t - 1, nodes) > 1  # [B, n]
    count = int(wanted.sum(axis=1).max())
    if nodes.shape[1] - count <= worth:
        return None
    # Wanted beams first, in order; rows with fewer of them are filled up with others.
    return np.argsort(~wanted, axis=1, kind="stable")[:, :count]


def _catch_up(
    executor: Executor, sids: np.ndarray, parents: list[np.ndarray], *, since: tuple[int, Carry]
) -> tuple[Carry, list[np.ndarray]]:
    """Keys and values of the levels that some of the beams int32 [B, n, T] skipped, for all of them."""
    level, carry = since
    same = np.broadcast_to(np.arange(sids.shape[1], dtype=np.int32), sids.shape[:2])
    parents = parents[: level - 1]
    for t in range(level, sids.shape[2]):
        _, carry = executor.tail(
            t + 1,
            carry,
            parents=parents,
            token=np.ascontiguousarray(sids[:, :, t - 1]),
            allowed=np.ascontiguousarray(sids[:, :, t : t + 1]),
        )
        parents = [*parents, np.ascontiguousarray(same)]
    return carry, parents


def _keep(
    scores: np.ndarray,
    trie: PrefixTree,
    level: int,
    width: int,
    needed: np.ndarray,
    *,
    ids: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Positions of the best `width` candidates of each row [B, m], more where they lead to too few leaves.

    `ids` gives the nodes of positions.
    """
    kept = top_k(scores, width)
    if level < trie.levels - 1:

        def leaves(positions: np.ndarray) -> np.ndarray:
            return trie.leaf_counts(level, np.where(positions >= 0, ids(np.maximum(positions, 0)), -1))

        if (leaves(kept).sum(axis=1) < needed).any():
            # Every prefix leads to a live SID, so `needed` prefixes are always enough.
            kept = top_k(scores, max(width, int(needed.max())))
            count = leaves(kept)
            before = np.cumsum(count, axis=1) - count
            kept = np.where((np.arange(kept.shape[1]) < width) | (before < needed[:, None]), kept, -1)
    return kept[:, : max(int((kept >= 0).sum(axis=1).max()), 1)]


def _scores_at(scores: np.ndarray, kept: np.ndarray) -> np.ndarray:
    values = np.take_along_axis(scores, np.maximum(kept, 0), 1)
    return np.where(kept >= 0, values, -np.inf).astype(np.float32)


def _log_sum_exp(x: np.ndarray) -> np.ndarray:
    """Over the last axis, which stays; 0 where nothing is live."""
    top = x.max(axis=-1, keepdims=True)
    top = np.where(top > -np.inf, top, np.float32(0.0))
    total = np.exp(x - top).sum(axis=-1, keepdims=True)
    return top + np.log(np.where(total > 0, total, np.float32(1.0)))


def _width(plan: WidthPlan, level: int, levels: int, num_results: np.ndarray) -> int:
    width = plan.sid[level]
    return max(width, int(num_results.max(initial=1))) if level == levels - 1 else width


def _ban(scores: np.ndarray, leaves: np.ndarray, banned: list[np.ndarray]) -> None:
    for row, ban in enumerate(banned):
        if len(ban):
            scores[row, np.isin(leaves[row], ban)] = -np.inf


def _empty(batch: int, levels: int) -> Beams:
    return Beams(
        np.zeros((batch, 0, levels), np.int32),
        np.zeros((batch, 0), np.int32),
        np.zeros((batch, 0), np.float32),
        np.zeros((batch, 0), np.float32),
        np.zeros(levels + 1, np.int32),
    )
