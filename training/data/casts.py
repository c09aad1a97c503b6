"""Types of other people's tables as the types that are used here, where nothing of a value is lost.

What a column cannot lose is said by its kind: an id or a count is a whole number, a time is in unix seconds.
A cast that only some values allow (UInt64, whole floats, the text of a CSV) names the rows that do not.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

from training.data.checks import TableChecks, TableError
from training.data.files import RawTable

Kind = Literal["id", "integer", "seconds", "number", "vector", "quantity", "category", "text"]

_EXACT = 1 << 53  # whole numbers up to here are floats
_WRITTEN = ("%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d")  # without a zone: UTC
_INTEGER = r"^(0|-?[1-9][0-9]*)$"


@dataclass(frozen=True)
class CastTable:
    """A table in the types that are used here.

    Attributes:
        frame: columns that have a kind, as that kind; the others are left out.
        lines: one a cast, for the user.
        faults: rows that could not be cast.
        unusable: columns of those rows.
    """

    frame: pl.LazyFrame
    lines: tuple[str, ...]
    faults: tuple[TableError, ...]
    unusable: frozenset[str]


@dataclass(frozen=True)
class _Cast:
    """How one column is read; rows where `bad` is true would lose their value, `trimmed` ones a fraction."""

    value: pl.Expr
    into: str
    bad: pl.Expr | None = None
    expected: str = ""
    trimmed: pl.Expr | None = None


def cast_table(table: RawTable, kinds: Mapping[str, Kind], *, integers: Collection[str] = ()) -> CastTable:
    """Cast columns to what their kind asks for.

    Where a type cannot be cast, or has to be none, it stays; the checks of the schema are what refuses it.

    Args:
        table: as it lies on disk.
        kinds: column -> kind.
        integers: of a table of text, the ids and categories that are integers; see `integer_columns`.

    Raises:
        TableError: the table cannot be read.
    """
    schema = table.schema
    casts = {}
    for name in [name for name in schema if name in kinds]:
        kind: Kind = "integer" if table.text and name in integers else kinds[name]
        cast = _CASTS[kind](pl.col(name), schema[name])
        if cast is not None:
            casts[name] = cast
    checks = TableChecks(table.frame, table.where, place=table.place)
    for name, cast in casts.items():
        if cast.bad is not None:
            checks.rows(name, bad=cast.bad, expected=cast.expected)
    faults = checks.faults if any(cast.bad is not None for cast in casts.values()) else []
    fractions = {name: cast.trimmed for name, cast in casts.items() if cast.trimmed is not None}
    trimmed = _count(table.frame, fractions)
    lines = [
        f"{table.where}, column {name!r}: {schema[name]} read as {cast.into}"
        + (f"; {trimmed[name]:,} rows lose their fraction of a second" if trimmed.get(name) else "")
        for name, cast in casts.items()
    ]
    used = [name for name in schema if name in kinds]
    columns = [casts[name].value.alias(name) if name in casts else pl.col(name) for name in used]
    return CastTable(
        frame=table.frame.select(columns),
        lines=tuple(lines),
        faults=tuple(faults),
        unusable=frozenset(fault.column for fault in faults if fault.column is not None),
    )


def integer_columns(table: RawTable, names: Collection[str]) -> dict[str, bool]:
    """Whether each of these columns that a table has holds integers; in a table of text, as it is written.

    Text is an integer only as one would write it: 007 and 7 are two keys.
    """
    found = [name for name in names if name in table.schema]
    if not table.text:
        return {name: table.schema[name].is_numeric() for name in found}
    plain = table.frame.select(pl.col(name).str.contains(_INTEGER).all() for name in found)
    return plain.collect(engine="streaming").row(0, named=True) if found else {}


def _count(frame: pl.LazyFrame, rows: Mapping[str, pl.Expr]) -> dict[str, int]:
    counts = frame.select(bad.sum().alias(name) for name, bad in rows.items())
    return counts.collect(engine="streaming").row(0, named=True) if rows else {}


def _unless_lost(column: pl.Expr, value: pl.Expr, *, into: str, expected: str) -> _Cast:
    return _Cast(value, into, bad=column.is_not_null() & value.is_null(), expected=expected)


def _integer(column: pl.Expr, dtype: pl.DataType) -> _Cast | None:
    value = column.cast(pl.Int64, strict=False)
    if dtype == pl.Int64:
        return None
    if dtype in (pl.UInt64, pl.Int128, pl.UInt128):
        return _unless_lost(column, value, into="Int64", expected="an integer below 2^63")
    if dtype.is_integer() or dtype == pl.Null:
        return _Cast(value, "Int64")
    if dtype.is_float():
        whole = column.is_finite() & (column == column.floor()) & (column.abs() <= _EXACT)
        return _Cast(value, "Int64", bad=~whole, expected="a whole number of at most 2^53")
    if dtype.is_decimal():
        bad = column.is_not_null() & (value.is_null() | (value.cast(dtype, strict=False) != column))
        return _Cast(value, "Int64", bad=bad.fill_null(True), expected="an integer below 2^63")
    if dtype == pl.String:
        return _unless_lost(column, value, into="Int64", expected="an integer below 2^63")
    return None


def _id(column: pl.Expr, dtype: pl.DataType) -> _Cast | None:
    """An integer, or a key: a String stays one, whatever it looks like."""
    if dtype == pl.String:
        return None
    return _integer(column, dtype) if dtype.is_numeric() or dtype == pl.Null else _text(column, dtype)


def _seconds(column: pl.Expr, dtype: pl.DataType) -> _Cast | None:
    if dtype == pl.Date:
        return _Cast(column.dt.epoch("s").cast(pl.Int64), "unix seconds of its midnight, UTC")
    if dtype == pl.Datetime:
        zone = getattr(dtype, "time_zone", None)
        into = "unix seconds" if zone else "unix seconds, as UTC"
        return _Cast(_epoch(column), into, trimmed=column.dt.nanosecond() != 0)
    if dtype.is_float() or dtype.is_decimal():
        number = column.cast(pl.Float64)
        value = number.floor().cast(pl.Int64, strict=False)
        cast = _unless_lost(column, value, into="unix seconds", expected="a finite time")
        return _Cast(cast.value, cast.into, cast.bad, cast.expected, trimmed=number != number.floor())
    if dtype == pl.String:
        written = column.str.replace("T", " ").str.replace("Z$", "+00:00")
        times = (
            _epoch(written.str.to_datetime(how, time_unit="us", time_zone="UTC", strict=False))
            for how in _WRITTEN
        )
        value = pl.coalesce(column.cast(pl.Int64, strict=False), *times)
        return _unless_lost(column, value, into="unix seconds", expected="unix seconds, or a date and time")
    return _integer(column, dtype)


def _epoch(column: pl.Expr) -> pl.Expr:
    return column.dt.timestamp("us").floordiv(1_000_000)


def _number(column: pl.Expr, dtype: pl.DataType) -> _Cast | None:
    value = column.cast(pl.Float64, strict=False)
    if dtype == pl.Float64:
        return None
    if dtype.is_integer():
        return _Cast(value, "Float64", bad=~column.is_between(-_EXACT, _EXACT), expected="at most 2^53")
    if dtype.is_numeric() or dtype in (pl.Boolean, pl.Null):
        return _Cast(value, "Float64")
    if dtype == pl.String:
        return _unless_lost(column, value, into="Float64", expected="a number")
    return None


def _vector(column: pl.Expr, dtype: pl.DataType) -> _Cast | None:
    """An embedding, as one number or a list: floats stay as they are."""
    if isinstance(dtype, pl.Array):
        return _Cast(column.arr.to_list(), f"List({dtype.inner})")
    return None if dtype.is_float() or dtype.is_nested() else _number(column, dtype)


def _quantity(column: pl.Expr, dtype: pl.DataType) -> _Cast | None:
    """A number that keeps its type where it has one."""
    return None if dtype.is_integer() or dtype.is_float() else _number(column, dtype)


def _category(column: pl.Expr, dtype: pl.DataType) -> _Cast | None:
    """A whole number that keeps its type, or a text."""
    return None if dtype.is_integer() else _text(column, dtype)


def _text(column: pl.Expr, dtype: pl.DataType) -> _Cast | None:
    if dtype in (pl.Categorical, pl.Enum, pl.Boolean, pl.Binary, pl.Null) or dtype.is_integer():
        return _Cast(column.cast(pl.String), "String")
    return None


_CASTS: dict[Kind, Callable[[pl.Expr, pl.DataType], _Cast | None]] = {
    "id": _id,
    "integer": _integer,
    "seconds": _seconds,
    "number": _number,
    "vector": _vector,
    "quantity": _quantity,
    "category": _category,
    "text": _text,
}
