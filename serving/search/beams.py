"""What a search finds.

Letters: B requests, n beams, T SID levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Beams:
    """Result of a search, best first.

    Attributes:
        sids: int32 [B, n, T]; -1 where a request has fewer than n beams.
        leaves: int32 [B, n] leaf of the trie; -1 is padding.
        scores: float32 [B, n], log p(s_1 .. s_T | X), with what the history adds where the model has a copy
            path, see also `ColdStart`; -inf is padding.
        expected_value: float32 [B, n], mean eCPM under p(v | y, X); NaN beyond the value width and in
            padding.
        widths: int32 [T + 1], beams that each level and the value level really held; of a pruned search,
            those of the plan.
    """

    sids: np.ndarray
    leaves: np.ndarray
    scores: np.ndarray
    expected_value: np.ndarray
    widths: np.ndarray

    @classmethod
    def none(cls, batch: int, *, levels: int) -> Beams:
        """Of an empty catalogue."""
        return cls(
            sids=np.zeros((batch, 0, levels), np.int32),
            leaves=np.zeros((batch, 0), np.int32),
            scores=np.zeros((batch, 0), np.float32),
            expected_value=np.zeros((batch, 0), np.float32),
            widths=np.zeros(levels + 1, np.int32),
        )
