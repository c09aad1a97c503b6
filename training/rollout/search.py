"""The search that serves, for logged requests: each in the index as of its time.

Letters: B requests, S slots, T SID levels, P profile columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.index.eligible import NO_TERMS
from serving.index.snapshot import IndexSnapshot
from serving.search.beam_search import beam_search
from serving.search.beams import Beams
from serving.search.widths import WidthPlan
from training.model.gr4ad import Generator
from training.rollout.executor import TorchExecutor
from training.rollout.live import LiveIndex


@dataclass(frozen=True, eq=False)
class Found:
    """What a search of B requests found.

    Attributes:
        beams: live SIDs with log p over the whole codebook of each level; their expected values are not.
        snapshot: the index as of the last of the requests.
        hidden: of each request, int64 ads of that index that it may not be shown: created after it, or not
            for it; no beam is theirs alone.
    """

    beams: Beams
    snapshot: IndexSnapshot
    hidden: list[np.ndarray]


class Searcher:
    """A model's beam search in an index that changes with time."""

    def __init__(self, model: Generator, index: LiveIndex) -> None:
        """Put the model in evaluation mode."""
        self.model, self._index = model.eval(), index
        self._executor = TorchExecutor(model)
        self._no_values = np.zeros(model.value_buckets, np.float32)

    def __call__(
        self,
        slots: np.ndarray,
        profile: np.ndarray,
        *,
        times: np.ndarray,
        widths: tuple[int, ...],
        at_least: int = 1,
    ) -> Found:
        """Search.

        Args:
            slots: int32 [B, S, T + 3].
            profile: int32 [B, P].
            times: int64 [B], unix seconds.
            widths: beams of each level.
            at_least: beams that each request gets whatever the widths, where there are so many SIDs for it.
        """
        snapshot = self._index.at(int(times.max()))
        late = [self._index.late(int(now)) for now in times]
        terms, hidden = [NO_TERMS] * len(times), late
        audiences = self._index.audiences
        if audiences is not None:
            terms = [audiences.terms(p, now=int(now)) for p, now in zip(profile, times, strict=True)]
            there = [self._index.live.at(int(now)) for now in times]
            hidden = [self._index.but(t & audiences.shown(of)) for t, of in zip(there, terms, strict=True)]
        beams = beam_search(
            self._executor,
            snapshot.trie,
            slots,
            profile,
            plan=WidthPlan(widths, value=1),
            num_results=np.full(len(times), at_least),
            value_table=self._no_values,
            banned=[snapshot.banned_leaves(ads, of) for ads, of in zip(late, terms, strict=True)],
            eligible=None if audiences is None else [snapshot.eligible(of) for of in terms],
        )
        return Found(beams, snapshot, hidden)
