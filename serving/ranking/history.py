"""What the history of a request says of a key (ad, item, text, ..): how often, how long ago, how regularly.

Letters: h events of the history, n candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DAY_S = 86_400
RECENT_S = 28 * DAY_S
NEVER_DAYS = 3650.0


@dataclass(frozen=True, eq=False)
class Found:
    """What a history holds of the key of each candidate; without any, counts are 0.

    Attributes:
        count: float64 [n].
        recent: float64 [n], of them in the last 28 days.
        days: float64 [n], since the last one, `NEVER_DAYS` without one.
        gap: float64 [n], mean days between two of them, NaN where there are not two.
    """

    count: np.ndarray
    recent: np.ndarray
    days: np.ndarray
    gap: np.ndarray


class KeyHistory:
    """The events of a history by the number of one key."""

    def __init__(self, codes: np.ndarray, times: np.ndarray, *, now: int) -> None:
        """Count.

        Args:
            codes: int [h]; -1 is unknown, and counts for no candidate.
            times: int64 [h], unix seconds, ascending.
            now: of the request.
        """
        self._keys, first, group, self._count = np.unique(
            codes, return_index=True, return_inverse=True, return_counts=True
        )
        last = np.zeros(len(self._keys), np.int64)
        np.maximum.at(last, group, times)
        self._recent = np.bincount(group[times >= now - RECENT_S], minlength=len(self._keys))
        self._days = np.maximum(now - last, 0) / DAY_S
        span = (last - times[first]) / DAY_S
        self._gap = np.where(self._count > 1, span / np.maximum(self._count - 1, 1), np.nan)

    def of(self, codes: np.ndarray) -> Found:
        """What there is of the keys of candidates, int [n]."""
        if not len(self._keys):
            none = np.zeros(len(codes))
            return Found(none, none, none + NEVER_DAYS, none + np.nan)
        place = np.minimum(np.searchsorted(self._keys, codes), len(self._keys) - 1)
        has = (self._keys[place] == codes) & (codes >= 0)
        return Found(
            count=np.where(has, self._count[place], 0.0),
            recent=np.where(has, self._recent[place], 0.0),
            days=np.where(has, self._days[place], NEVER_DAYS),
            gap=np.where(has, self._gap[place], np.nan),
        )
