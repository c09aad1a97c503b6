"""Recommendation quality on a benchmark file: `make benchmark DATASET=beauty DATA_DIR=...`.

Leave the last one out, rank all items but those of the history (`benchmarks.quality.protocol`). The generator
of the preset, K = 0 and MTP in its decoder's place, and a SASRec that is trained here, three seeds each;
beside what others report. Whatever is there already is not made again: trainings go on where they stopped.

    python -m benchmarks.quality --dataset beauty --data-dir data/beauty --seeds 0 1 2

A model with an item level (`model.item`, as the preset has it) answers three times: by the SIDs of its beams,
by the items of these beams, and by all items. Answers of every model lie in OUT/DATASET/answers. To choose
settings, ask about the validation items: `--part validation`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality import generators
from benchmarks.quality.bench import Benchmark
from benchmarks.quality.files import ENDINGS
from benchmarks.quality.outside.compare import compare_to_outside
from benchmarks.quality.plot import plot
from benchmarks.quality.report import SASREC, not_measured, report_of, table
from benchmarks.report import stamp
from serving.files import write_file
from training.preset.preset import add_preset_arguments

QUICK_USERS = 2000


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make what is missing; the report of all that is there."""
    bench = Benchmark(arguments)
    for seed in arguments.seeds:
        for arm in generators.ARMS:
            if arm in arguments.rows:
                bench.generator(arm, seed)
        if SASREC in arguments.rows:
            bench.sasrec(seed)
    bench.simple(arguments.seeds[0])
    report = report_of(bench.cells, bench.asked, dataset=arguments.dataset, seeds=arguments.seeds)
    report["part"], report["quick"] = arguments.part, arguments.quick
    if arguments.part == "test":
        report |= compare_to_outside(
            bench.files.sequences,
            [bench.cells.path(name, seed) for name, row in report["rows"].items() for seed in row["seeds"]],
            report,
            python=arguments.judge,
        )
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_preset_arguments(parser, default="configs/benchmark.yaml")
    parser.add_argument("--dataset", required=True, help="name of files, report and published figures")
    parser.add_argument(
        "--data-dir", type=Path, help="folder with DATASET.txt, DATASET.titles.json, .. or .gz"
    )
    for kind, ending in ENDINGS.items():
        parser.add_argument(f"--{kind}", type=Path, help=f"file, instead of DATA_DIR/DATASET{ending}")
    parser.add_argument("--out", type=Path, default=Path("build/benchmark"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="[0 1 2]")
    trained = [*generators.ARMS, SASREC]
    parser.add_argument("--rows", nargs="*", choices=trained, default=trained, help="what is trained [all]")
    parser.add_argument(
        "--part", choices=("validation", "test"), default="test", help="which items are asked for [test]"
    )
    parser.add_argument("--users", type=int, default=10**7, help="users that are asked, at most [all]")
    parser.add_argument("--threads", type=int, default=2, help="of training [2]")
    parser.add_argument(
        "--judge",
        type=Path,
        default=Path(".venv-rectools/bin/python"),
        help="Python of requirements-rectools.txt [.venv-rectools/bin/python]",
    )
    parser.add_argument("--quick", action="store_true", help="one seed, little training: shows that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.users = arguments.seeds[:1], min(arguments.users, QUICK_USERS)
    torch.set_num_threads(arguments.threads)
    try:
        report = benchmark(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    name = arguments.run.name if arguments.part == "test" else f"{arguments.run.name}-{arguments.part}"
    path = arguments.out / f"{name}.json"
    write_file(path, json.dumps({**report, **stamp()}, indent=2) + "\n")
    write_file(path.with_suffix(".md"), table(report) + "\n")
    plot(report, path.with_suffix(".png"))
    print(table(report))
    if missing := not_measured(report):
        print(f"not measured: {', '.join(missing)}")
    print(f"report: {path}, {path.with_suffix('.md').name}, {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
