"""Rows of one ad that lie close together in time are one exposure; training and serving share the rule.

Letters: N events.
"""

from __future__ import annotations

import numpy as np


def window_starts(first: np.ndarray, times: np.ndarray, *, window_s: int) -> np.ndarray:
    """Where exposures begin: at the first event, and at each one more than the window after the last begin.

    Args:
        first: bool [N], opens a run of events of one kind, as of one ad.
        times: int64 [N], seconds; ascending within a run.
        window_s: seconds; an event exactly so late still belongs to the exposure.

    Returns:
        bool [N].
    """
    if not len(times):
        return np.zeros(0, bool)
    # One ascending clock for all runs: true within the window, and longer gaps need no true length.
    # Unsigned, because a client's times may lie further apart than int64 reaches.
    apart = np.diff(times.astype(np.uint64), prepend=np.uint64(0))
    gaps = np.minimum(apart, np.uint64(window_s + 1)).astype(np.int64)
    gaps[first] = window_s + 1
    clock = np.cumsum(gaps)
    # The event that would open the next exposure if this one opened one; behind the last there is none.
    following = np.append(np.searchsorted(clock, clock + window_s, side="right"), len(clock))
    starts = np.append(gaps > window_s, True)  # whatever began before is over
    while True:  # each round looks twice as many exposures ahead
        ahead = following[starts]
        if starts[ahead].all():
            return starts[:-1]
        starts[ahead] = True
        following = following[following]


def join_exposures(
    ads: np.ndarray, behaviors: np.ndarray, *, times: np.ndarray, window_s: int
) -> tuple[np.ndarray, np.ndarray]:
    """Exposures of one user's events.

    Args:
        ads: int64 [N], N > 0, oldest event first.
        behaviors: int32 [N], higher ones are worth more.
        times: int64 [N], ascending seconds.
        window_s: how long after its first event an exposure goes on.

    Returns:
        The position of the first event of each exposure, ascending; and the highest behavior of each.
    """
    order = np.argsort(ads, kind="stable")
    ads = ads[order]
    first = np.append(True, ads[1:] != ads[:-1])
    starts = np.flatnonzero(window_starts(first, times[order], window_s=window_s))
    outcomes = np.maximum.reduceat(behaviors[order], starts)
    positions = order[starts]
    by_time = np.argsort(positions)
    return positions[by_time], outcomes[by_time]
