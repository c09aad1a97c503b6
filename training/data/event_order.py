"""The order of events, and those that come twice."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import polars as pl

from serving.model.features import BEHAVIORS
from training.data.checks import ROW, Place, TableError

KEY = ("user_id", "timestamp", "ad_id", "behavior")
_SHOWN = 3


def event_key(columns: Collection[str]) -> list[str]:
    """Columns by which events are sorted; no two events have all of them in common."""
    return [*KEY, *(name for name in ("request_id",) if name in columns)]


def sort_events(events: pl.DataFrame) -> pl.DataFrame:
    """Events, with the number of the row, in the order of the prepared table; equal ones as in the file."""
    code = pl.col("behavior").replace_strict(dict(BEHAVIORS), default=None, return_dtype=pl.Int8)
    key = [code if name == "behavior" else pl.col(name) for name in event_key(events.columns)]
    return events.sort(*key, ROW)


@dataclass
class Repeats:
    """Rows of events that came before, found a block of users at a time.

    Delivery "at least once" repeats events, and a repeated purchase would count its value twice: only the
    writer of the logs can tell.
    """

    count: int = 0
    first: pl.DataFrame | None = None

    def add(self, events: pl.DataFrame) -> None:
        """Look through sorted events of whole users, with the number of the row."""
        key = event_key(events.columns)
        same = (pl.col(name).eq_missing(pl.col(name).shift()) for name in key)
        again = events.filter(pl.all_horizontal(*same, pl.int_range(pl.len()) > 0)).select(ROW, *key)
        self.join(Repeats(again.height, again))

    def join(self, others: "Repeats") -> None:
        """Take in those of other users."""
        self.count += others.count
        if others.first is not None:
            some = others.first if self.first is None else pl.concat([self.first, others.first])
            self.first = some.sort(ROW).head(_SHOWN)

    def faults(self, where: str, *, place: Callable[[int], Place] | None = None) -> list[TableError]:
        """One, if there are any."""
        if self.first is None or not self.count:
            return []
        places = [(*(place(row) if place else (where, row)), tuple(key)) for row, *key in self.first.rows()]
        file, row, key = places[0]
        fault = TableError(
            file,
            "each key once",
            actual=f"{key!r} again",
            row=row,
            column=", ".join(self.first.columns[1:]),
            more=self.count - 1,
            examples=[f"row {row}" if at == file else f"{at} row {row}" for at, row, _ in places[1:]],
        )
        return [fault]
