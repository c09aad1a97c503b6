"""Events as flat arrays, and where in them the samples lie.

Letters: U users, E events, N samples.

A basket is a set: the logs give one timestamp to all its items, and the order among them is not real. So a
sample is a whole (user, timestamp) group, and its history ends before the group begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl

from serving.model.features import BEHAVIORS
from training.data.schema import Tables

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EventLog:
    """All events, sorted by (user_id, timestamp, ad_id, behavior code).

    Attributes:
        user_ids: int64 [U], ascending; every user of the users table, also those without events (row i =
            `tables.users` row i).
        user_ptr: int64 [U+1]; events of user row u are [user_ptr[u], user_ptr[u+1]).
        ad_ids: int64 [E].
        behavior: int8 [E], codes of `BEHAVIORS`.
        timestamp: int64 [E], unix seconds.
        value: float32 [E].
    """

    user_ids: Int64
    user_ptr: Int64
    ad_ids: Int64
    behavior: npt.NDArray[np.int8]
    timestamp: Int64
    value: npt.NDArray[np.float32]

    @classmethod
    def from_tables(cls, tables: Tables) -> Self:
        """Sort the events of checked tables into arrays."""
        code = pl.col("behavior").replace_strict(dict(BEHAVIORS), return_dtype=pl.Int8)
        events = tables.events.select(
            "user_id", "timestamp", "ad_id", code, pl.col("value").cast(pl.Float32)
        ).sort("user_id", "timestamp", "ad_id", "behavior")
        user_ids = tables.users["user_id"].sort().to_numpy()
        event_users = events["user_id"].to_numpy()
        starts = np.searchsorted(event_users, user_ids, side="left")
        return cls(
            user_ids=user_ids,
            user_ptr=np.append(starts, event_users.size).astype(np.int64),
            ad_ids=events["ad_id"].to_numpy(),
            behavior=events["behavior"].to_numpy(),
            timestamp=events["timestamp"].to_numpy(),
            value=events["value"].to_numpy(),
        )


@dataclass(frozen=True, eq=False)
class TargetGroups:
    """Samples, in log order (user row, then time).

    Attributes:
        user_row: int64 [N], row in `EventLog.user_ids`.
        begin: int64 [N], first event of the group; the history is [user_ptr[user_row], begin).
        end: int64 [N], one past the last event of the group.
        now: int64 [N], unix seconds of the group.
        target_codes: behavior codes that count as targets within [begin, end).
    """

    user_row: Int64
    begin: Int64
    end: Int64
    now: Int64
    target_codes: tuple[int, ...]

    def __len__(self) -> int:
        """Number of samples, N."""
        return int(self.begin.size)


def target_groups(
    log: EventLog, *, start: int, stop: int, target_behaviors: Sequence[str], min_history: int = 1
) -> TargetGroups:
    """Find every distinct (user, timestamp) that makes a sample.

    It lies in [start, stop), has at least one target event, and the user has `min_history` earlier events.

    Args:
        log: the events.
        start: first second, inclusive; 0 for the training range.
        stop: last second, exclusive.
        target_behaviors: names of `BEHAVIORS`.
        min_history: events of the user needed strictly before the group; 0 keeps cold-start users.

    Raises:
        ValueError: unknown or no behavior, negative min_history, start > stop.
    """
    unknown = [name for name in target_behaviors if name not in BEHAVIORS]
    if unknown or not target_behaviors or isinstance(target_behaviors, str):
        raise ValueError(
            f"target_behaviors: expected a list of some of {list(BEHAVIORS)}, got {target_behaviors!r}"
        )
    if min_history < 0 or start > stop:
        raise ValueError(f"expected min_history >= 0 and start <= stop, got {min_history}, {start}, {stop}")
    codes = tuple(BEHAVIORS[name] for name in target_behaviors)
    event_count = log.ad_ids.size
    event_row = np.repeat(np.arange(log.user_ids.size, dtype=np.int64), np.diff(log.user_ptr))  # [E]
    first = np.ones(event_count, dtype=bool)  # [E]: opens a new (user, timestamp)
    first[1:] = (event_row[1:] != event_row[:-1]) | (log.timestamp[1:] != log.timestamp[:-1])
    begin = np.flatnonzero(first)
    end = np.append(begin, event_count)[1:]
    seen = np.concatenate(
        ([0], np.cumsum(np.isin(log.behavior, codes)))
    )  # [E+1]: target events before each event
    now, user_row = log.timestamp[begin], event_row[begin]
    keep = (
        (now >= start)
        & (now < stop)
        & (seen[end] > seen[begin])
        & (begin - log.user_ptr[user_row] >= min_history)
    )
    return TargetGroups(
        user_row=user_row[keep], begin=begin[keep], end=end[keep], now=now[keep], target_codes=codes
    )
