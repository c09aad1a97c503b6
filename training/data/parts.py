"""Which part, train, validation or test, each event and each request of a log belongs to.

Letters: E events, R requests.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl

from training.data.columns import SPLIT_COLUMN
from training.data.groups import TargetGroups, target_groups
from training.data.log import EventLog
from training.data.split import PARTS, Split
from training.preset.data import SplitConfig

Int8 = npt.NDArray[np.int8]
TRAIN, VALIDATION, TEST = range(len(PARTS))


@dataclass(frozen=True, eq=False)
class Parts:
    """Parts as numbers, places in `PARTS`.

    Attributes:
        event: int8 [E].
        request: int8 [R]; an event of the request may come later and lie in a later part.
    """

    event: Int8
    request: Int8

    @classmethod
    def of(cls, split: Split, log: EventLog) -> Self:
        """Parts as a split says.

        Raises:
            ValueError: the events name no parts.
        """
        if split.by == "column":
            return cls.by_column(log)
        bounds = [split.train_end, split.validation_end]
        event, request = (np.searchsorted(bounds, t, side="right") for t in (log.timestamp, log.times()))
        return cls(event.astype(np.int8), request.astype(np.int8))

    @classmethod
    def by_column(cls, log: EventLog) -> Self:
        """Parts as the events name them.

        Raises:
            ValueError: they name none.
        """
        if log.split is None:
            raise ValueError(f"data.split: expected events with the column {SPLIT_COLUMN!r}, got none")
        return cls(log.split, log.split[log.exposures.anchor])

    def groups(
        self, log: EventLog, part: int, *, target_behaviors: Sequence[str], min_history: int, start: int = 0
    ) -> TargetGroups:
        """Requests of a part, from a time on; nothing that comes in a later part counts as their outcome."""
        return target_groups(
            log,
            requests=(self.request == part) & (log.times() >= start),
            events=self.event <= part,
            target_behaviors=target_behaviors,
            min_history=min_history,
        )


def cut(
    config: SplitConfig, logs: Iterable[EventLog], *, span: tuple[int, int], target_behaviors: Sequence[str]
) -> Split:
    """Where a log is cut, as a preset says.

    Args:
        config: `data.split`.
        logs: the log, whole users at a time; not looked at for weeks and days.
        span: time of its first and of its last event.
        target_behaviors: of the preset.

    Raises:
        ValueError: the log is too short, or its column `split` is missing or names two parts for one request.
    """
    validation, test = config.sizes
    first, last = span
    if config.by in ("weeks", "days"):
        return Split.by_length(first, last, unit=config.by, validation=int(validation), test=int(test))
    if config.by == "fractions":
        times = np.concatenate([_every_group(log, target_behaviors).now for log in logs])
        return Split.by_fractions(times, last=last, validation=validation, test=test)
    ends = np.zeros(len(PARTS), np.int64)
    for log in logs:
        parts = parts_by_request(config, log, target_behaviors=target_behaviors)
        np.maximum.at(ends, parts.request, log.times() + 1)
    return Split.by_column(np.maximum(ends, 1).tolist())


def parts_of(config: SplitConfig, split: Split, *, log: EventLog, target_behaviors: Sequence[str]) -> Parts:
    """Parts of some users of a log that was cut.

    Raises:
        ValueError: its column `split` is missing or names two parts for one request.
    """
    if split.by == "time":
        return Parts.of(split, log)
    return parts_by_request(config, log, target_behaviors=target_behaviors)


def parts_by_request(config: SplitConfig, log: EventLog, *, target_behaviors: Sequence[str]) -> Parts:
    """Parts that no time says: by the last requests of each user, or by the column `split`.

    Raises:
        ValueError: that column is missing or names two parts for one request.
    """
    if config.by == "last_events":
        validation, test = config.sizes
        every = _every_group(log, target_behaviors)
        request = _last_requests(log, every, validation=int(validation), test=int(test))
        return Parts(request[log.exposures.request], request)
    parts = Parts.by_column(log)
    _check_one_part(log, parts)
    return parts


def _every_group(log: EventLog, target_behaviors: Sequence[str]) -> TargetGroups:
    return target_groups(
        log,
        requests=np.ones(len(log.exposures.anchor), bool),
        events=np.ones(len(log.timestamp), bool),
        target_behaviors=target_behaviors,
        min_history=0,
    )


def _last_requests(log: EventLog, groups: TargetGroups, *, validation: int, test: int) -> Int8:
    """Part of each request: a user's last ones with a target are test, those before them validation.

    What has no target goes with the request before it. A user who would keep no request with a target for
    training is in training altogether.
    """
    users, first, count = np.unique(groups.user_row, return_index=True, return_counts=True)
    enough = count > validation + test
    users, ends = users[enough], (first + count)[enough]
    part = np.zeros(len(log.exposures.anchor), np.int8)
    for back in (test, test + validation):
        begins = np.full(len(log.user_ids), len(part))
        begins[users] = groups.request[ends - back]  # requests are numbered by user and time
        part += np.arange(len(part)) >= begins[log.exposures.user_row]
    return part


def _check_one_part(log: EventLog, parts: Parts) -> None:
    """Refuse requests whose events of its own time are in several parts; later ones may be."""
    requests = log.exposures.request
    at_once = log.timestamp == log.times()[requests]
    bad = np.flatnonzero(at_once & (parts.event != parts.request[requests]))
    if not len(bad):
        return
    count, event = len(np.unique(requests[bad])), bad[0]
    user = log.user_ids[log.exposures.user_row[requests[event]]]
    names = sorted({PARTS[parts.event[event]], PARTS[parts.request[requests[event]]]}, key=PARTS.index)
    raise ValueError(
        f"column {SPLIT_COLUMN!r}: expected one part for all events of a request, got {' and '.join(names)} "
        f"for user {user} at {log.timestamp[event]} (and {count - 1} more such requests)"
    )


def with_parts(events: pl.DataFrame, parts: Parts) -> pl.DataFrame:
    """Events of a table with the column `split`."""
    codes = pl.Series(SPLIT_COLUMN, parts.event)
    names = codes.replace_strict(dict(enumerate(PARTS)), return_dtype=pl.String)
    return events.with_columns(names)
