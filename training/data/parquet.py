"""Source `parquet`: the user's own tables, Parquet or CSV."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import polars as pl

from training.data.casts import cast_table, integer_columns
from training.data.checks import TableError, raise_faults
from training.data.columns import IDS, Named
from training.data.files import NAMES, RawTable, open_table, reading
from training.data.keys import Keys
from training.data.schema import LoadStats, Unchecked, check_tables, complete_events
from training.data.source import Source
from training.preset.data import DataConfig

_OWN_IDS = {"ads": "ad_id", "users": "user_id"}
_PROVENANCES = 5  # that the sentence names


def open_parquet(config: DataConfig) -> Source:
    """Open ads, users and events below `config.path`, cast what can be cast without loss, and check it.

    Nothing is repaired or dropped here: a bad row of the user's own logs is the user's to decide on. The
    events are read in batches, and never held whole.

    Raises:
        TableError: a table is missing or damaged; with it all other faults, in one report.
    """
    if config.path is None:
        raise ValueError("path: expected a folder with ads, users and events, got nothing")
    folder, faults, lines = Path(config.path), list[TableError](), list[str]()
    raw, tables = dict[str, RawTable](), dict[str, Unchecked]()
    named = Named(profile=config.profile_columns)
    rules = {name: partial(named.rule, name) for name in NAMES}
    for name in NAMES:
        with _kept(faults):
            raw[name] = open_table(folder, name, rule_of=rules[name])
    with _kept(faults), reading(str(folder), [file for table in raw.values() for file in table.files]):
        whole = _integers(raw, [*IDS, *named.request])
        for name, table in raw.items():
            used = {column: rule.kind for column in table.schema if (rule := rules[name](column)) is not None}
            cast = cast_table(table, used, integers=whole)
            faults += cast.faults
            lines += [*cast.lines, *_unused(table, used)]
            tables[name] = Unchecked(
                cast.frame,
                table.where,
                place=table.place,
                unusable=cast.unusable,
                source_columns=tuple(table.schema),
            )
        faults += check_tables(
            tables.get("ads"),
            tables.get("users"),
            events=tables.get("events"),
            named=named,
        )
    keys = Keys()
    if not faults:
        ads, users = (tables[name].frame.select(column).collect() for name, column in _OWN_IDS.items())
        with _kept(faults):
            keys = Keys.of(ads, users, where=(tables["ads"].where, tables["users"].where))
    if len(tables) < len(NAMES):
        raise_faults(faults)
    events = tables["events"]
    return Source(
        named=named,
        ads=tables["ads"].frame,
        users=tables["users"].frame,
        events=complete_events(events.frame, named),
        stats=LoadStats(rows_read=0 if faults else events.frame.select(pl.len()).collect().item()),
        provenance="" if faults else _provenance(folder, events.frame),
        faults=tuple(faults),
        lines=tuple(lines),
        keys=keys,
        where=events.where,
        place=events.place,
    )


@contextmanager
def _kept(faults: list[TableError]) -> Iterator[None]:
    try:
        yield
    except TableError as error:
        faults += error.faults


def _integers(raw: Mapping[str, RawTable], names: Sequence[str]) -> set[str]:
    """Columns of these that hold integers in all tables that have them, though some are text."""
    found = [integer_columns(table, names) for table in raw.values()]
    return {name for name in names if all(whole.get(name, True) for whole in found)}


def _unused(table: RawTable, used: Mapping[str, str]) -> list[str]:
    names = [name for name in table.schema if name not in used]
    return [f"{table.where}: columns that are not used: {', '.join(names)}"] if names else []


def _provenance(folder: Path, events: pl.LazyFrame) -> str:
    column = complete_events(events).select("provenance").unique()
    names = column.collect(engine="streaming")["provenance"].sort().to_list()
    more = f" and {len(names) - _PROVENANCES} more" if len(names) > _PROVENANCES else ""
    said = ", ".join(names[:_PROVENANCES]) + more
    return f"The user's own tables in {folder}; provenance column of its events: {said}."
