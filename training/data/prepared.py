"""The prepared data folder: checked tables, the split in time, the profile vocabulary."""

import json
from dataclasses import dataclass
from pathlib import Path

from training.data.parquet import NAMES, read_table
from training.data.profile import ProfileVocabulary
from training.data.schema import LoadStats, Tables, make_tables
from training.data.split import TimeSplit

FILES = {"ads.parquet", "users.parquet", "events.parquet", "split.json", "profile.json", "stats.json"}


@dataclass(frozen=True)
class Prepared:
    """What `training.data.prepare` wrote: the checked tables, the split in time, the profile vocabulary."""

    tables: Tables
    split: TimeSplit
    profile: ProfileVocabulary


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
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected rows_read, rows_dropped, provenance, got {str(stats)[:120]}"
        ) from error
    ads, users, events = (read_table(folder / f"{name}.parquet") for name in NAMES)
    where = [str(folder / f"{name}.parquet") for name in NAMES]
    return Prepared(
        tables=make_tables(ads, users, events=events, stats=loaded, provenance=provenance, where=where),
        split=TimeSplit.load(folder / "split.json"),
        profile=ProfileVocabulary.load(folder / "profile.json"),
    )
