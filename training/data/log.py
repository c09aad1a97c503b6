"""Events as flat arrays, with the exposures and requests that they belong to.

Letters: U users, E events, R requests.

Without request ids a basket is a set: the logs give one timestamp to all its items, and the order among them
is not real. So all that a user did at one timestamp is one request, and its history ends before that.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl

from serving.model.features import BEHAVIORS
from training.data.columns import SPLIT_COLUMN
from training.data.exposures import NO_ID, Exposures, find_exposures, last_of_highest
from training.data.schema import Tables
from training.data.split import PARTS

Int64 = npt.NDArray[np.int64]

_BLOCK = 4_000_000  # events whose exposures are found at once: bounds the memory, not the result


@dataclass(frozen=True, eq=False)
class EventLog:
    """All events, in the order of the table: by user, time, ad, behavior.

    Attributes:
        user_ids: int64 [U], ascending; every user of the users table, also those without events (row i =
            `tables.users` row i).
        user_ptr: int64 [U+1]; events of user row u are [user_ptr[u], user_ptr[u+1]).
        ad_ids: int64 [E].
        behavior: int8 [E], codes of `BEHAVIORS`.
        timestamp: int64 [E], unix seconds.
        value: float32 [E].
        position: int32 [E], place of the event's exposure in its request; -1 where no event of it says one.
        split: int8 [E], part that the event itself names, place in `PARTS`; None where no event does.
        exposures: which events are one exposure, and which exposures one request.
    """

    user_ids: Int64
    user_ptr: Int64
    ad_ids: Int64
    behavior: npt.NDArray[np.int8]
    timestamp: Int64
    value: npt.NDArray[np.float32]
    position: npt.NDArray[np.int32]
    split: npt.NDArray[np.int8] | None
    exposures: Exposures

    @classmethod
    def from_tables(cls, tables: Tables, *, attribution_window_s: int) -> Self:
        """Put the events of checked tables into arrays, and find their exposures."""
        users = tables.users["user_id"].sort()
        return cls.of(tables.events, users, attribution_window_s=attribution_window_s)

    @classmethod
    def of(cls, events: pl.DataFrame, users: pl.Series, *, attribution_window_s: int) -> Self:
        """Put sorted events into arrays, and find their exposures.

        Args:
            events: of checked tables.
            users: ids of their users, and maybe more, ascending.
            attribution_window_s: see `find_exposures`.
        """
        user_ids = users.to_numpy()
        event_users = events["user_id"].to_numpy()
        starts = np.searchsorted(event_users, user_ids, side="left")
        ad_ids, timestamp = events["ad_id"].to_numpy(), events["timestamp"].to_numpy()
        behavior = events["behavior"].replace_strict(dict(BEHAVIORS), return_dtype=pl.Int8).to_numpy()
        user_ptr = np.append(starts, event_users.size).astype(np.int64)
        request_ids, found = _request_codes(events), []
        for first, last in _blocks(user_ptr, rows=_BLOCK):
            rows = slice(user_ptr[first], user_ptr[last])
            block = find_exposures(
                np.repeat(np.arange(first, last), np.diff(user_ptr[first : last + 1])),
                ad_ids[rows],
                timestamps=timestamp[rows],
                behaviors=behavior[rows],
                request_ids=request_ids[rows],
                window_s=attribution_window_s,
            )
            found.append(block)
        exposures = Exposures.join(found)
        return cls(
            user_ids=user_ids,
            user_ptr=user_ptr,
            ad_ids=ad_ids,
            behavior=behavior,
            timestamp=timestamp,
            value=events["value"].cast(pl.Float32).to_numpy(),
            position=_positions(events, exposures),
            split=_part_codes(events) if SPLIT_COLUMN in events.columns else None,
            exposures=exposures,
        )

    def times(self) -> Int64:
        """Time of each request, int64 [R] unix seconds."""
        return self.timestamp[self.exposures.anchor]

    def outcomes(self, rows: npt.NDArray[np.bool_]) -> Int64:
        """What came of each exposure: of those events [E] that count its last one of the highest behavior."""
        return last_of_highest(self.exposures.exposure, self.behavior, rows=np.flatnonzero(rows))


def _blocks(user_ptr: Int64, *, rows: int) -> Iterator[tuple[int, int]]:
    """Users, first and one past the last, that have about so many rows together; at least one block."""
    ends = np.searchsorted(user_ptr, np.arange(rows, user_ptr[-1], rows), side="left")
    bounds = np.unique([0, *ends, len(user_ptr) - 1])
    return pairwise(bounds.tolist())


def _request_codes(events: pl.DataFrame) -> Int64:
    """Request ids of any type as numbers, `NO_ID` for none."""
    if "request_id" not in events.columns:
        return np.full(events.height, NO_ID)
    return events["request_id"].rank("dense").cast(pl.Int64).fill_null(NO_ID).to_numpy()


def _positions(events: pl.DataFrame, exposures: Exposures) -> npt.NDArray[np.int32]:
    known = np.full(events.height, -1, np.int32)
    if "position" in events.columns:
        said = events["position"].cast(pl.Int32).fill_null(-1).to_numpy()
        np.maximum.at(known, exposures.exposure, said)
    return known[exposures.exposure]


def _part_codes(events: pl.DataFrame) -> npt.NDArray[np.int8]:
    codes = {name: code for code, name in enumerate(PARTS)}
    return events[SPLIT_COLUMN].replace_strict(codes, return_dtype=pl.Int8).to_numpy()
