"""Ranking quality on the test weeks, by the beam search that serves: `make evaluate`.

A request is a basket of the test weeks: its history is everything strictly before it, its targets are its
ads. The whole catalogue is searched. Baselines on the same requests: global popularity (counts of the
training weeks) and the user's own most frequent ads (filled up with popular ones).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from serving.files import write_file
from serving.inputs import Inputs, is_up_to_date
from training.evaluation.inputs import RECORD, inputs_of
from training.evaluation.ranking import evaluate
from training.loop.checkpoint import CheckpointError, load_checkpoint
from training.loop.retention import find_checkpoint
from training.plots import plot_ranking
from training.preset.preset import Preset, add_preset_arguments
from training.rollout.executor import TorchExecutor
from training.run import RunData


def format_report(report: dict) -> str:
    """The figures as a text table."""
    cutoffs = list(next(iter(report["recall"].values())))
    header = f"{'':22}" + "".join(f"{m}@{k}".rjust(15) for m in ("recall", "ndcg") for k in cutoffs)
    lines = [header]
    for method in report["recall"]:
        cells = [report[m][method][k] for m in ("recall", "ndcg") for k in cutoffs]
        lines.append(f"{method:22}" + "".join(f"{c:15.4f}" for c in cells))
    lines.append(
        f"{report['requests']:,} test requests, widths {report['widths']}, "
        f"invalid rate {report['invalid_rate']:.4f}"
    )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser)
    parser.add_argument(
        "--run", required=True, type=Path, help="run folder with data/, tokenizer/ and model/"
    )
    parser.add_argument("--model", type=Path, help="folder with checkpoints/ (default: RUN/model)")
    parser.add_argument(
        "--checkpoint", default="latest", help="latest, best (by validation) or a name: step-000400 [latest]"
    )
    parser.add_argument("--fresh", action="store_true", help="evaluate again, also where nothing changed")
    arguments = parser.parse_args()
    folder = arguments.model or arguments.run / "model"
    try:
        preset = Preset.load(arguments.config, arguments.overrides)
        torch.set_num_threads(preset.training.threads)
        path = find_checkpoint(folder, arguments.checkpoint)
        record, table = folder / RECORD, folder / "evaluation.json"
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
            config=preset.evaluation,
            level_sizes=checkpoint.spec.level_sizes,
            target_behaviors=preset.logs.target_behaviors,
            min_history=preset.training.min_history,
            value_table=checkpoint.spec.value_buckets.means,
        )
    except (CheckpointError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    report |= {"step": checkpoint.step, "provenance": data.prepared.tables.provenance}
    record.unlink(missing_ok=True)
    write_file(table, json.dumps(report, indent=2))
    inputs.save(record)
    plot_ranking(
        {m: report[m] for m in ("recall", "ndcg", "value_recall")},
        folder / "evaluation.png",
        title=f"{report['requests']:,} test requests, whole catalogue",
    )
    print(format_report(report))
    print(f"plot: {folder}/evaluation.png\n{report['provenance']}")


if __name__ == "__main__":
    main()
