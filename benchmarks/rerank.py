"""The ranking stage against none: what it finds, and what it costs through Triton.

    python -m benchmarks.rerank quality --runs build/demo        trained runs with reward models, one a seed
    python -m benchmarks.rerank latency --run build/demo         with index, and a bundle that has a ranker

All ways order the same pool of the same beams, with the search of serving. `reward` is what serves, the mean
over the rankers of all folds; `fold` the rankers that did not see the user, as lists are scored.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from benchmarks.rank_by import latency_arguments, quality_arguments, ratio_interval, report, timed
from benchmarks.trained_demo import TrainedDemo
from serving.backend.resolve import find_ads
from serving.model.manifest import RankerKind
from serving.ranking.ranker import best_first
from serving.search.cold_start import ColdStart
from training.preset.preset import Preset, add_preset_arguments
from training.reward.measures import auc
from training.reward.reward_model import RewardModel

WAYS = ("off", "reward", "fold")
CUTOFF = 10


def found_by(arguments: argparse.Namespace, run: Path) -> dict[str, Any]:
    """By way value and recall of every test request, float64 [R]; and the AUC of p over all pools."""
    preset = Preset.load(arguments.config, arguments.overrides)
    demo = TrainedDemo.load(argparse.Namespace(**vars(arguments) | {"run": run}), graphs="onnx")
    model = RewardModel.load(run / "reward")
    features, lift = model.features(demo.dataset), ColdStart(demo.seen, demo.spec.level_sizes, 1.0)
    figures: dict[str, dict[str, list[float]]] = {way: {"value": [], "recall": []} for way in WAYS}
    chances: dict[str, list[np.ndarray]] = {"reward": [], "fold": []}
    bought = []
    for i, row in enumerate(tqdm(demo.rows.tolist(), desc=run.name, mininterval=5.0)):
        beams = demo.beams(row, num_ads=CUTOFF, cold_start=lift)
        pool = find_ads(
            demo.snapshot,
            beams.sids[0],
            scores=beams.scores[0],
            expected_value=beams.expected_value[0],
            num_ads=CUTOFF,
            exclude=np.zeros(0, np.int64),
            rank_by=preset.serving.rank_by,
            pool=preset.serving.rerank_pool,
        ).ad_ids
        served = model.calibrated(features.of(demo.groups, row, pool), None)
        apart = model.score(demo.dataset, demo.groups, row, pool)
        orders = (np.arange(len(pool)), best_first(served.reward), best_first(apart.reward))
        for way, order in zip(WAYS, orders, strict=True):
            hit = np.isin(demo.targets[i], pool[order[:CUTOFF]])
            figures[way]["value"].append(float(demo.values[i][hit].sum()))
            figures[way]["recall"].append(float(hit.mean()))
        chances["reward"].append(served.p)
        chances["fold"].append(apart.p)
        bought.append(np.isin(pool, demo.targets[i]))
    had = np.concatenate(bought)
    return {
        "figures": {way: {name: np.array(x) for name, x in of.items()} for way, of in figures.items()},
        "auc": {way: auc(np.concatenate(p), had, np.ones(len(had))) for way, p in chances.items()},
    }


def table(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of every figure by way, and their ratios minus one to `off`, paired by request, with 95 %."""
    found: dict[str, Any] = {way: {} for way in WAYS}
    for way in WAYS:
        for name in ("value", "recall"):
            mine, theirs = (np.stack([run["figures"][w][name] for run in runs]) for w in (way, "off"))
            found[way][f"{name}@{CUTOFF}"] = {
                "mean": float(mine.mean()),
                "gain": float(mine.mean() / theirs.mean() - 1),
                "gain_95": ratio_interval(mine.mean(axis=0), theirs.mean(axis=0)),
            }
    return found | {"auc": {way: float(np.mean([r["auc"][way] for r in runs])) for way in runs[0]["auc"]}}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser, default="configs/demo.yaml")
    commands = parser.add_subparsers(dest="command", required=True)
    quality = commands.add_parser("quality", help="value and recall of the test requests")
    quality_arguments(quality)
    latency = commands.add_parser("latency", help="lone requests through Triton")
    latency_arguments(latency)
    latency.add_argument(
        "--kind", choices=get_args(RankerKind), default="reward", help="of the ranker [reward]"
    )
    for command in (quality, latency):
        command.add_argument("--out", type=Path, help="report [build/bench/rerank_COMMAND.json]")
    arguments = parser.parse_args()
    if arguments.command == "quality":
        figures = table([found_by(arguments, run) for run in arguments.runs])
    else:
        serving = Preset.load(arguments.config, arguments.overrides).serving
        ways = {way: {"rerank": way} for way in ("off", arguments.kind)}
        figures = timed(arguments.run, serving, ways, requests=arguments.requests, num_ads=arguments.num_ads)
    report(arguments, "rerank", figures)


if __name__ == "__main__":
    main()
