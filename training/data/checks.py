"""Whole-column checks behind the table schemas: no loop over rows, and no table in memory.

Rows in messages are counted from 0, as in the file (`pl.read_parquet(file)[row]`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Protocol

import polars as pl

from serving.keys import MAX_KEY

# Unix seconds stay below this until the year 5138; milliseconds, the usual mistake, are above it since 1973.
_SECONDS_LIMIT = 100_000_000_000
_FINER = {"milliseconds": 1_000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}
_EXAMPLES = 3
ROW = "row of the table"  # column of the row's number while a table is checked

Place = tuple[str, int]  # file and row of it


class TableError(ValueError):
    """A table breaks its schema: says where, what was expected, what came, and how many rows more.

    Attributes:
        where: file or table name.
        row: first bad row, counted from 0; None when the whole table or column is meant.
        column: column name; None when the whole table is meant.
        expected: what the schema asks for.
        actual: what was found.
        more: number of further rows with the same fault.
        faults: all that are reported together.
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
        examples: Sequence[str] = (),
    ) -> None:
        """Build the message from the attributes and, of the further rows, some examples."""
        self.faults: tuple[TableError, ...] = (self,)
        self.where, self.row, self.column, self.more = where, row, column, more
        self.expected, self.actual = expected, actual
        place = [where]
        if row is not None:
            place.append(f"row {row}")
        if column is not None:
            place.append(f"column {column!r}")
        shown = _short(actual if isinstance(actual, str) else repr(actual), 120)
        others = ": " + ", ".join([*examples, *([".."] if len(examples) < more else [])]) if examples else ""
        tail = f" (and {more} more such rows{others})" if more else ""
        super().__init__(f"{', '.join(place)}: expected {expected}, got {shown}{tail}")


class TableFaultsError(TableError):
    """Several faults in one report; its attributes are those of the first, but for `faults`."""

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


@dataclass(frozen=True)
class _Rule:
    columns: tuple[str, ...]
    bad: pl.Expr
    expected: str
    say: Callable[[Any], object]


class TableChecks:
    """Checks of one table, all done in one pass over it when its faults are asked for."""

    def __init__(
        self,
        table: pl.DataFrame | pl.LazyFrame,
        where: str,
        *,
        place: Callable[[int], Place] | None = None,
        unusable: Iterable[str] = (),
        source_columns: Sequence[str] | None = None,
    ) -> None:
        """Start without a check.

        Args:
            table: read in batches where it is lazy; with the column `ROW` it brings its own row numbers.
            where: its name in messages.
            place: file and row in it of a row of the table, for a table of several files.
            unusable: columns with a fault that is known, of which nothing more is asked.
            source_columns: all that its files have, for messages; None for those of the table.
        """
        frame = table.lazy()
        self.schema = frame.collect_schema()
        self._frame = frame if ROW in self.schema else frame.with_row_index(ROW)
        self._where, self._place = where, place or (lambda row: (where, row))
        self._unusable = set(unusable)
        self._found = list(self.schema if source_columns is None else source_columns)
        self._faults: list[TableError] = []
        self._rules: list[_Rule] = []

    def columns(self, schema: Mapping[str, ColumnRule]) -> None:
        """Ask for the columns of a schema with their dtypes, and values where it says so.

        Other columns are nobody's business.
        """
        missing = [name for name, rule in schema.items() if rule.required and name not in self.schema]
        for name in missing:
            self.fault(f"columns {missing}", actual=f"columns {self._found}", column=name)
        self._unusable.update(name for name in schema if name not in self.schema)
        for name in [name for name in schema if name not in self._unusable]:
            rule, dtype = schema[name], self.schema[name]
            if dtype not in rule.dtypes:
                self._unusable.add(name)
                dtypes = " or ".join(map(str, rule.dtypes))
                self.fault(f"dtype {dtypes}", actual=f"dtype {dtype}", column=name)
            elif not rule.nullable:
                self.rows(name, bad=pl.col(name).is_null(), expected="a value")

    def ids(self, column: str) -> None:
        """Refuse negative ids and, in a column of type String, what is no key."""
        if self.schema.get(column) == pl.String():
            bad = ~pl.col(column).str.len_chars().is_between(1, MAX_KEY)
            self.rows(column, bad=bad, expected=f"a key of 1 to {MAX_KEY} characters")
        else:
            self.rows(column, bad=pl.col(column) < 0, expected="an id >= 0")

    def same_type(self, column: str, dtype: pl.DataType | None, *, other: str) -> None:
        """Ask for the type that the column has in another table: keys do not name numbers."""
        actual = self.schema.get(column)
        if column not in self._unusable and {dtype, actual} == {pl.Int64(), pl.String()}:
            self._unusable.add(column)
            self.fault(f"dtype {dtype} as in the {other} table", actual=f"dtype {actual}", column=column)

    def seconds(self, column: str) -> None:
        """Refuse times that are negative or cannot be unix seconds."""
        bad = ~pl.col(column).is_between(0, _SECONDS_LIMIT, closed="left")
        self.rows(column, bad=bad, expected=f"unix seconds in [0, {_SECONDS_LIMIT})", say=_finer_time)

    def unique(self, key: Sequence[str]) -> None:
        """Refuse the second and later rows with the same key."""
        first = pl.struct(key).is_first_distinct() if len(key) > 1 else pl.col(key[0]).is_first_distinct()
        self.rows(*key, bad=~first, expected="each key once", say=lambda value: f"{value!r} again")

    def rows(
        self, *columns: str, bad: pl.Expr, expected: str, say: Callable[[Any], object] | None = None
    ) -> None:
        """Refuse rows where `bad` is true; the message shows their columns, through `say` if given."""
        if self._unusable.isdisjoint(columns):
            self._rules.append(_Rule(columns, bad, expected, say or repr))

    def fault(self, expected: str, **found: Any) -> None:
        """Add a fault that no row has to be read for."""
        self._faults.append(TableError(self._where, expected, **found))

    @cached_property
    def faults(self) -> list[TableError]:
        """All that is wrong with the table, which is read for it.

        Raises:
            polars.exceptions.PolarsError: it cannot be read.
        """
        counts = self._frame.select(
            pl.len().alias("rows"), *(rule.bad.sum().alias(str(i)) for i, rule in enumerate(self._rules))
        ).collect(engine="streaming")
        found = list(self._faults)
        if not counts["rows"].item():
            found.append(TableError(self._where, "at least one row", actual="an empty table"))
        bad = [(rule, counts[str(i)].item()) for i, rule in enumerate(self._rules) if counts[str(i)].item()]
        return found + [self._fault_of(rule, count) for rule, count in bad]

    def _fault_of(self, rule: _Rule, count: int) -> TableError:
        some = self._frame.filter(rule.bad).select(ROW, *rule.columns).head(_EXAMPLES)
        examples = []
        for row, *values in some.collect(engine="streaming").rows():
            examples.append((*self._place(row), values[0] if len(values) == 1 else tuple(values)))
        where, row, actual = examples[0]
        others = [
            f"row {row} {_short(repr(value), 40)}" if file == where else f"{file} row {row} {value!r:.40}"
            for file, row, value in examples[1:]
        ]
        return TableError(
            where,
            rule.expected,
            actual=rule.say(actual),
            row=row,
            column=", ".join(rule.columns),
            more=count - 1,
            examples=others,
        )


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _finer_time(value: int) -> str:
    for name, a_second in _FINER.items():
        if _SECONDS_LIMIT <= value < _SECONDS_LIMIT * a_second:
            return f"{value}: {name}? As such it is {date_of(value // a_second)}"
    return str(value)
