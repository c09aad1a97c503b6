"""Source `parquet`: the user's own tables."""

from dataclasses import replace
from pathlib import Path

import polars as pl

from training.data.checks import TableError
from training.data.schema import LoadStats, Tables, make_tables
from training.preset.data import DataConfig

NAMES = ("ads", "users", "events")


def load_parquet(config: DataConfig) -> Tables:
    """Read ads.parquet, users.parquet and events.parquet from `config.path`.

    Nothing is repaired or dropped here: a bad row of the user's own logs is the user's to decide on.

    Raises:
        TableError: a file is missing, is not Parquet, or breaks its schema; the message names file, row,
            column, expected, actual.
    """
    if config.path is None:
        raise ValueError(
            "path: expected a folder with ads.parquet, users.parquet, events.parquet, got nothing"
        )
    folder = Path(config.path)
    # A table is read, its columns are cast without loss, string ids become integers; then it is checked.
    ads, users, events = (read_table(folder / f"{name}.parquet") for name in NAMES)
    where = [str(folder / f"{name}.parquet") for name in NAMES]
    tables = make_tables(
        ads,
        users,
        events=events,
        stats=LoadStats(rows_read=events.height),
        provenance="",
        where=where,
        profile_columns=config.profile_columns,
    )
    said = ", ".join(sorted(tables.events["provenance"].unique().to_list()))
    provenance = f"The user's own tables in {folder}; provenance column of its events: {said}."
    return replace(tables, provenance=provenance)


def read_table(path: Path) -> pl.DataFrame:
    """Read one Parquet file.

    Raises:
        TableError: the file is missing or is not readable as Parquet.
    """
    if not path.is_file():
        raise TableError(str(path), "a Parquet file", actual="no such file")
    try:
        # Not by hive rules or globbing: the path is one file, whatever its folders are called.
        return pl.read_parquet(path, hive_partitioning=False, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TableError(str(path), "a readable Parquet file", actual=str(error).splitlines()[0]) from error
