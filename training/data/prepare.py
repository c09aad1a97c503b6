"""Read a source, check it, split it, and write the prepared data folder.

python -m training.data.prepare --config configs/demo.yaml --out build/demo/data
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from serving.files import new_folder
from serving.inputs import RECORD, Inputs, is_up_to_date, named
from training.data.completejourney import load_completejourney
from training.data.log import EventLog
from training.data.parquet import NAMES, load_parquet
from training.data.parts import cut, with_parts
from training.data.prepared import FILES, Prepared
from training.data.profile import ProfileVocabulary
from training.data.report import report, warnings
from training.data.sanity import check_parts, check_targets
from training.data.schema import SPLIT_COLUMN, Tables
from training.data.source_files import source_files
from training.preset.data import DataConfig
from training.preset.preset import Preset, add_preset_arguments

_LOADERS = {"completejourney": load_completejourney, "parquet": load_parquet}


def prepare(config: DataConfig, out: Path) -> Prepared:
    """Load the source of `config` and write the tables, split.json, profile.json and stats.json into `out`.

    Written to a folder beside `out` and renamed at the end, so `out` is complete or absent, never half
    written.

    Raises:
        TableError: the source breaks a schema.
        ValueError: the log is too short for the split, or leaves a part without a request.
        FileNotFoundError: the source is not there.
        FileExistsError: `out` exists and holds something this function did not write, or is the source
            itself.
    """
    _check_replaceable(out, config.path)
    prepared = _prepared(config, _LOADERS[config.source](config))
    tables = prepared.tables
    stats = {
        "source": config.source,
        "rows_read": tables.stats.rows_read,
        "rows_dropped": dict(tables.stats.rows_dropped),
        **{name: getattr(tables, name).height for name in NAMES},
        "attribution_window_s": prepared.attribution_window_s,
        "provenance": tables.provenance,
    }
    with new_folder(out, replace=True) as new:
        for name in NAMES:
            getattr(tables, name).write_parquet(new / f"{name}.parquet")
        prepared.split.save(new / "split.json")
        prepared.profile.save(new / "profile.json")
        (new / "stats.json").write_text(json.dumps(stats, indent=2) + "\n", encoding="utf-8")
    return prepared


def _inputs(config: DataConfig, record: Path) -> Inputs:
    """What the folder is made from. Where the source lies is no part of it, what it holds is."""
    values = named("data", config.model_dump(mode="json", exclude={"path"}))
    return Inputs.now(values, files=source_files(config), before=Inputs.load(record))


def _prepared(config: DataConfig, tables: Tables) -> Prepared:
    log = EventLog.from_tables(tables, attribution_window_s=config.attribution_window)
    check_targets(log, target_behaviors=config.target_behaviors)
    split, parts = cut(config.split, log, target_behaviors=config.target_behaviors)
    check_parts(log, parts, target_behaviors=config.target_behaviors)
    # What is not cut by time is said by a column, whichever way it came about.
    events = tables.events.drop(SPLIT_COLUMN, strict=False)
    events = with_parts(events, parts) if split.by == "column" else events
    return Prepared(
        tables=replace(tables, events=events),
        split=split,
        profile=ProfileVocabulary.fit(tables.users),
        attribution_window_s=config.attribution_window,
        log=log,
        parts=parts,
    )


def _check_replaceable(out: Path, source: str | None) -> None:
    if not out.exists():
        return
    if source is not None and out.resolve() == Path(source).resolve():
        raise FileExistsError(f"{out}: expected a folder other than the source, got the source")
    names = {path.name for path in out.iterdir()} - {RECORD} if out.is_dir() else {out.name}
    # stats.json marks a folder as ours: a folder of somebody's tables has the other names too.
    if names and not ("stats.json" in names and names <= FILES):
        found = ", ".join(sorted(names)[:8])
        raise FileExistsError(f"{out}: expected nothing, or a prepared data folder to replace, got {found}")


def _summary(tables: Tables) -> str:
    rows = [("rows read", tables.stats.rows_read)]
    rows += [(f"- {reason}", count) for reason, count in tables.stats.rows_dropped.items()]
    rows += [(name, getattr(tables, name).height) for name in NAMES]
    counts = tables.events["behavior"].value_counts(sort=True).rows()
    rows += [(f"  {behavior}", count) for behavior, count in counts]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {count:>12,}" for label, count in rows)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="training.data.prepare", description="Read, check and split the logs."
    )
    add_preset_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--fresh", action="store_true", help="read the source again, changed or not")
    options = parser.parse_args(arguments)
    record = options.out / RECORD
    try:
        preset = Preset.load(options.config, options.overrides)
        inputs = _inputs(preset.logs, record)
        if is_up_to_date(record, inputs, outputs=[options.out / name for name in FILES], fresh=options.fresh):
            return 0
        prepared = prepare(preset.logs, options.out)  # a new folder: the record of the old one went with it
        inputs.save(record)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    targets = preset.logs.target_behaviors
    print(_summary(prepared.tables))
    print("\n".join(report(prepared, target_behaviors=targets, rules=preset.training)))
    print(prepared.tables.provenance)
    for warning in (*warnings(prepared, target_behaviors=targets), *preset.warnings()):
        print(f"warning: {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
