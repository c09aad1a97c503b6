"""Ranking by value against ranking by probability: what it finds, and what it costs through Triton.

    python -m benchmarks.rank_by quality --runs build/demo               trained runs, one a seed
    python -m benchmarks.rank_by calibration --runs build/demo           of the expected value
    python -m benchmarks.rank_by latency --run build/demo                with bundle and index

Both orders are of the same beams, with the search of serving (cold start included). `value, all` is the order
by value with a value width of the last level's width: every beam that the search kept has a value then.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
from tqdm import tqdm

from benchmarks.report import stamp
from benchmarks.trained_demo import TrainedDemo
from examples.client import OUTPUTS, Catalogue, infer_inputs, requested_outputs
from export.render import render
from launcher.triton_server import TritonServer
from serving.backend.resolve import resolve
from serving.backend.settings import ServingConfig
from serving.model.current import read_current
from serving.search.cold_start import ColdStart
from serving.search.rank import RankBy
from serving.search.widths import WidthPlan
from training.evaluation.calibration import calibration, target_values
from training.preset.preset import Preset, add_preset_arguments

CUTOFFS = (10, 50)
WAYS: dict[str, tuple[RankBy, bool]] = {  # order, and whether all beams have a value
    "probability": ("probability", False),
    "value": ("value", False),
    "value, all": ("value", True),
}
PLAIN = "probability"


def found_by(arguments: argparse.Namespace, run: Path) -> dict[str, dict[str, np.ndarray]]:
    """For each way, `value@k` (of the targets found) and `recall@k` of every test request, float64 [R]."""
    demo = TrainedDemo.load(argparse.Namespace(**vars(arguments) | {"run": run}), graphs="onnx")
    width = demo.plan.value
    demo = replace(demo, plan=all_valued(demo.plan))
    lift = ColdStart(demo.seen, demo.spec.level_sizes, 1.0)
    figures: dict[str, dict[str, list[float]]] = {
        way: {f"{kind}@{k}": [] for kind in ("value", "recall") for k in CUTOFFS} for way in WAYS
    }
    for i in tqdm(range(len(demo.rows)), desc=run.name, mininterval=5.0):
        beams = demo.beams(int(demo.rows[i]), num_ads=max(CUTOFFS), cold_start=lift)
        for way, (rank_by, every) in WAYS.items():
            for k in CUTOFFS:
                values = beams.expected_value[0].copy()
                values[len(values) if every else max(width, k) :] = np.nan  # as a request for k ads has it
                ads = resolve(
                    demo.snapshot,
                    beams.sids[0],
                    scores=beams.scores[0],
                    expected_value=values,
                    num_ads=k,
                    exclude=np.zeros(0, np.int64),
                    rank_by=rank_by,
                ).ad_ids
                hit = np.isin(demo.targets[i], ads)
                figures[way][f"value@{k}"].append(float(demo.values[i][hit].sum()))
                figures[way][f"recall@{k}"].append(float(hit.mean()))
    return {way: {name: np.array(x) for name, x in row.items()} for way, row in figures.items()}


def calibrated(arguments: argparse.Namespace, run: Path) -> dict[str, Any]:
    """Calibration over the targets of all test requests, as the model says and as the run corrects it."""
    demo = TrainedDemo.load(argparse.Namespace(**vars(arguments) | {"run": run}), graphs="onnx")
    raw = target_values(
        demo.executor,
        demo.dataset,
        groups=demo.groups,
        rows=demo.rows,
        value_table=demo.spec.value_buckets.means,
        batch_size=16,
    )
    corrected = raw._replace(predicted=demo.spec.value_correction.of(raw.predicted).astype(np.float64))
    return {"uncorrected": calibration(raw), "corrected": calibration(corrected)}


def all_valued(plan: WidthPlan) -> WidthPlan:
    """The plan in which every beam of the last level has a value."""
    return WidthPlan(plan.sid, plan.sid[-1])


def gains(runs: list[dict[str, dict[str, np.ndarray]]]) -> dict[str, dict[str, Any]]:
    """Mean of every figure by way, and its ratio minus one to `PLAIN`, paired by request, with 95 %."""
    table: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        table[way] = {}
        for name in runs[0][way]:
            mine, theirs = (np.stack([run[w][name] for run in runs]) for w in (way, PLAIN))  # [seeds, R]
            table[way][name] = {
                "mean": float(mine.mean()),
                "by_seed": [float(a.mean() / b.mean() - 1) for a, b in zip(mine, theirs, strict=True)],
                "gain": float(mine.mean() / theirs.mean() - 1),
                "gain_95": ratio_interval(mine.mean(axis=0), theirs.mean(axis=0)),
            }
    return table


def ratio_interval(mine: np.ndarray, theirs: np.ndarray, *, seed: int = 0) -> list[float]:
    """95 % bootstrap interval of mean(mine) / mean(theirs) - 1 of paired figures [R]."""
    random, count = np.random.default_rng(seed), len(mine)
    drawn = [random.integers(0, count, count) for _ in range(2000)]
    ratios = [mine[rows].mean() / theirs[rows].mean() - 1 for rows in drawn]
    return [float(x) for x in np.percentile(ratios, [2.5, 97.5])]


def latency(run: Path, serving: ServingConfig, *, requests: int, num_ads: int) -> dict[str, Any]:
    """Milliseconds of lone requests through Triton by way, see `timed`."""
    plan = WidthPlan.parse(serving.widths, levels=len(read_current(run / "bundles").level_sizes))
    ways = {
        way: {"rank_by": rank_by, "widths": str(all_valued(plan) if every else plan)}
        for way, (rank_by, every) in WAYS.items()
    }
    config = serving.model_copy(update={"max_widths": str(all_valued(plan))})
    return timed(run, config, ways, requests=requests, num_ads=num_ads)


def timed(
    run: Path, serving: ServingConfig, ways: dict[str, dict[str, str]], *, requests: int, num_ads: int
) -> dict[str, Any]:
    """Milliseconds of lone requests through Triton with the parameters of each way, each way in turn.

    Widths are fixed, and nothing is cached. `ratio` is the median over rounds of a way's time to that of the
    first way in the same round.
    """
    catalogue = Catalogue.load(run)
    users = catalogue.users["user_id"].sample(min(50, catalogue.users.height), seed=0)
    asked = [infer_inputs(catalogue.request(user, num_ads=num_ads)) for user in users]
    fixed = serving.model_copy(update={"load_control": "fixed", "cache": "off"})
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    names, outputs = list(ways), requested_outputs(OUTPUTS)
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        render(run / "bundles", repository, index=run / "index", config=fixed)
        with TritonServer(repository) as server:
            client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
            for i in tqdm(range(-20, requests), desc="rounds", mininterval=5.0):
                first = i % len(names)
                for way in names[first:] + names[:first]:  # each is first as often
                    began = time.perf_counter()
                    client.infer("gr4ad", asked[i % len(asked)], outputs=outputs, parameters=ways[way])
                    if i >= 0:
                        seconds[way].append(time.perf_counter() - began)
            client.close()
    plain = np.array(seconds[names[0]])
    return {
        way: {
            "p50_ms": float(np.median(seconds[way]) * 1e3),
            "p95_ms": float(np.percentile(seconds[way], 95) * 1e3),
            "ratio": float(np.median(np.array(seconds[way]) / plain)),
            "ratio_95": median_interval(np.array(seconds[way]) / plain),
        }
        for way in ways
    }


def median_interval(values: np.ndarray, *, seed: int = 0) -> list[float]:
    """95 % bootstrap interval of a median."""
    random, count = np.random.default_rng(seed), len(values)
    medians = [np.median(values[random.integers(0, count, count)]) for _ in range(2000)]
    return [float(x) for x in np.percentile(medians, [2.5, 97.5])]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser, default="configs/demo.yaml")
    commands = parser.add_subparsers(dest="command", required=True)
    quality = commands.add_parser("quality", help="value and recall of the test requests")
    calibrating = commands.add_parser("calibration", help="expected value against realised value")
    for command in (quality, calibrating):
        quality_arguments(command)
    timing = commands.add_parser("latency", help="lone requests through Triton")
    latency_arguments(timing)
    for command in (quality, calibrating, timing):
        command.add_argument("--out", type=Path, help="report [build/bench/rank_by_COMMAND.json]")
    arguments = parser.parse_args()
    if arguments.command == "quality":
        table = gains([found_by(arguments, run) for run in arguments.runs])
    elif arguments.command == "calibration":
        table = {run.name: calibrated(arguments, run) for run in arguments.runs}
    else:
        serving = Preset.load(arguments.config, arguments.overrides).serving
        table = latency(arguments.run, serving, requests=arguments.requests, num_ads=arguments.num_ads)
    report(arguments, "rank_by", table)


def quality_arguments(parser: argparse.ArgumentParser) -> None:
    """Of a command over the test requests of trained runs."""
    parser.add_argument("--runs", nargs="+", type=Path, default=[Path("build/demo")], help="[build/demo]")
    parser.add_argument("--requests", type=int, default=1500, help="test requests [1500]")
    parser.add_argument("--widths", help="width plan (default: the preset's)")
    parser.add_argument("--threads", type=int, default=1)


def latency_arguments(parser: argparse.ArgumentParser) -> None:
    """Of a command that calls `timed`."""
    parser.add_argument("--run", type=Path, default=Path("build/demo"), help="[build/demo]")
    parser.add_argument("--requests", type=int, default=500, help="of each way [500]")
    parser.add_argument("--num-ads", type=int, default=10)


def report(arguments: argparse.Namespace, name: str, figures: dict[str, Any]) -> None:
    """Write and print what a command found."""
    path = arguments.out or Path(f"build/bench/{name}_{arguments.command}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**stamp(), "requests": arguments.requests, "figures": figures}
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    print(f"report: {path}")


if __name__ == "__main__":
    main()
