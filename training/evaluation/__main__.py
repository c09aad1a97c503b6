"""Ranking quality on a held-out part, by the beam search that serves: `make evaluate`.

A request's history is everything strictly before it, its targets are its ads. Of the whole catalogue compete
the ads that are active, created by then, and for that request (docs/audience.md). Baselines on the same
requests: global and recent popularity, the user's own most frequent ads, also weighted by recency, and
item-to-item co-occurrence.
"""

from __future__ import annotations

import argparse
import json

import torch

from serving.files import write_file
from serving.inputs import Inputs, is_up_to_date
from serving.search.rank import RANK_BY
from training.evaluation.inputs import inputs_of
from training.evaluation.ranking import evaluate
from training.loop.checkpoint import CheckpointError, load_checkpoint
from training.loop.choice import add_checkpoint_arguments, chosen_checkpoint, model_folder
from training.plots import plot_ranking, plot_reliability
from training.preset.preset import Preset, add_preset_arguments
from training.rollout.executor import TorchExecutor
from training.run import RunData

METRICS = ("recall", "ndcg", "value_recall")


def format_report(report: dict) -> str:
    """Every metric as a text table, and what it was measured on."""
    tables = {metric: report[metric] for metric in METRICS}
    for kind, of_kind in report.get("recall_of", {}).items():
        title = f"recall of {of_kind['targets']:,} {kind.replace('_', ' ')}"
        tables |= {title: of_kind["recall"]} if of_kind["recall"] else {}
    lines = []
    for title, methods in tables.items():
        cutoffs = list(next(iter(methods.values())))
        lines.append(f"{title:34}" + "".join(f"@{k}".rjust(10) for k in cutoffs))
        for method, values in methods.items():
            lines.append(f"  {method:32}" + "".join(f"{values[k]:10.4f}" for k in cutoffs))
    if "calibration" in report:
        lines.append(_calibration_line(report["calibration"]))
    if "audiences" in report:
        shares = report["audiences"]
        lines.append(
            f"{shares['ads']:.1%} of the ads have an audience; a request may be shown "
            f"{shares['eligible']:.1%} of those that are there"
        )
    left = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in report["left_out"].items())
    lines += [
        f"{report['requests']:,} {report['part']} requests, widths {report['widths']}, ranked by "
        f"{report['rank_by']}, seen ads {'left out' if report['exclude_seen'] else 'kept'}, "
        f"invalid rate {report['invalid_rate']:.4f}",
        f"left out: {left} (targets that could not be answers, requests that had no other)",
    ]
    return "\n".join(lines)


def _calibration_line(figures: dict) -> str:
    shown = f"expected value: {figures['predicted']:.3f} a target, realised {figures['realised']:.3f}"
    if figures["error"] is None:
        return shown
    worst = max(part["error"] for part in figures["by_decile"] if part["error"] is not None)
    return f"{shown}, error {figures['error']:.1%}, deciles to {worst:.1%} ({figures['targets']:,} targets)"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser)
    add_checkpoint_arguments(parser)
    parser.add_argument("--fresh", action="store_true", help="evaluate again, also where nothing changed")
    parser.add_argument("--part", choices=("validation", "test"), help="part to evaluate [evaluation.part]")
    parser.add_argument("--rank-by", choices=RANK_BY, help="p, or p x value [evaluation.rank_by]")
    parser.add_argument(
        "--exclude-seen",
        action=argparse.BooleanOptionalAction,
        help="whether ads of the history are left out [evaluation.exclude_seen]",
    )
    arguments = parser.parse_args()
    folder = model_folder(arguments)
    given = {name: getattr(arguments, name) for name in ("part", "rank_by", "exclude_seen")}
    overrides = [f"evaluation.{name}={value}" for name, value in given.items() if value is not None]
    try:
        preset = Preset.load(arguments.config, [*arguments.overrides, *overrides])
        torch.set_num_threads(preset.training.threads)
        path = chosen_checkpoint(arguments)
        part = preset.evaluation.part
        name = "evaluation" if part == "test" else f"evaluation-{part}"
        record, table = folder / f"{name}.inputs.json", folder / f"{name}.json"
        inputs = inputs_of(preset, arguments.run, checkpoint=path, before=Inputs.load(record))
        if is_up_to_date(record, inputs, outputs=[table], fresh=arguments.fresh):
            print(format_report(json.loads(table.read_text())))
            return
        checkpoint = load_checkpoint(path)
        data = RunData.load(arguments.run)
        data.check_tokenizer(checkpoint.spec)
        report = evaluate(
            TorchExecutor(checkpoint.model.eval()),
            data.dataset(checkpoint.spec),
            ads=data.prepared.tables.ads,
            config=preset.evaluation,
            level_sizes=checkpoint.spec.level_sizes,
            target_behaviors=preset.logs.target_behaviors,
            min_history=preset.training.min_history,
            value_table=checkpoint.spec.value_buckets.means,
            value_correction=checkpoint.spec.value_correction,
            model=checkpoint.model,
            serving=preset.serving,
        )
    except (CheckpointError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    report |= {"step": checkpoint.step, "provenance": data.prepared.tables.provenance}
    record.unlink(missing_ok=True)
    write_file(table, json.dumps(report, indent=2))
    inputs.save(record)
    plot_ranking(
        {m: report[m] for m in METRICS},
        folder / f"{name}.png",
        title=f"{report['requests']:,} {report['part']} requests, all ads that compete",
    )
    plot_reliability(report["calibration"]["by_decile"], folder / f"{name}-calibration.png")
    print(format_report(report))
    print(f"plots: {folder}/{name}.png, {folder}/{name}-calibration.png\n{report['provenance']}")


if __name__ == "__main__":
    main()
