"""Whether the answer is in the question: how often a target's ad stands among the last events before it.

A click's own impression lies seconds before it. Where the log does not say that they belong together, the ad
of nearly every target is among the last events of its history, and a model learns to copy. An hour earlier
those events cannot be there, but what a user likes to see again is.

Letters: E events, K targets.
"""

from dataclasses import dataclass

import numpy as np

from training.data.groups import TargetGroups
from training.data.log import EventLog, Int64

LAST_EVENTS = 10
EARLIER_S = 3600
MOST_TARGETS = 1_000_000
SUSPICIOUS = 0.1  # more than that between now and an hour earlier is not taste


@dataclass(frozen=True)
class Leak:
    """Shares of the targets whose ad is among the last events of the user's history.

    Attributes:
        now: as of the request.
        earlier: as of an hour before.
    """

    now: float
    earlier: float

    @property
    def suspicious(self) -> bool:
        """Whether the targets' own rows seem to be in their histories."""
        return self.now - self.earlier > SUSPICIOUS


def measure_leak(log: EventLog, groups: TargetGroups) -> Leak:
    """Look for targets' ads among the `LAST_EVENTS` before their requests, and before an hour earlier.

    Of a long log every second, third .. target is looked at, at most `MOST_TARGETS`.

    Raises:
        ValueError: no target.
    """
    if not len(groups.target_events):
        raise ValueError("expected at least one target to measure the leak on, got none")
    targets = groups.target_events[:: 1 + len(groups.target_events) // MOST_TARGETS]  # [K]
    request = log.exposures.request[targets]
    first = log.user_ptr[log.exposures.user_row[request]]  # [K], where the user begins
    end = log.exposures.history_end[request].astype(np.int64)
    # One ascending clock over all users, true within an hour and never less than that between two of them.
    gaps = np.minimum(np.diff(log.timestamp, prepend=0), EARLIER_S + 1)
    gaps[log.user_ptr[:-1][np.diff(log.user_ptr) > 0]] = EARLIER_S + 1
    clock = np.cumsum(gaps)
    an_hour_earlier = np.maximum(first, np.searchsorted(clock, clock[end] - EARLIER_S, side="left"))
    ads = log.ad_ids[targets]
    return Leak(
        *(
            float(_among_the_last(log, ads, request=request, first=first, end=before).mean())
            for before in (end, an_hour_earlier)
        )
    )


def _among_the_last(log: EventLog, ads: Int64, *, request: Int64, first: Int64, end: Int64) -> np.ndarray:
    found = np.zeros(len(ads), bool)
    for back in range(1, LAST_EVENTS + 1):
        at = end - back
        there = at >= first
        at = np.where(there, at, 0)
        found |= there & (log.ad_ids[at] == ads) & (log.exposures.request[at] != request)
    return found
