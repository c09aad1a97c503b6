"""The prepared tables as the tokenizer reads them: each column is there, of its type and without nulls.

`make data` has checked its own tables; a folder that was put together by hand was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import polars as pl
from polars.exceptions import PolarsError

from serving.files import read_object

Kind = Literal["integers", "texts", "integers or texts"]
_EVENTS: dict[str, Kind] = {
    "user_id": "integers",
    "ad_id": "integers",
    "timestamp": "integers",
    "behavior": "texts",
}


def read_ads(data_dir: Path) -> pl.DataFrame:
    """The table of ads: at least ad_id and created_at, in unix seconds, both integers.

    Raises:
        ValueError: the file is no table, or one of the two columns is not as it should be.
        OSError: the file is missing.
    """
    path = data_dir / "ads.parquet"
    try:
        ads = pl.read_parquet(path)
    except PolarsError as error:
        raise ValueError(f"{path}: expected a table in Parquet ({error})") from error
    check_columns(ads.lazy(), {"ad_id": "integers", "created_at": "integers"}, where=str(path))
    return ads


def scan_events(data_dir: Path, *, also: Mapping[str, Kind] | None = None) -> pl.LazyFrame:
    """The events, unread: user_id, ad_id, timestamp, behavior and the columns `also`.

    Raises:
        ValueError: the file is no table, or one of the columns is not as it should be.
        OSError: the file is missing.
    """
    path = data_dir / "events.parquet"
    events = pl.scan_parquet(path)
    check_columns(events, _EVENTS | dict(also or {}), where=str(path))
    return events


def check_columns(table: pl.LazyFrame, wanted: Mapping[str, Kind], *, where: str) -> None:
    """Whether a table has columns of these kinds, without nulls.

    Raises:
        ValueError: names the column and, of a null, its row.
    """
    try:
        schema = table.collect_schema()
        missing = [name for name in wanted if name not in schema]
        if missing:
            raise ValueError(f"{where}: expected columns {list(wanted)}, missing {missing}")
        for name, kind in wanted.items():
            if not _is(schema[name], kind):
                raise ValueError(f"{where}, column {name}: expected {kind}, got {schema[name]}")
        nulls = table.select(pl.col(*wanted).null_count()).collect(engine="streaming").row(0, named=True)
        for name, count in nulls.items():
            if count:
                row = table.select(pl.col(name).is_null().arg_max()).collect().item()
                raise ValueError(f"{where}, column {name}: expected no null, got one in row {row}")
    except PolarsError as error:
        raise ValueError(f"{where}: expected a table in Parquet ({error})") from error


def _is(dtype: pl.DataType, kind: Kind) -> bool:
    texts = dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)
    return ("integers" in kind and dtype.is_integer()) or ("texts" in kind and texts)


def read_split(data_dir: Path) -> tuple[int, bool]:
    """Where the training part ends, in unix seconds, and whether a column of the events says each one's part.

    Raises:
        ValueError: split.json says neither.
        OSError: the file is missing.
    """
    path = data_dir / "split.json"
    try:
        split = read_object(path)
    except ValueError as error:
        raise ValueError(f"{path}: expected train_end in unix seconds ({error})") from error
    train_end = split.get("train_end")
    if not isinstance(train_end, int) or isinstance(train_end, bool):
        raise ValueError(f"{path}: expected train_end in unix seconds, got {train_end!r}")
    return train_end, split.get("by") == "column"
