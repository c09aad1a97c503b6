"""The prepared data folder: checked tables, their parts, the profile vocabulary."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from training.data.columns import Named
from training.data.files import NAMES, read_table
from training.data.keys import Keys
from training.data.log import EventLog
from training.data.parts import Parts
from training.data.profile import ProfileVocabulary
from training.data.schema import LoadStats, Tables, make_tables
from training.data.split import Split

FILES = {f"{name}.parquet" for name in NAMES} | {"split.json", "profile.json", "stats.json"}


@dataclass(frozen=True)
class Prepared:
    """What `training.data.prepare` wrote.

    Attributes:
        tables: the checked tables.
        split: where train, validation and test are cut.
        profile: categories of the profile columns.
        attribution_window_s: events of one user and ad so close together are one exposure.
        log: the events as arrays, with their exposures.
        parts: the part of each event and request of `log`.
    """

    tables: Tables
    split: Split
    profile: ProfileVocabulary
    attribution_window_s: int
    log: EventLog
    parts: Parts


def load_prepared(folder: Path) -> Prepared:
    """Read a folder that `training.data.prepare` wrote; the tables are checked again.

    Raises:
        TableError: a table is missing or broken.
        FileNotFoundError: split.json, profile.json or stats.json is missing.
        ValueError: one of them is not what `training.data.prepare` writes.
    """
    path = folder / "stats.json"
    stats = json.loads(path.read_text(encoding="utf-8"))
    try:
        loaded = LoadStats(rows_read=int(stats["rows_read"]), rows_dropped=dict(stats["rows_dropped"]))
        provenance = str(stats["provenance"])
        window = int(
            stats.get("attribution_window_s", 0)
        )  # a folder from before there was one joined nothing
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected rows_read, rows_dropped, provenance, got {str(stats)[:120]}"
        ) from error
    ads, users, events = (read_table(folder / f"{name}.parquet") for name in NAMES)
    where = [str(folder / f"{name}.parquet") for name in NAMES]
    tables = make_tables(
        ads,
        users,
        events=events,
        stats=loaded,
        provenance=provenance,
        where=where,
        named=Named.kept(ads, events),
    )
    tables = replace(tables, keys=Keys.load(folder))
    split = Split.load(folder / "split.json")
    log = EventLog.from_tables(tables, attribution_window_s=window)
    return Prepared(
        tables=tables,
        split=split,
        profile=ProfileVocabulary.load(folder / "profile.json"),
        attribution_window_s=window,
        log=log,
        parts=Parts.of(split, log),
    )
