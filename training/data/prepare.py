"""Read a source, check it, split it, and write the prepared data folder.

python -m training.data.prepare --config configs/demo.yaml --out build/demo/data
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from serving.files import new_folder
from serving.inputs import RECORD, Inputs, is_up_to_date, named
from training.data.blocks import Blocks, write_blocks
from training.data.checks import raise_faults
from training.data.columns import SPLIT_COLUMN
from training.data.completejourney import load_completejourney
from training.data.event_order import KEY
from training.data.exportable import check_exportable
from training.data.files import NAMES, reading
from training.data.keys import FOLDER
from training.data.parquet import open_parquet
from training.data.parts import cut, parts_of, with_parts
from training.data.prepared import FILES
from training.data.profile import ProfileVocabulary
from training.data.report import LogCounts, leak_warning
from training.data.sanity import check_parts, check_targets, far_times
from training.data.schema import complete_ads, complete_users
from training.data.source import Source
from training.data.source_files import source_files
from training.data.split import Split
from training.preset.data import DataConfig
from training.preset.preset import Preset, add_preset_arguments
from training.preset.recipes import TrainingConfig
from training.workers import Here, OnRay, Workers

_BLOCK = 2_000_000  # events in memory at once, about: bounds the memory, not the result
_LOADERS = {
    "completejourney": lambda config: Source.of(load_completejourney(config)),
    "parquet": open_parquet,
}


@dataclass(frozen=True)
class Report:
    """What `make data` says.

    Attributes:
        lines: about the log.
        warnings: what looks wrong with it.
    """

    lines: tuple[str, ...]
    warnings: tuple[str, ...]


def prepare(
    config: DataConfig,
    out: Path,
    *,
    rules: TrainingConfig | None = None,
    check: Callable[[pl.DataFrame], None] | None = None,
    workers: Workers | None = None,
) -> Report:
    """Load the source of `config` and write tables, keys, split.json, profile.json and stats.json into `out`.

    Written to a folder beside `out` and renamed at the end, so `out` is complete or absent, never half
    written. The events are read in batches and divided by user: a log need not fit in memory.

    Args:
        config: section `data` of a preset.
        out: folder to write.
        rules: which requests training drops, for the report; None for the defaults.
        check: of the checked ads; what it raises keeps `out` as it was.
        workers: who divides and sorts the events; None for this process.

    Raises:
        TableError: the source breaks a schema; all faults in one report.
        ValueError: the log is too short for the split, or leaves a part without a request.
        FileNotFoundError: the source is not there.
        FileExistsError: `out` exists and holds something this function did not write, or is the source
            itself.
    """
    _check_replaceable(out, config.path)
    source = _LOADERS[config.source](config)
    with new_folder(out, replace=True) as new:
        blocks = _checked_blocks(source, new / "blocks", workers=workers or Here())
        users = complete_users(source.users.collect(), source.named)
        users.write_parquet(new / "users.parquet")
        ProfileVocabulary.fit(users).save(new / "profile.json")
        ads = complete_ads(source.ads.collect(), source.named)
        if check is not None:
            check(ads)
        ads.write_parquet(new / "ads.parquet")
        source.keys.save(new)
        behaviors = _behaviors(blocks)
        check_targets(behaviors, target_behaviors=config.target_behaviors)
        split, counts = _cut(blocks, config, rules=rules or TrainingConfig())
        far = far_times(blocks.scan())
        check_parts(counts.targets, target_behaviors=config.target_behaviors, far=far)
        split.save(new / "split.json")
        # What is not cut by time is said by a column, whichever way it came about.
        events = blocks.scan() if split.by == "column" else blocks.scan().drop(SPLIT_COLUMN, strict=False)
        events.sink_parquet(new / "events.parquet")
        shutil.rmtree(new / "blocks")
        stats = {
            "source": config.source,
            "rows_read": source.stats.rows_read,
            "rows_dropped": dict(source.stats.rows_dropped),
            **{"ads": ads.height, "users": users.height, "events": sum(behaviors.values())},
            "attribution_window_s": config.attribution_window,
            "provenance": source.provenance,
        }
        (new / "stats.json").write_text(json.dumps(stats, indent=2) + "\n", encoding="utf-8")
    leak = leak_warning(counts.leak(), attribution_window_s=config.attribution_window)
    return Report(
        lines=(
            *source.lines,
            *_summary(stats, behaviors),
            *filter(None, [source.keys.summary()]),
            *counts.lines(),
            source.provenance,
        ),
        warnings=tuple(warning for warning in (far, leak) if warning),
    )


def _inputs(config: DataConfig, record: Path) -> Inputs:
    """What the folder is made from. Where the source lies is no part of it, what it holds is."""
    values = named("data", config.model_dump(mode="json", exclude={"path"}))
    return Inputs.now(values, files=source_files(config), before=Inputs.load(record))


def _checked_blocks(source: Source, folder: Path, *, workers: Workers) -> Blocks:
    """The events divided by user, once there is nothing wrong with any table."""
    if {fault.column for fault in source.faults} & set(KEY):
        raise_faults(source.faults)
    with reading(source.where):
        blocks = write_blocks(
            source.events, folder, where=source.where, place=source.place, rows=_BLOCK, workers=workers
        )
    raise_faults([*source.faults, *blocks.repeats])
    return blocks


def _behaviors(blocks: Blocks) -> dict[str, int]:
    """Events of each behavior, the most frequent first."""
    counts = blocks.scan().group_by("behavior").len().collect(engine="streaming")
    return dict(counts.sort("len", descending=True).rows())


def _cut(blocks: Blocks, config: DataConfig, *, rules: TrainingConfig) -> tuple[Split, LogCounts]:
    """Cut the log, count what lies where, and name the parts in the events where no time says them."""
    targets, window = config.target_behaviors, config.attribution_window
    time = pl.col("timestamp")
    span = blocks.scan().select(time.min(), time.max().alias("last")).collect(engine="streaming").row(0)
    logs = (log for _, _, log in blocks.logs(attribution_window_s=window))
    split = cut(config.split, logs, span=span, target_behaviors=targets)
    counts = LogCounts(split, target_behaviors=targets, rules=rules)
    for file, events, log in blocks.logs(attribution_window_s=window):
        parts = parts_of(config.split, split, log=log, target_behaviors=targets)
        counts.add(log, parts)
        if split.by == "column":
            with_parts(events.drop(SPLIT_COLUMN, strict=False), parts).write_parquet(file, compression="lz4")
    return split, counts


def _check_replaceable(out: Path, source: str | None) -> None:
    if not out.exists():
        return
    if source is not None and out.resolve() == Path(source).resolve():
        raise FileExistsError(f"{out}: expected a folder other than the source, got the source")
    names = {path.name for path in out.iterdir()} - {RECORD} if out.is_dir() else {out.name}
    # stats.json marks a folder as ours: a folder of somebody's tables has the other names too.
    if names and not ("stats.json" in names and names <= FILES | {FOLDER}):
        found = ", ".join(sorted(names)[:8])
        raise FileExistsError(f"{out}: expected nothing, or a prepared data folder to replace, got {found}")


def _summary(stats: Mapping[str, Any], behaviors: Mapping[str, int]) -> list[str]:
    rows = [("rows read", stats["rows_read"])]
    rows += [(f"- {reason}", count) for reason, count in stats["rows_dropped"].items()]
    rows += [(name, stats[name]) for name in NAMES]
    rows += [(f"  {behavior}", count) for behavior, count in behaviors.items()]
    width = max(len(label) for label, _ in rows)
    return [f"{label:<{width}}  {count:>12,}" for label, count in rows]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="training.data.prepare", description="Read, check and split the logs."
    )
    add_preset_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--fresh", action="store_true", help="read the source again, changed or not")
    parser.add_argument("--ray", action="store_true", help="divide and sort the events on Ray")
    options = parser.parse_args(arguments)
    record = options.out / RECORD
    try:
        preset = Preset.load(options.config, options.overrides)
        inputs = _inputs(preset.logs, record)
        outputs = [options.out / name for name in FILES]
        if is_up_to_date(record, inputs, outputs=outputs, fresh=options.fresh):
            return 0
        workers = OnRay() if options.ray else Here()
        # A new folder: the record of the old one goes with it.
        report = prepare(
            preset.logs,
            options.out,
            rules=preset.training,
            check=lambda ads: check_exportable(preset, ads),
            workers=workers,
        )
        inputs.save(record)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(report.lines))
    for warning in (*report.warnings, *preset.warnings()):
        print(f"warning: {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
