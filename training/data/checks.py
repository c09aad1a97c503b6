"""Whole-column checks behind the table schemas: no loop over rows.

Rows in messages are counted from 0, as in the file (`pl.read_parquet(file)[row]`).
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import polars as pl

from serving.keys import MAX_KEY

# Unix seconds stay below this until the year 5138; milliseconds, the usual mistake, are above it since 1973.
_SECONDS_LIMIT = 100_000_000_000
_FINER = {"milliseconds": 1_000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}


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


class TableFaultsError(TableError):
    """Several faults in one report; its attributes are those of the first.

    Attributes:
        faults: all of them, at least two.
    """

    def __init__(self, faults: Sequence[TableError]) -> None:
        """Write them below each other."""
        self.__dict__.update(vars(faults[0]))
        self.faults = tuple(faults)
        ValueError.__init__(self, f"{len(faults)} faults:\n  " + "\n  ".join(map(str, faults)))


def raise_faults(faults: Sequence[TableError]) -> None:
    """Raise one fault as it is and several as one report; nothing happens where there is none."""
    if faults:
        raise faults[0] if len(faults) == 1 else TableFaultsError(faults)


def one_of(names: Iterable[str]) -> str:
    """Write the allowed names for a message."""
    return "one of " + "|".join(names)


def date_of(seconds: int) -> str:
    """Unix seconds as a date for a message; beyond the year 9999 the number itself."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return str(seconds)


class ColumnRule(Protocol):
    """What `TableChecks.columns` asks of one column; `training.data.schema.Column` has it."""

    @property
    def dtypes(self) -> tuple[pl.DataType, ...]:
        """That its values may have."""

    @property
    def required(self) -> bool:
        """Whether the table must have it."""

    @property
    def nullable(self) -> bool:
        """Whether it may hold nulls."""


class TableChecks:
    """Checks of one table, which collect what is wrong with it in `faults`."""

    def __init__(self, df: pl.DataFrame, where: str) -> None:
        """Start without a fault.

        Args:
            df: the table.
            where: its name in messages.
        """
        self.df, self.where = df, where
        self.faults: list[TableError] = []
        self._unusable: set[str] = set()  # columns of which nothing more can be asked

    def columns(self, schema: Mapping[str, ColumnRule]) -> None:
        """Ask for the columns of a schema with their dtypes, at least one row, and values where it says so.

        Other columns are nobody's business.
        """
        missing = [name for name, rule in schema.items() if rule.required and name not in self.df.columns]
        for name in missing:
            self._add(f"columns {missing}", actual=f"columns {self.df.columns}", column=name)
        if self.df.height == 0:
            self._add("at least one row", actual="an empty table")
        self._unusable.update(name for name in schema if name not in self.df.columns)
        for name in [name for name in schema if name in self.df.columns]:
            rule = schema[name]
            if self.df.schema[name] not in rule.dtypes:
                self._unusable.add(name)
                dtypes = " or ".join(map(str, rule.dtypes))
                self._add(f"dtype {dtypes}", actual=f"dtype {self.df.schema[name]}", column=name)
            elif not rule.nullable:
                self.rows(name, bad=pl.col(name).is_null(), expected="a value")

    def ids(self, column: str) -> None:
        """Refuse negative ids and, in a column of type String, what is no key."""
        if self.df.schema.get(column) == pl.String():
            bad = ~pl.col(column).str.len_chars().is_between(1, MAX_KEY)
            self.rows(column, bad=bad, expected=f"a key of 1 to {MAX_KEY} characters")
        else:
            self.rows(column, bad=pl.col(column) < 0, expected="an id >= 0")

    def same_type(self, column: str, dtype: pl.DataType, *, other: str) -> None:
        """Ask for the type that the column has in another table: keys do not name numbers."""
        actual = self.df.schema[column]
        if column not in self._unusable and {dtype, actual} == {pl.Int64(), pl.String()}:
            self._unusable.add(column)
            self._add(f"dtype {dtype} as in the {other} table", actual=f"dtype {actual}", column=column)

    def seconds(self, column: str) -> None:
        """Refuse times that are negative or cannot be unix seconds."""
        bad = ~pl.col(column).is_between(0, _SECONDS_LIMIT, closed="left")
        expected = f"unix seconds in [0, {_SECONDS_LIMIT})"
        if not self.rows(column, bad=bad, expected=expected):
            return
        fault = self.faults[-1]
        for name, a_second in _FINER.items():
            if isinstance(fault.actual, int) and _SECONDS_LIMIT <= fault.actual < _SECONDS_LIMIT * a_second:
                actual = f"{fault.actual}: {name}? As such it is {date_of(fault.actual // a_second)}"
                self.faults.pop()
                self._add(expected, actual=actual, column=column, row=fault.row, more=fault.more)
                return

    def unique(self, key: Sequence[str]) -> None:
        """Refuse the second and later rows with the same key."""
        first = pl.struct(key).is_first_distinct() if len(key) > 1 else pl.col(key[0]).is_first_distinct()
        self.rows(*key, bad=~first, expected="each key once", again=True)

    def rows(self, *columns: str, bad: pl.Expr, expected: str, again: bool = False) -> bool:
        """Refuse rows where `bad` is true, the message showing the first's columns; true if there are any."""
        if not self._unusable.isdisjoint(columns):
            return False
        mask = self.df.select(bad.alias("bad"))["bad"]
        count = int(mask.sum() or 0)
        if count == 0:
            return False
        row = int(mask.arg_max() or 0)  # first True
        values: list[Any] = [self.df[name][row] for name in columns]
        actual: object = values[0] if len(values) == 1 else tuple(values)
        if again:
            actual = f"{actual!r} again"
        elif isinstance(actual, str):
            actual = repr(actual)
        self._add(expected, actual=actual, row=row, column=", ".join(columns), more=count - 1)
        return True

    def _add(self, expected: str, **found: Any) -> None:
        self.faults.append(TableError(self.where, expected, **found))
