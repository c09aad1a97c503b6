"""Tokenizers judged by the generator that learns their SIDs: `python -m benchmarks.tokenizer.generator`.

Arms differ in `tokenizer.*` alone; logs, model, steps, batches and test requests are the same; the seed is
that of the tokenizer and of training. Answers are those of serving, cold start included. Each arm and seed is
a run of its own below RUN/arms, trained once and resumed where it was stopped.

    python -m benchmarks.tokenizer.generator --run build/demo --arms first full --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.report import stamp
from benchmarks.steps import all_of, run_step
from benchmarks.trained_demo import TrainedDemo, interval, options
from serving.search.cold_start import ColdStart
from training.evaluation.requests import Requests
from training.evaluation.targets import target_masks

ARMS = {
    "first": ("embedding=tfidf_svd", "quantizer=rq_kmeans"),
    "balanced": ("embedding=tfidf_svd", "quantizer=balanced"),
    "bag": ("embedding=bag", "quantizer=rq_kmeans"),
    "full": ("embedding=bag", "quantizer=balanced"),
    "wide": ("embedding=bag", "quantizer=balanced", "codebook_sizes=[512,128]"),
}
MEASURES = {"recall": 50, "new_to_user": 50, "cold": 200}  # what is compared: kind of targets -> cut-off


def train(
    arguments: argparse.Namespace,
    arm: str,
    *,
    seed: int,
    tokenizer: Sequence[str],
    settings: Sequence[str] = (),
) -> Path:
    """Tokenize and train one arm, or what is left of it; returns its run.

    Args:
        arguments: of the command line: run, config, overrides, threads.
        arm: its name, of which that of its run is made.
        seed: of tokenizer and training.
        tokenizer: keys of section `tokenizer`.
        settings: any other keys of the preset.
    """
    run = arguments.run / "arms" / f"{arm}-seed{seed}"
    run.mkdir(parents=True, exist_ok=True)
    if not (run / "data").exists():
        (run / "data").symlink_to((arguments.run / "data").resolve())
    settings = [
        *arguments.overrides,
        *settings,
        *(f"tokenizer.{setting}" for setting in tokenizer),
        f"tokenizer.seed={seed}",
        f"training.seed={seed}",
        f"training.threads={arguments.threads}",
    ]
    common = ["--config", arguments.config, *(word for s in settings for word in ("--set", s))]
    keep = ["--keep"] if (run / "model" / "checkpoints").exists() else []
    for command in (
        ["training.tokenizer", *common, "--data", str(run / "data"), "--out", str(run / "tokenizer"), *keep],
        ["training.recipes.pretrain", *common, "--run", str(run)],
    ):
        run_step(*command, of=f"{arm}, seed {seed}", log=run / "log.txt")
    return run


def shares(arguments: argparse.Namespace, run: Path) -> dict[str, np.ndarray]:
    """Share of each test request's targets that were found, by kind; NaN where it has none of that kind."""
    demo = TrainedDemo.load(argparse.Namespace(**vars(arguments) | {"run": run}), graphs="onnx")
    requests = Requests(demo.groups, demo.rows, demo.targets, [])
    masks = {"recall": [np.ones(len(t), bool) for t in demo.targets], **target_masks(demo.dataset, requests)}
    lift = ColdStart(demo.seen, demo.spec.level_sizes, 1.0)
    answers = [demo.ads(row, cold_start=lift) for row in tqdm(demo.rows, desc=run.name, mininterval=5.0)]
    found = {}
    for kind, k in MEASURES.items():
        wanted = [t[mask] for t, mask in zip(demo.targets, masks[kind], strict=True)]
        found[kind] = np.array(
            [np.isin(t, a[:k]).mean() if len(t) else np.nan for t, a in zip(wanted, answers, strict=True)]
        )
    return found


def compared(found: dict[str, list[dict[str, np.ndarray]]], *, plain: str) -> dict[str, dict[str, Any]]:
    """Means by arm and seed, and the interval of the paired difference to `plain`, requests drawn anew."""
    table: dict[str, dict[str, Any]] = {}
    for arm, seeds in found.items():
        table[arm] = {}
        for kind, k in MEASURES.items():
            mine, theirs = (
                np.stack([s[kind] for s in f]) for f in (seeds, found[plain])
            )  # [seeds, requests]
            there = ~np.isnan(mine[0])
            difference = (mine - theirs)[:, there].mean(axis=0)
            by_seed = mine[:, there].mean(axis=1)
            table[arm][f"{kind}@{k}"] = {
                "mean": float(by_seed.mean()),
                "by_seed": by_seed.tolist(),
                "ratio": float(by_seed.mean() / theirs[:, there].mean()) if theirs[:, there].any() else None,
                "difference_95": interval(difference),
                "requests": int(there.sum()),
            }
    return table


def main() -> None:
    """Command line."""
    parser = options(__doc__)
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=["first", "full"], help="the first is compared to"
    )
    parser.add_argument(
        "--tokenizer", nargs="*", default=[], help="more keys of section tokenizer, for all arms"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time [1]")
    parser.add_argument("--out", type=Path, help="report [RUN/arms/report.json]")
    arguments = parser.parse_args()
    jobs = {
        (arm, seed): partial(train, arguments, arm, seed=seed, tokenizer=[*ARMS[arm], *arguments.tokenizer])
        for seed in arguments.seeds
        for arm in arguments.arms
    }
    runs = dict(zip(jobs, all_of([*jobs.values()], at_once=arguments.jobs), strict=True))
    found = {arm: [shares(arguments, runs[arm, seed]) for seed in arguments.seeds] for arm in arguments.arms}
    table = compared(found, plain=arguments.arms[0])
    for arm, row in table.items():
        for measure, figures in row.items():
            low, high = figures["difference_95"]
            ratio = "" if figures["ratio"] is None else f"{figures['ratio']:.3f}x of {arguments.arms[0]}, "
            print(f"{arm:8} {measure:16} {figures['mean']:.4f}  {ratio}difference {low:+.4f} .. {high:+.4f}")
    path = arguments.out or arguments.run / "arms" / "report.json"
    settings = {
        "overrides": list(arguments.overrides),
        "tokenizer": arguments.tokenizer,
        "seeds": arguments.seeds,
    }
    path.write_text(json.dumps({**stamp(), **settings, "arms": table}, indent=2) + "\n")
    print(f"report: {path}")


if __name__ == "__main__":
    main()
