"""Whole-column checks behind the table schemas: no loop over rows.

Rows in messages are counted from 0, as in the file (`pl.read_parquet(file)[row]`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

# Unix seconds stay below this until the year 5138; milliseconds, the usual mistake, are above it since 1973.
_SECONDS_LIMIT = 100_000_000_000


class TableError(ValueError):
    """A table breaks its schema: says where, what was expected, what came, and how many rows more.

    Attributes:
        where: file or table name.
        row: first bad row, counted from 0; None when the whole table or column is meant.
        column: column name; None when the whole table is meant.
        expected: what the schema asks for.
        actual: what was found.
        more: number of further rows with the same fault.
    """

    def __init__(
        self,
        where: str,
        expected: str,
        *,
        actual: object,
        row: int | None = None,
        column: str | None = None,
        more: int = 0,
    ) -> None:
        """Build the message from the attributes."""
        self.where, self.row, self.column, self.more = where, row, column, more
        self.expected, self.actual = expected, actual
        place = [where]
        if row is not None:
            place.append(f"row {row}")
        if column is not None:
            place.append(f"column {column!r}")
        shown = actual if isinstance(actual, str) else repr(actual)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        tail = f" (and {more} more such rows)" if more else ""
        super().__init__(f"{', '.join(place)}: expected {expected}, got {shown}{tail}")


def one_of(names: Iterable[str]) -> str:
    """Write the allowed names for a message."""
    return "one of " + "|".join(names)


def check_columns(
    df: pl.DataFrame, where: str, *, schema: Mapping[str, pl.DataType], nullable: Sequence[str] = ()
) -> None:
    """Refuse missing and unknown columns, an empty table, wrong dtypes, and nulls outside `nullable`."""
    for name in schema:
        if name not in df.columns:
            raise TableError(where, f"columns {list(schema)}", actual=f"columns {df.columns}", column=name)
    for name in df.columns:
        if name not in schema:
            raise TableError(
                where, f"only the columns {list(schema)}", actual=f"the unknown column {name!r}", column=name
            )
    if df.height == 0:
        raise TableError(where, "at least one row", actual="an empty table")
    for name, dtype in schema.items():
        if df.schema[name] != dtype:
            raise TableError(where, f"dtype {dtype}", actual=f"dtype {df.schema[name]}", column=name)
        if name not in nullable:
            check_rows(df, where, column=name, bad=pl.col(name).is_null(), expected="a value")


def check_ids(df: pl.DataFrame, where: str, *, column: str) -> None:
    """Refuse negative ids."""
    check_rows(df, where, column=column, bad=pl.col(column) < 0, expected="an id >= 0")


def check_seconds(df: pl.DataFrame, where: str, *, column: str) -> None:
    """Refuse times that are negative or cannot be unix seconds."""
    bad = ~pl.col(column).is_between(0, _SECONDS_LIMIT, closed="left")
    check_rows(df, where, column=column, bad=bad, expected=f"unix seconds in [0, {_SECONDS_LIMIT})")


def check_unique(df: pl.DataFrame, where: str, *, key: Sequence[str]) -> None:
    """Refuse the second and later rows with the same key."""
    first = pl.struct(key).is_first_distinct() if len(key) > 1 else pl.col(key[0]).is_first_distinct()
    column = key[0] if len(key) == 1 else ", ".join(key)
    check_rows(df, where, column=column, bad=~first, expected="each key once", show=key)


def check_rows(
    df: pl.DataFrame,
    where: str,
    *,
    column: str,
    bad: pl.Expr,
    expected: str,
    show: Sequence[str] | None = None,
) -> None:
    """Refuse rows where `bad` is true; the message shows `column`, or the columns `show`, of the first."""
    mask = df.select(bad.alias("bad"))["bad"]
    count = int(mask.sum() or 0)
    if count == 0:
        return
    row = int(mask.arg_max() or 0)  # first True
    values: list[Any] = [df[name][row] for name in (show or (column,))]
    actual: object = values[0] if len(values) == 1 else tuple(values)
    if show is not None:
        actual = f"{actual!r} again"
    elif isinstance(actual, str):
        actual = repr(actual)
    raise TableError(where, expected, actual=actual, row=row, column=column, more=count - 1)
