"""Where a table lies: one file, or a folder of parts as Spark and Hive leave it; Parquet, or CSV with header.

Nothing is read here but schemas; the rows come in batches when a frame is collected.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from training.data.checks import Place, TableError, raise_faults

NAMES = ("ads", "users", "events")

_NULL = "__HIVE_DEFAULT_PARTITION__"  # Hive's folder of rows without a value
_NAMED = 5  # files that a message names


@dataclass(frozen=True)
class RawTable:
    """A table as it lies on disk.

    Attributes:
        where: path for messages.
        files: its parts, in the order of the rows.
        frame: its used columns at least, those of hive folders too.
        schema: of the first file, and of hive folders.
        text: whether all columns are String because the files have no types (CSV).
    """

    where: str
    files: tuple[Path, ...]
    frame: pl.LazyFrame
    schema: pl.Schema
    text: bool

    def place(self, row: int) -> Place:
        """File and row in it of a row of the table."""
        for file in self.files[:-1]:
            height = _scan([file], text=self.text).select(pl.len()).collect().item()
            if row < height:
                return str(file), row
            row -= height
        return str(self.files[-1]), row


def open_table(folder: Path, name: str, *, rule_of: Callable[[str], object]) -> RawTable:
    """Find the table `name` below `folder`: NAME.parquet or NAME.csv, file or folder, or a folder NAME.

    Args:
        folder: where the tables are.
        name: of the table.
        rule_of: of a column, None if it is not used; all parts must have the used ones in one type.

    Raises:
        TableError: there is none or more than one, a file is not what its name says, or parts differ; all
            that is wrong in one report.
    """
    known = [folder / f"{name}.parquet", folder / f"{name}.csv", folder / name]
    found = [path for path in known if path.exists()]
    if not found:
        raise TableError(str(known[0]), "a Parquet file", actual="no such file")
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise TableError(str(folder), f"one table of {name}", actual=f"{names}")
    where = str(found[0])
    files = _parts(found[0])
    text = files[0].suffix == ".csv"
    first = _schema(files, where=where, text=text, rule_of=rule_of)
    by_folder: dict[tuple[tuple[str, str], ...], list[Path]] = {}
    for file in files:
        by_folder.setdefault(_hive_values(file.relative_to(found[0])), []).append(file)
    _same_keys(list(by_folder), where)
    frames = []
    for values, parts in by_folder.items():
        frame = _scan(parts, text=text, columns=None if len(files) == 1 else first)
        columns = (_hive_column(key, value, list(by_folder)) for key, value in values if key not in first)
        frames.append(frame.with_columns(columns))
    ordered = tuple(file for parts in by_folder.values() for file in parts)
    frame = pl.concat(frames)
    schema = pl.Schema({**_scan(files[:1], text=text).collect_schema(), **frame.collect_schema()})
    return RawTable(where=where, files=ordered, frame=frame, schema=schema, text=text)


def read_table(path: Path) -> pl.DataFrame:
    """Read one Parquet file.

    Raises:
        TableError: the file is missing or is not readable as Parquet.
    """
    if not path.is_file():
        raise TableError(str(path), "a Parquet file", actual="no such file")
    with reading(str(path)):
        return _scan([path], text=False).collect()


@contextmanager
def reading(where: str, files: Sequence[Path] = ()) -> Iterator[None]:
    """Say what cannot be read in a block as a `TableError`.

    Args:
        where: name of what is read.
        files: its parts; those that are damaged are named.

    Raises:
        TableError: something is damaged or not there.
    """
    try:
        yield
    except TableError:
        raise
    except (pl.exceptions.PolarsError, OSError, pl.exceptions.PanicException) as error:
        bad = _unreadable(files) if len(files) > 1 else []
        raise_faults(bad or [TableError(where, "a readable table", actual=_first_line(error))])


def _parts(path: Path) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    every = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path)))
    kinds = {file.suffix for file in every}
    if not every:
        raise TableError(str(path), "a folder of Parquet or CSV files", actual="an empty folder")
    foreign = [file for file in every if file.suffix not in (".parquet", ".csv")]
    if foreign or len(kinds) > 1:
        named = _named(foreign or every, path)
        raise TableError(str(path), "either Parquet or CSV files and no others", actual=named)
    return tuple(every)


def _hidden(relative: Path) -> bool:
    """Whether writers hide it: _SUCCESS, _temporary/.., .part-00000.crc; a hive folder may begin with _."""
    return any(name.startswith(".") or (name.startswith("_") and "=" not in name) for name in relative.parts)


def _named(files: Sequence[Path], root: Path) -> str:
    some = ", ".join(str(file.relative_to(root)) for file in files[:_NAMED])
    return some + (f" and {len(files) - _NAMED} more" if len(files) > _NAMED else "")


def _scan(
    files: Sequence[Path], *, text: bool, columns: dict[str, pl.DataType] | None = None
) -> pl.LazyFrame:
    files = [file.absolute() for file in files]  # whoever reads it may stand elsewhere
    if text:
        return pl.scan_csv(files, infer_schema=False, glob=False)
    # Not by hive rules or globbing: the paths are files, whatever their folders are called.
    if columns is None:
        return pl.scan_parquet(files, hive_partitioning=False, glob=False)
    return pl.scan_parquet(files, hive_partitioning=False, glob=False, schema=columns, extra_columns="ignore")


def _schema(
    files: Sequence[Path], *, where: str, text: bool, rule_of: Callable[[str], object]
) -> dict[str, pl.DataType]:
    """Used columns of the first file, which are those of all."""
    first: dict[str, pl.DataType] = {}
    faults = []
    for at, file in enumerate(files):
        try:
            with reading(str(file)):
                schema = _scan([file], text=text).collect_schema()
        except TableError as error:
            faults.append(error)
            continue
        found = {name: dtype for name, dtype in schema.items() if rule_of(name) is not None}
        first = first or found
        if at and found != first:
            names = sorted(name for name in first.keys() | found.keys() if first.get(name) != found.get(name))
            want, got = (
                ", ".join(f"{name} {schema.get(name, 'missing')}" for name in names)
                for schema in (first, found)
            )
            faults.append(TableError(str(file), f"the schema of {files[0].name} ({want})", actual=got))
        elif text and list(found) != list(first):
            faults.append(
                TableError(str(file), f"the columns of {files[0].name} in its order", actual=str(list(found)))
            )
    raise_faults(faults)
    return first


def _hive_values(relative: Path) -> tuple[tuple[str, str], ...]:
    named = (part.partition("=") for part in relative.parent.parts if "=" in part)
    return tuple((key, unquote(value)) for key, _, value in named)


def _same_keys(groups: Sequence[tuple[tuple[str, str], ...]], where: str) -> None:
    keys = {tuple(key for key, _ in values) for values in groups}
    if len(keys) > 1:
        shown = " and ".join(sorted("/".join(f"{key}=.." for key in each) or "none" for each in keys))
        raise TableError(where, "the same hive folders above every part", actual=shown)


def _hive_column(key: str, value: str, groups: Sequence[tuple[tuple[str, str], ...]]) -> pl.Expr:
    every = [dict(values)[key] for values in groups]
    if all(text.lstrip("-").isdecimal() or text == _NULL for text in every):
        return pl.lit(None if value == _NULL else int(value), pl.Int64).alias(key)
    return pl.lit(None if value == _NULL else value, pl.String).alias(key)


def _unreadable(files: Sequence[Path]) -> list[TableError]:
    found = []
    for file in files:
        try:
            with reading(str(file)):
                _scan([file], text=file.suffix == ".csv").select(pl.all().is_null().any()).collect(
                    engine="streaming"
                )
        except TableError as error:
            found.append(error)
    return found


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
