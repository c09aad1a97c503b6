"""Events in blocks of whole users, so that a log of any length is looked at with one block in memory.

The blocks lie in a folder and follow each other in the order of the users, so side by side they are the
prepared table.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from polars.io.partition import FileProviderArgs

from training.data.checks import ROW, Place, TableError
from training.data.event_order import Repeats, sort_events
from training.data.log import EventLog
from training.workers import Workers

_BLOCK = "block of users"  # column while the events are divided


@dataclass(frozen=True)
class Blocks:
    """What `write_blocks` wrote.

    Attributes:
        files: one a block, in the order of the users; rows in the order of the prepared table.
        repeats: a fault where events come twice.
    """

    files: tuple[Path, ...]
    repeats: tuple[TableError, ...]

    def logs(self, *, attribution_window_s: int) -> Iterator[tuple[Path, pl.DataFrame, EventLog]]:
        """File, events and log of each block."""
        for file in self.files:
            events = pl.read_parquet(file, hive_partitioning=False, glob=False)
            users = events["user_id"].unique().sort()
            yield file, events, EventLog.of(events, users, attribution_window_s=attribution_window_s)

    def scan(self) -> pl.LazyFrame:
        """All events, read in batches."""
        return pl.scan_parquet(list(self.files), hive_partitioning=False, glob=False)


def write_blocks(
    events: pl.LazyFrame,
    folder: Path,
    *,
    where: str,
    place: Callable[[int], Place] | None = None,
    rows: int,
    workers: Workers,
) -> Blocks:
    """Divide events by user, and sort each block.

    Args:
        events: with the number of the row; read twice, in batches.
        folder: to write to.
        where: name of the events in messages.
        place: see `TableChecks`.
        rows: events of a block, about; more where one user has more.
        workers: who does it.
    """
    folder = folder.absolute()
    ends = _last_users(events, rows=rows)
    height = events.select(pl.len()).collect(engine="streaming").item()
    length = max(1, -(-height // workers.readers))
    workers(partial(_divide, events, ends=ends, length=length, folder=folder), range(0, height, length))
    sorted_blocks = workers(partial(_sort, folder), range(len(ends)))
    repeats = Repeats()
    for found in sorted_blocks:
        repeats.join(found)
    files = tuple(_file(folder, block) for block in range(len(ends)))
    return Blocks(files, tuple(repeats.faults(where, place=place)))


def _divide(events: pl.LazyFrame, first: int, *, ends: Sequence[int], length: int, folder: Path) -> None:
    """Write some rows of the source, each to the folder of its block."""

    def path(file: FileProviderArgs) -> str:
        return f"{file.partition_keys[_BLOCK].item()}/{first}-{file.index_in_partition}.parquet"

    number = sum((pl.col("user_id") > end for end in ends[:-1]), pl.lit(0, pl.UInt32)).fill_null(0)
    blocks = pl.PartitionBy(
        folder / "divided", key=number.alias(_BLOCK), include_key=False, file_path_provider=path
    )
    events.slice(first, length).sink_parquet(blocks, compression="lz4", mkdir=True)


def _sort(folder: Path, block: int) -> Repeats:
    """Sort one block, and look for events that come twice."""
    parts = sorted((folder / "divided" / str(block)).iterdir())
    table = sort_events(pl.read_parquet(parts, hive_partitioning=False, glob=False))
    repeats = Repeats()
    repeats.add(table)
    table.drop(ROW).write_parquet(_file(folder, block), compression="lz4")
    for part in parts:
        part.unlink()
    return repeats


def _file(folder: Path, block: int) -> Path:
    return folder / f"{block:05}.parquet"


def _last_users(events: pl.LazyFrame, *, rows: int) -> list[int]:
    """The last user of each block; none where there are no events."""
    counts = events.group_by("user_id").len().drop_nulls().collect(engine="streaming").sort("user_id")
    if counts.is_empty():
        return []
    total = counts["len"].cast(pl.Int64).cum_sum().to_numpy()
    ends = np.searchsorted(total, np.arange(rows, total[-1] + rows, rows))
    return counts["user_id"].to_numpy()[np.unique(np.minimum(ends, len(total) - 1))].tolist()
