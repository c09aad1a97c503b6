"""String ids of the tables as numbers, and the way back.

An id column of type String holds keys, whatever they look like ("17" is a key, too); one of type Int64 holds
ids as they are. A key's id is a hash of it (`serving.keys.id_of`), so tables need no table to agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import polars as pl

from serving.keys import id_of
from training.data.checks import TableError

ID_COLUMNS = ("ad_id", "user_id")
FOLDER = "keys"

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


@dataclass(frozen=True)
class Keys:
    """Which key stands behind an id.

    Attributes:
        ads: columns key, ad_id, in the order of the ids; None where the tables' own ids are numbers.
        users: same with user_id.
    """

    ads: pl.DataFrame | None = None
    users: pl.DataFrame | None = None

    @classmethod
    def of(cls, ads: pl.DataFrame, users: pl.DataFrame, *, where: tuple[str, str]) -> Self:
        """Of the ids of checked tables, as they came; `where` names the tables in messages.

        Raises:
            TableError: two keys have one id.
        """
        return cls(_table(ads["ad_id"], where=where[0]), _table(users["user_id"], where=where[1]))

    def save(self, folder: Path) -> None:
        """Write keys/ads.parquet and keys/users.parquet; nothing for ids that are numbers."""
        for name, table in vars(self).items():
            if table is not None:
                (folder / FOLDER).mkdir(exist_ok=True)
                table.write_parquet(folder / FOLDER / f"{name}.parquet")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote; nothing where nothing is."""
        files = {name: folder / FOLDER / f"{name}.parquet" for name in ("ads", "users")}
        return cls(**{name: pl.read_parquet(file) for name, file in files.items() if file.is_file()})

    def summary(self) -> str:
        """What `make data` says of them; empty where all ids are numbers."""
        counts = [f"{table.height:,} {name}" for name, table in vars(self).items() if table is not None]
        return f"string ids of {' and '.join(counts)}: see {FOLDER}/ of the data" if counts else ""


def with_ids(frame: Frame) -> Frame:
    """Ids in place of keys, in the columns `ID_COLUMNS` that are of type String; streams where frames do.

    Raises:
        ValueError: a value that is no key.
    """
    schema = frame.collect_schema()
    return frame.with_columns(
        pl.col(name).map_batches(ids_of, return_dtype=pl.Int64(), is_elementwise=True)
        for name in ID_COLUMNS
        if schema.get(name) == pl.String()
    )


def ids_of(keys: pl.Series) -> pl.Series:
    """Ids Int64 of keys, each different one made once; null stays null.

    Raises:
        ValueError: a value that is no key.
    """
    known = keys.unique().drop_nulls()
    ids = pl.Series([id_of(key) for key in known], dtype=pl.Int64())
    return keys.replace_strict(known, ids, default=None, return_dtype=pl.Int64())


def _table(column: pl.Series, *, where: str) -> pl.DataFrame | None:
    if column.dtype != pl.String():
        return None
    ids = ids_of(column).alias(column.name)
    table = pl.DataFrame([column.alias("key"), ids]).sort(column.name)
    again = table.filter(pl.col(column.name).is_duplicated())
    if again.height:
        first, second = again["key"][:2]
        raise TableError(
            where,
            "keys with an id each",
            actual=f"{first!r} and {second!r}, both of id {again[column.name][0]}: rename one of them",
            column=column.name,
        )
    return table
