"""K = 0 against LazyAR, trained equally: `make ablate-lazyar`.

Both variants have the same layers, data, steps, batches and seeds; only `model.shared_layers` differs, and K
= 0 goes without the MTP loss, which trains the shared stage it does not have. Neither has a copy path, whose
weights come from that stage. Quality is recall@50 on the
same test requests; latency is the exported graphs in this process, the variants interleaved.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.simulation.train import PLAIN
from export.graphs import export_graphs
from export.parity import check_parity
from serving.engines.ort import OrtExecutor
from serving.index.snapshot import IndexSnapshot
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from training.evaluation.requests import draw_requests
from training.loop.retention import open_checkpoint
from training.preset.preset import Preset, add_preset_arguments
from training.run import RunData

WIDTHS = "64-128-256:64"
QUICK = (
    "training.steps=40",
    "training.validate_every=40",
    "training.validation_requests=32",
    "evaluation.requests=60",
)


def train_and_evaluate(
    arguments: argparse.Namespace, *, name: str, seed: int, overrides: tuple[str, ...]
) -> dict:
    """Train one variant (or resume it) and evaluate it, one thread each; returns the evaluation."""
    folder = arguments.run / "ablation" / f"{name}-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    settings = [
        *PLAIN,
        *arguments.overrides,
        *overrides,
        f"training.seed={seed}",
        f"training.steps={arguments.steps}",
        "training.threads=1",
    ]
    settings += QUICK if arguments.quick else ()
    common = ["--config", arguments.config, "--run", str(arguments.run)]
    common += [word for setting in settings for word in ("--set", setting)]
    log = folder / "log.txt"
    for command in (
        ["training.recipes.pretrain", *common, "--out", str(folder)],
        ["training.evaluation", *common, "--model", str(folder)],
    ):
        print(f"{name}, seed {seed}: {command[0]} (log: {log})", flush=True)
        with log.open("a") as file:
            code = subprocess.run(
                [sys.executable, "-m", *command], check=False, stdout=file, stderr=file
            ).returncode
        if code:
            raise SystemExit(f"ablation: {command[0]} of {name}, seed {seed} failed; see {log}")
    return json.loads((folder / "evaluation.json").read_text())


def latency(arguments: argparse.Namespace, names: list[str], *, requests: int) -> dict[str, list[float]]:
    """Seconds of each request in process, one thread, variants interleaved in random order."""
    preset = Preset.load(arguments.config, arguments.overrides)
    checkpoints = {n: open_checkpoint(arguments.run / "ablation" / f"{n}-seed0") for n in names}
    spec = checkpoints[names[0]].spec
    dataset = RunData.load(arguments.run).dataset(spec)
    drawn = draw_requests(
        dataset, target_behaviors=preset.logs.target_behaviors, min_history=10, count=requests, seed=0
    )
    snapshot = IndexSnapshot.build(
        dataset.ad_ids,
        dataset.ad_sids,
        active=np.ones(len(dataset.ad_ids), bool),
        level_sizes=spec.level_sizes,
    )
    plan = WidthPlan.parse(WIDTHS, levels=spec.features.levels)
    executors = {}
    for name, checkpoint in checkpoints.items():
        folder = arguments.run / "ablation" / f"{name}-seed0" / "onnx"
        folder.mkdir(exist_ok=True)
        export_graphs(checkpoint.model, folder)
        check_parity(checkpoint.model, folder)
        executors[name] = OrtExecutor(folder, levels=spec.features.levels, threads=1)
    seconds: dict[str, list[float]] = {n: [] for n in names}
    random = np.random.default_rng(0)
    for i, row in enumerate(drawn.rows):
        slots, profile = dataset.context(drawn.groups, np.array([row]))
        for name in random.permutation(names):
            began = time.perf_counter()
            beam_search(
                executors[name],
                snapshot.trie,
                slots,
                profile,
                plan=plan,
                num_results=np.array([50]),
                value_table=spec.value_buckets.means,
            )
            if i >= 10:  # the first ones warm up
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser, default="configs/demo.yaml")
    parser.add_argument(
        "--run", type=Path, default=Path("build/demo"), help="run folder with data/ and tokenizer/"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800, help="training steps of each of the runs [800]")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a thread each [2]")
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shared = Preset.load(arguments.config, arguments.overrides).model.shared_layers
    variants = {"ar": ("model.shared_layers=0", "training.lambda_mtp=0"), "lazyar": ()}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        running = {
            (name, seed): pool.submit(
                train_and_evaluate, arguments, name=name, seed=seed, overrides=overrides
            )
            for seed in range(arguments.seeds)
            for name, overrides in variants.items()
        }
        quality = {n: [running[n, s].result() for s in range(arguments.seeds)] for n in variants}
    recall = {n: [q["recall"]["model"]["50"] for q in found] for n, found in quality.items()}
    ratios = [lazy / plain for lazy, plain in zip(recall["lazyar"], recall["ar"], strict=True)]
    seconds = latency(arguments, list(variants), requests=30 if arguments.quick else 210)
    median = {n: float(np.median(s) * 1e3) for n, s in seconds.items()}
    report = {
        "steps": arguments.steps,
        "seeds": arguments.seeds,
        "shared_layers": shared,
        "widths": WIDTHS,
        "recall50": recall,
        "recall50_popularity": quality["ar"][0]["recall"]["popularity"]["50"],
        "recall50_ratio": float(np.mean(recall["lazyar"]) / np.mean(recall["ar"])),
        "recall50_ratio_by_seed": ratios,
        "latency_ms_median": median,
        "latency_ms_p95": {n: float(np.percentile(s, 95) * 1e3) for n, s in seconds.items()},
        "latency_ratio": median["ar"] / median["lazyar"],
        "quick": arguments.quick,
    }
    path = arguments.run / "ablation" / "report.json"
    path.write_text(json.dumps(report, indent=2))
    for name, label in (("ar", "K = 0"), ("lazyar", f"LazyAR, K = {shared}")):
        print(
            f"{label:16} recall@50 {np.mean(recall[name]):.4f} ("
            + ", ".join(f"{r:.4f}" for r in recall[name])
            + f"), request {median[name]:.1f} ms"
        )
    print(
        f"recall@50 ratio LazyAR / K = 0: {report['recall50_ratio']:.3f} (by seed "
        f"{min(ratios):.3f} .. {max(ratios):.3f}; target >= 0.97); latency K = 0 / LazyAR: "
        f"{report['latency_ratio']:.2f}x in process, one thread, widths {WIDTHS}\nreport: {path}"
    )


if __name__ == "__main__":
    main()
