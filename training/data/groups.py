"""Where in a log the samples lie.

Letters: E events, R requests, N samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from serving.model.features import BEHAVIORS
from training.data.log import EventLog, Int64


@dataclass(frozen=True, eq=False)
class TargetGroups:
    """Requests that make samples, in log order (user row, then time).

    Attributes:
        request: int64 [N], number of the request in the log.
        user_row: int64 [N], row in `EventLog.user_ids`.
        now: int64 [N], unix seconds of the request.
        history: int64 [N], events of the user before it, its own ones not counted.
        target_ptr: int64 [N+1]; targets of sample i are `target_events[target_ptr[i]:target_ptr[i+1]]`.
        target_events: int64, one event of each exposure that is a target: its outcome.
    """

    request: Int64
    user_row: Int64
    now: Int64
    history: Int64
    target_ptr: Int64
    target_events: Int64

    def __len__(self) -> int:
        """Number of samples, N."""
        return int(self.request.size)

    def take(self, rows: Int64) -> Self:
        """The samples `rows`, in that order."""
        counts = np.diff(self.target_ptr)[rows]
        ptr = np.append(0, np.cumsum(counts))
        of_targets = np.arange(ptr[-1]) + np.repeat(self.target_ptr[rows] - ptr[:-1], counts)
        return type(self)(
            request=self.request[rows],
            user_row=self.user_row[rows],
            now=self.now[rows],
            history=self.history[rows],
            target_ptr=ptr,
            target_events=self.target_events[of_targets],
        )

    def with_following(self, count: int) -> Self:
        """The same samples, each also with the targets of its user's next `count` samples."""
        last = np.searchsorted(self.user_row, self.user_row, side="right")
        ends = self.target_ptr[np.minimum(np.arange(len(self)) + count + 1, last)]
        counts = ends - self.target_ptr[:-1]
        ptr = np.append(0, np.cumsum(counts))
        events = np.arange(ptr[-1]) + np.repeat(self.target_ptr[:-1] - ptr[:-1], counts)
        return replace(self, target_ptr=ptr, target_events=self.target_events[events])


def target_groups(
    log: EventLog,
    *,
    requests: npt.NDArray[np.bool_],
    events: npt.NDArray[np.bool_],
    target_behaviors: Sequence[str],
    min_history: int = 1,
) -> TargetGroups:
    """Find the requests with a target and `min_history` earlier events of their user.

    A target is an exposure with an event of one of the target behaviors; its last one of the highest of them
    is its outcome.

    Args:
        log: the events.
        requests: bool [R], those to look among.
        events: bool [E], those that may be an outcome; what a model could not know may not.
        target_behaviors: names of `BEHAVIORS`.
        min_history: events of the user needed strictly before the request, its own ones not counted; 0 keeps
            cold-start users.

    Raises:
        ValueError: unknown or no behavior, negative min_history.
    """
    unknown = [name for name in target_behaviors if name not in BEHAVIORS]
    if unknown or not target_behaviors or isinstance(target_behaviors, str):
        raise ValueError(
            f"target_behaviors: expected a list of some of {list(BEHAVIORS)}, got {target_behaviors!r}"
        )
    if min_history < 0:
        raise ValueError(f"expected min_history >= 0, got {min_history}")
    found = log.exposures
    codes = [BEHAVIORS[name] for name in target_behaviors]
    targets = log.outcomes(events & np.isin(log.behavior, codes))
    targets = targets[np.argsort(found.request[targets], kind="stable")]
    counts = np.bincount(found.request[targets], minlength=len(found.anchor))
    history = found.history_end - log.user_ptr[found.user_row] - found.own_before
    keep = requests & (counts > 0) & (history >= min_history)
    request = np.flatnonzero(keep)
    return TargetGroups(
        request=request,
        user_row=found.user_row[request].astype(np.int64),
        now=log.timestamp[found.anchor[request]],
        history=history[request],
        target_ptr=np.append(0, np.cumsum(counts[request])),
        target_events=targets[keep[found.request[targets]]],
    )


def history(log: EventLog, request: int, *, newest: int | None = None) -> Int64:
    """Events of the user strictly before a request, without its own, oldest first; of them the `newest`."""
    found, end = log.exposures, int(log.exposures.history_end[request])
    own = int(found.own_before[request])
    first = int(log.user_ptr[found.user_row[request]])
    if newest is not None:
        first = max(first, end - own - newest)
    past = np.arange(first, end)
    if own:
        past = past[found.request[past] != request]
    return past if newest is None else past[-newest:]
