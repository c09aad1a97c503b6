"""The reward model: `python -m training.reward --config .. --run ..` fits it, `score --lists NAME` uses it.

What is fitted lies in RUN/reward/: weights, reward.json (how good it is) and reward.png. `score` writes the
rewards of stored lists beside them, shard by shard, and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from serving.inputs import RECORD, Inputs, is_up_to_date, named
from serving.ranking.features import feature_set
from training.data.list_about import ABOUT
from training.data.list_store import StoredLists
from training.plots import plot_rankers
from training.preset.preset import Preset, add_preset_arguments
from training.reward.fit import Source, fit_reward
from training.reward.reward_model import FORMAT, MODEL, RewardError, RewardModel
from training.reward.score import score_lists, speed
from training.run import RunData
from training.tokenizer.storage import read_folder

REPORT = "reward.json"
_DATA = ("ads.parquet", "events.parquet", "users.parquet", "split.json", "profile.json")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=("fit", "score"), default="fit", help="[fit]")
    add_preset_arguments(parser)
    parser.add_argument("--run", required=True, type=Path, help="run folder with data/ and tokenizer/")
    parser.add_argument("--lists", help="score: name of the stored lists, a folder in RUN/lists")
    parser.add_argument("--fresh", action="store_true", help="fit again, also where nothing changed")
    arguments = parser.parse_args()
    if arguments.command == "score" and not arguments.lists:
        parser.error("score: expected --lists NAME")
    try:
        preset = Preset.load(arguments.config, arguments.overrides)
        torch.set_num_threads(preset.reward.threads)
        if arguments.command == "score":
            _score(preset, arguments.run, arguments.lists)
        else:
            _fit(preset, arguments.run, fresh=arguments.fresh)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt as stop:
        raise SystemExit("\nstopped") from stop


def format_report(report: dict[str, Any]) -> str:
    """The figures of validation and test as a text table."""
    lines = [
        f"{'':20}{'AUC':>8}{'a request':>11}{'log loss':>10}{'base':>9}{'p error':>9}{'deciles':>9}"
        f"{'value':>8}{'reward':>8}"
    ]
    for part in ("validation", "test"):
        for kind, of in report[part].items():
            lines.append(
                f"{part + ', ' + kind:20}{of['auc']:8.4f}{of['auc_by_request']:11.4f}{of['log_loss']:10.5f}"
                f"{of['base_log_loss']:9.5f}{of['p']['error']:+9.1%}{of['p']['mean_error']:9.1%}"
                f"{of['value']['error']:+8.1%}{of['reward']['error']:+8.1%}"
            )
    rows = ", ".join(
        f"{part} {of['requests']:,} requests ({of['rows']:,} candidates, {of['outcomes']:,} outcomes)"
        for part, of in report["rows"].items()
    )
    cpu = ", ".join(f"{name} {seconds:.0f}" for name, seconds in report["cpu_seconds"].items())
    return "\n".join(
        [
            *lines,
            f"{report['rows_from']}: {rows}",
            f"CPU seconds: {cpu}; {report['ms_512']:.1f} ms for 512 candidates of a request",
            f"serves: {report['serves']}; lowest log loss on validation: {report['best_by_validation']}",
        ]
    )


def _fit(preset: Preset, run: Path, *, fresh: bool) -> None:
    folder = run / "reward"
    lists = tuple(StoredLists.open(run / "lists" / name) for name in preset.reward.lists)
    stats = json.loads((run / "data" / "stats.json").read_text())
    values = {
        **named("reward", preset.reward.model_dump(mode="json")),
        "tokenizer": read_folder(run / "tokenizer")[0],
        "data.target_behaviors": preset.logs.target_behaviors,
        "training.min_history": preset.training.min_history,
        "features": preset.features.model_dump(mode="json"),
        "data.attribution_window": stats.get("attribution_window_s", 0),
        "data.request_features": [asdict(feature) for feature in preset.request_features],
        "features of this release": feature_set(()),
        "format": FORMAT,
    }
    files = {f"data/{file}": run / "data" / file for file in _DATA}
    files |= {f"lists/{of.folder.name}": of.folder / ABOUT for of in lists}
    files["sids"] = run / "tokenizer" / "sids.parquet"
    inputs = Inputs.now(values, files=files, before=Inputs.load(folder / RECORD))
    if is_up_to_date(folder / RECORD, inputs, outputs=[folder / REPORT, folder / MODEL], fresh=fresh):
        print(format_report(json.loads((folder / REPORT).read_text())))
        return
    data = RunData.load(run)
    for of in lists:
        of.check(tokenizer_id=data.tokenizer_id)
    source = Source(
        dataset=data.dataset(data.fit_spec(preset)),
        ads=data.prepared.tables.ads,
        tokenizer_id=data.tokenizer_id,
        target_behaviors=preset.logs.target_behaviors,
        min_history=preset.training.min_history,
        lists=lists,
        made_from=inputs.values,
    )
    model, report = fit_reward(source, preset.reward)
    report["ms_512"] = speed(model, source)
    report["provenance"] = data.prepared.tables.provenance
    model.save(folder, {REPORT: json.dumps(report, indent=1) + "\n"})
    requests = report["rows"]["test"]["requests"]
    title = f"{requests:,} test requests, judged on {report['rows_from']}"
    plot_rankers(report["test"], folder / "reward.png", title=title)
    inputs.save(folder / RECORD)
    print(format_report(report))
    print(f"reward model {model.id}: {folder}\n{report['provenance']}")


def _score(preset: Preset, run: Path, name: str) -> None:
    model, lists = RewardModel.load(run / "reward"), StoredLists.open(run / "lists" / name)
    lists.check(tokenizer_id=model.about.tokenizer_id)
    data = RunData.load(run)
    if data.tokenizer_id != model.about.tokenizer_id:
        raise RewardError(
            f"{run / 'tokenizer'}: expected tokenizer {model.about.tokenizer_id} (the reward model's), got "
            f"{data.tokenizer_id}: make reward"
        )
    writer = score_lists(model, lists, data.dataset(data.fit_spec(preset)))
    print(f"{writer.folder}: rewards of {len(lists):,} lists")


if __name__ == "__main__":
    main()
