"""Which rows of a log are one exposure, which exposures are one request, and when it was.

An exposure is an ad as it was shown once, with what came of it. Rows of one user, request id and ad are one.
Without an id, rows of one user and ad that lie within the attribution window are one, and join an exposure
with an id that has a row so shortly before. A request is what was shown at once: all exposures of one user
and request id, or all those without an id of one user and time.

A request's time is that of its first row of the lowest behavior. So a conversion that comes late, or by a
clock that is wrong, does not move it.

Letters: U users; E rows, sorted by user and then time; R requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.model.exposures import window_starts

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

NO_ID = -1


@dataclass(frozen=True, eq=False)
class Exposures:
    """What `find_exposures` found.

    Attributes:
        exposure: int32 [E], one row of the exposure that each row belongs to, the same for all of its rows.
        request: int32 [E], number of the request that each row belongs to.
        user_row: int32 [R], user of each request; requests are in the order of user and time.
        anchor: int32 [R], row whose time is the request's.
        history_end: int32 [R], first row of the same user that is not strictly before the request.
        own_before: int32 [R], rows of the request itself that lie before `history_end`.
    """

    exposure: Int32
    request: Int32
    user_row: Int32
    anchor: Int32
    history_end: Int32
    own_before: Int32

    @classmethod
    def join(cls, blocks: Sequence[Exposures]) -> Exposures:
        """Of all rows, what was found of blocks of whole users that follow each other."""
        rows = np.cumsum([0, *(len(block.request) for block in blocks)])
        requests = np.cumsum([0, *(len(block.anchor) for block in blocks)])
        before = {"exposure": rows, "request": requests, "anchor": rows, "history_end": rows}

        def column(name: str) -> Int32:
            moved = before.get(name, np.zeros(len(blocks), np.int64)).astype(np.int32)
            return np.concatenate([getattr(block, name) + moved[i] for i, block in enumerate(blocks)])

        return cls(**{name: column(name) for name in vars(blocks[0])})


def find_exposures(
    users: Int64,
    ads: Int64,
    *,
    timestamps: Int64,
    behaviors: npt.NDArray[np.int8],
    request_ids: Int64,
    window_s: int,
) -> Exposures:
    """Exposures and requests of sorted rows.

    Args:
        users: int64 [E] >= 0, ascending.
        ads: int64 [E].
        timestamps: int64 [E], ascending within a user.
        behaviors: int8 [E], higher ones are worth more.
        request_ids: int64 [E], `NO_ID` where a row has none.
        window_s: attribution window in seconds; 0 lets every row without an id be an exposure of its own.
    """
    rows = np.arange(len(users))
    has_id = request_ids != NO_ID
    # `unit`: one row of what has one time, a request with an id or an exposure without one.
    exposure, unit = _join_by_id(users, ads, request_ids=request_ids, rows=np.flatnonzero(has_id))
    if window_s:
        _join_by_time(
            users, ads, timestamps=timestamps, has_id=has_id, window_s=window_s, out=(exposure, unit)
        )

    anchors = _lowest_first(unit, behaviors)[unit]  # [E]
    history_end = _leader(_changes(users, timestamps))[anchors]  # [E]
    id_or_none = np.where(has_id[unit], unit + 1, 0)  # those without an id and of one time are one request
    order = _order(history_end, id_or_none)
    opens = _changes(history_end[order], id_or_none[order])
    request = np.empty(len(rows), np.int32)
    request[order] = np.cumsum(opens) - 1
    history_end, anchor = history_end[order[opens]], anchors[order[opens]]
    own = request[rows < history_end[request]]
    return Exposures(
        exposure=exposure.astype(np.int32),
        request=request,
        user_row=users[anchor].astype(np.int32),
        anchor=anchor.astype(np.int32),
        history_end=history_end.astype(np.int32),
        own_before=np.bincount(own, minlength=len(anchor)).astype(np.int32),
    )


def last_of_highest(groups: Int32, behaviors: npt.NDArray[np.int8], *, rows: Int64) -> Int64:
    """Of each group its last row of the highest behavior, int64 ascending.

    Args:
        groups: int32 [E], a row that stands for the group of each row.
        behaviors: int8 [E].
        rows: int64, those of the E that count.
    """
    best = np.full(len(groups), -1, np.int64)
    np.maximum.at(best, groups[rows], behaviors[rows].astype(np.int64) * len(groups) + rows)
    return np.sort(best[best >= 0] % len(groups))


def _lowest_first(groups: Int64, behaviors: npt.NDArray[np.int8]) -> Int64:
    """Of the group that each row stands for, its first row of the lowest behavior; of other rows anything."""
    count = len(groups)
    best = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(best, groups, behaviors.astype(np.int64) * count + np.arange(count))
    return best % max(count, 1)


def _join_by_id(users: Int64, ads: Int64, *, request_ids: Int64, rows: Int64) -> tuple[Int64, Int64]:
    exposure, unit = np.arange(len(users)), np.arange(len(users))
    if len(rows):
        order = rows[_order(users[rows], request_ids[rows])]
        unit[order] = order[_leader(_changes(users[order], request_ids[order]))]
        order = rows[_order(unit[rows], ads[rows])]
        exposure[order] = order[_leader(_changes(unit[order], ads[order]))]
    return exposure, unit


def _join_by_time(
    users: Int64,
    ads: Int64,
    *,
    timestamps: Int64,
    has_id: npt.NDArray[np.bool_],
    window_s: int,
    out: tuple[Int64, Int64],
) -> None:
    order = _order(users, ads)  # within one user and ad the rows stay in the order of time
    if has_id.any():
        times, known = timestamps[order], has_id[order]
        first = _leader(_changes(users[order], ads[order]))
        latest = np.maximum.accumulate(np.where(known, np.arange(len(order)), -1))
        joins = ~known & (latest >= first) & (times - times[latest] <= window_s)
        for joined in out:
            joined[order[joins]] = joined[order[latest[joins]]]
        order = order[~known & ~joins]
    starts = window_starts(_changes(users[order], ads[order]), timestamps[order], window_s=window_s)
    for joined in out:
        joined[order] = order[_leader(starts)]


def _order(major: Int64, minor: Int64) -> Int64:
    """Stable order by two columns; the major one holds no negative numbers."""
    if not len(major):
        return np.arange(0)
    low, width = int(minor.min()), int(minor.max()) - int(minor.min()) + 1
    if (int(major.max()) + 1) * width >= 1 << 63:
        return np.lexsort((minor, major))
    return np.argsort(major * width + (minor - low), kind="stable")  # one number sorts ten times as fast


def _changes(*columns: np.ndarray) -> npt.NDArray[np.bool_]:
    """Where any of the columns differs from the row before; the first row does."""
    changed = np.ones(len(columns[0]), bool)
    if len(changed):
        changed[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return changed


def _leader(opens: npt.NDArray[np.bool_]) -> Int64:
    """Of each position the latest one at or before it that opens a run."""
    return np.maximum.accumulate(np.where(opens, np.arange(len(opens)), 0))
