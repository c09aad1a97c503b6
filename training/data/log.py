"""Events as flat arrays, with the exposures and requests that they belong to.

Letters: U users, E events, R requests.

Without request ids a basket is a set: the logs give one timestamp to all its items, and the order among them
is not real. So all that a user did at one timestamp is one request, and its history ends before that.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl

from serving.model.features import BEHAVIORS
from training.data.exposures import NO_ID, Exposures, find_exposures, last_of_highest
from training.data.schema import SPLIT_COLUMN, Tables
from training.data.split import PARTS

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EventLog:
    """All events, in the order of `in_log_order`.

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
        """Sort the events of checked tables into arrays, and find their exposures."""
        events = in_log_order(tables.events)
        user_ids = tables.users["user_id"].sort().to_numpy()
        event_users = events["user_id"].to_numpy()
        starts = np.searchsorted(event_users, user_ids, side="left")
        ad_ids, timestamp = events["ad_id"].to_numpy(), events["timestamp"].to_numpy()
        behavior = events["behavior"].to_numpy()
        exposures = find_exposures(
            event_users,
            ad_ids,
            timestamps=timestamp,
            behaviors=behavior,
            request_ids=_request_codes(events),
            window_s=attribution_window_s,
        )
        return cls(
            user_ids=user_ids,
            user_ptr=np.append(starts, event_users.size).astype(np.int64),
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

    def user_rows(self) -> Int64:
        """Row in `user_ids` of the user of each request, int64 [R]."""
        return np.searchsorted(self.user_ptr, self.exposures.anchor, side="right") - 1

    def outcomes(self, rows: npt.NDArray[np.bool_]) -> Int64:
        """What came of each exposure: of those events [E] that count its last one of the highest behavior."""
        return last_of_highest(self.exposures.exposure, self.behavior, rows=np.flatnonzero(rows))


def in_log_order(events: pl.DataFrame) -> pl.DataFrame:
    """Events by user, time, ad, behavior (as its code) and, where they have one, request id."""
    code = pl.col("behavior").replace_strict(dict(BEHAVIORS), return_dtype=pl.Int8)
    key = ["user_id", "timestamp", "ad_id", "behavior", *(n for n in ("request_id",) if n in events.columns)]
    return events.with_columns(code).sort(key)


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
