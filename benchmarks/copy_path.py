"""A copy path beside the same model without one: what it finds, of repeats and of new ads, and what it costs.

    python -m benchmarks.copy_path quality --without build/seed0 .. --with build/copy0 ..
    python -m benchmarks.copy_path latency --without build/seed0 --with build/copy0

Runs (`data/`, `tokenizer/`, `model/`) in pairs, one a seed, each pair of one tokenizer. Quality is that of
`make evaluate`, with intervals over its requests. Latency is CPU time in this process from a raw history to
the beams of ten ads, pruned as `serving.prune` says, request by request in turn, in ONNX Runtime; intervals
are over requests.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rank_by import median_interval, ratio_interval, report
from export.graphs import export_graphs
from serving.backend.request import request_features
from serving.engines.ort import OrtExecutor
from serving.index.snapshot import IndexSnapshot
from serving.model.features import fill_slots
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from training.evaluation.ranking import rank_by_all
from training.evaluation.requests import Requests, draw_requests
from training.evaluation.targets import target_masks
from training.loop.retention import open_checkpoint
from training.preset.preset import Preset, add_preset_arguments
from training.rollout.executor import TorchExecutor
from training.run import RunData

ARMS = ("without", "with")
BASELINES = ("popularity", "personal_frequency", "recent_frequency")
LEAST_HITS = 20  # requests with one, below which a ratio says nothing
Figures = dict[str, np.ndarray]
"""Name -> float64 [R] of requests: their recall@k, and sums of value@k and new@k, see `found_by`."""


def found_by(ranked: list[np.ndarray], requests: Requests, new: list[np.ndarray], *, ks: tuple) -> Figures:
    """Of each request recall@k, value found at k, and targets new to the user found at k."""
    figures: dict[str, list[float]] = {}
    for ads, targets, values, of_new in zip(ranked, requests.targets, requests.values, new, strict=True):
        for k in ks:
            hit = np.isin(targets, ads[:k])
            of_request = {"recall": hit.mean(), "value": values[hit].sum(), "new": hit[of_new].sum()}
            for name, figure in of_request.items():
                figures.setdefault(f"{name}@{k}", []).append(float(figure))
    return {name: np.array(x) for name, x in figures.items()}


def quality(runs: dict[str, Path], preset: Preset) -> tuple[dict[str, Figures], dict[str, float]]:
    """Figures of both arms of one seed and of the baselines; targets that are new, and value of all."""
    found, totals = {}, {}
    for arm, run in runs.items():
        data, checkpoint = RunData.load(run), open_checkpoint(run / "model")
        dataset, spec = data.dataset(checkpoint.spec), checkpoint.spec
        rankings = rank_by_all(
            TorchExecutor(checkpoint.model.eval()),
            dataset,
            ads=data.prepared.tables.ads,
            config=preset.evaluation,
            level_sizes=spec.level_sizes,
            target_behaviors=preset.logs.target_behaviors,
            min_history=preset.training.min_history,
            value_table=spec.value_buckets.means,
            serving=preset.serving,
        )
        requests = rankings.requests
        new = target_masks(dataset, requests)["new_to_user"]
        for name, method in {arm: "model", **{name: name for name in BASELINES}}.items():
            found[name] = found_by(rankings.ranked[method], requests, new, ks=preset.evaluation.cutoffs)
        totals = {"new": float(sum(map(np.sum, new))), "value": float(sum(map(np.sum, requests.values)))}
    return found, totals


def compared(runs: list[dict[str, Figures]], totals: dict[str, float]) -> dict[str, Any]:
    """Means of every figure; the arm with a copy path beside every other, paired by request, with 95 %."""
    table: dict[str, Any] = {}
    for name in runs[0]["with"]:
        kind = name.split("@")[0]
        means = {m: np.mean([run[m][name] for run in runs], axis=0) for m in runs[0]}  # [R]
        beside = {m: x for m, x in means.items() if m != "with" and np.count_nonzero(x) >= LEAST_HITS}
        scale = len(means["with"]) / totals[kind] if kind in totals else 1.0
        table[name] = {
            "mean": {m: float(x.mean() * scale) for m, x in means.items()},
            "by_seed": {m: [float(run[m][name].mean() * scale) for run in runs] for m in ARMS},
            "ratio": {m: float(means["with"].mean() / x.mean()) for m, x in beside.items()},
            "ratio_95": {m: [1 + x for x in ratio_interval(means["with"], x)] for m, x in beside.items()},
        }
    return table


def latency(runs: dict[str, Path], preset: Preset, *, requests: int) -> dict[str, Any]:
    """Milliseconds of CPU time a request, and the ratio to the first arm, of the same request in turn."""
    plan = WidthPlan.parse(preset.serving.widths, levels=preset.tokenizer.levels)
    arms, dataset = {}, None
    with tempfile.TemporaryDirectory() as folder:
        for arm, run in runs.items():
            checkpoint = open_checkpoint(run / "model")
            (Path(folder) / arm).mkdir()
            export_graphs(checkpoint.model.eval(), Path(folder) / arm)
            levels = len(checkpoint.spec.level_sizes)
            arms[arm] = checkpoint.spec, OrtExecutor(Path(folder) / arm, levels=levels, threads=1)
            dataset = dataset or RunData.load(run).dataset(checkpoint.spec)
    assert dataset is not None
    drawn = draw_requests(
        dataset,
        target_behaviors=preset.logs.target_behaviors,
        min_history=preset.training.min_history,
        count=requests,
        seed=1,
    )
    live = np.ones(len(dataset.ad_ids), bool)
    sizes = arms[ARMS[0]][0].level_sizes
    index = IndexSnapshot.build(dataset.ad_ids, dataset.ad_sids, active=live, level_sizes=sizes)
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for i in range(-5, len(drawn.rows)):
        past = dataset.history(drawn.groups, int(drawn.rows[i]))
        for arm in ARMS if i % 2 else ARMS[::-1]:
            spec, executor = arms[arm]
            began = time.process_time()
            features = request_features(
                spec.features,
                index,
                ad_ids=dataset.log.ad_ids[past],
                behaviors=dataset.log.behavior[past],
                timestamps=dataset.log.timestamp[past],
                profile=dataset.profile[drawn.groups.user_row[drawn.rows[i]]],
                now=int(drawn.now[i]),
            )
            beam_search(
                executor,
                index.trie,
                fill_slots(index, features.slot_ads[None], features.slots[None]),
                features.profile[None],
                plan=plan,
                num_results=np.array([10]),
                pool=np.array([10]) if preset.serving.prune == "exact" else None,
                value_table=spec.value_buckets.means,
            )
            if i >= 0:
                seconds[arm].append(time.process_time() - began)
    ratio = np.array(seconds["with"]) / np.array(seconds["without"])
    return {
        "p50_ms": {arm: float(np.median(x) * 1e3) for arm, x in seconds.items()},
        "ratio": float(np.median(ratio)),
        "ratio_95": median_interval(ratio),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser, default="configs/demo.yaml")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, count in (("quality", 1500), ("latency", 200)):
        command = commands.add_parser(name)
        for arm in ARMS:
            command.add_argument(f"--{arm}", nargs="+", type=Path, required=True, help="runs, one a seed")
        command.add_argument("--requests", type=int, default=count, help=f"[{count}]")
        command.add_argument("--part", choices=("validation", "test"), default="test", help="[test]")
        command.add_argument("--out", type=Path, help=f"report [build/bench/copy_path_{name}.json]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    given = [f"evaluation.requests={arguments.requests}", f"evaluation.part={arguments.part}"]
    preset = Preset.load(arguments.config, [*arguments.overrides, *given])
    pairs = [
        dict(zip(ARMS, pair, strict=True))
        for pair in zip(*(getattr(arguments, arm) for arm in ARMS), strict=True)
    ]
    if arguments.command == "quality":
        found = [quality(pair, preset) for pair in pairs]
        report(arguments, "copy_path", compared([figures for figures, _ in found], found[0][1]))
    else:
        report(arguments, "copy_path", latency(pairs[0], preset, requests=arguments.requests))


if __name__ == "__main__":
    main()
