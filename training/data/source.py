"""What a source delivers to `make data`: tables of which the events need not fit in memory."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import polars as pl

from training.data.checks import Place, TableError
from training.data.columns import Named
from training.data.keys import Keys
from training.data.schema import LoadStats, Tables, complete_events


@dataclass(frozen=True)
class Source:
    """Tables of one source, and what is wrong with them.

    Attributes:
        ads: as `complete_ads` takes them.
        users: as `complete_users` takes them.
        events: as `complete_events` makes them, in the order of the source; read in batches.
        stats: rows read and dropped.
        provenance: the sentence that belongs beside every result made from these tables.
        named: columns that the preset names.
        faults: all but events that come twice, which only the sorted events tell.
        lines: what was done to columns, for the user.
        keys: the source's own ids of ads and users, where they are texts.
        where: name of the events in messages.
        place: file and row in it of a row of the events; None for one file.
    """

    ads: pl.LazyFrame
    users: pl.LazyFrame
    events: pl.LazyFrame
    stats: LoadStats
    provenance: str
    named: Named = Named()
    faults: tuple[TableError, ...] = ()
    lines: tuple[str, ...] = ()
    keys: Keys = field(default_factory=Keys)
    where: str = "events"
    place: Callable[[int], Place] | None = None

    @classmethod
    def of(cls, tables: Tables) -> Self:
        """Of checked tables in memory."""
        return cls(
            tables.ads.lazy(),
            tables.users.lazy(),
            complete_events(tables.events.lazy()),
            stats=tables.stats,
            provenance=tables.provenance,
            keys=tables.keys,
        )
