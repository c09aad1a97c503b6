"""LazyAR against K = 0 and against an MTP decoder, trained equally: `make ablate-lazyar`.

All have the same number of layers, data, steps, batches and seeds. K = 0 looks at the previous token in every
layer; the MTP decoder (`training.model.mtp`) has one layer behind those of the first level. Neither gets the
MTP loss, which trains the shared stage that they do not have, and none has a copy path, whose weights come
from that stage. Quality is that of `make evaluate`, with intervals over its requests; latency is of the
exported graphs in this process, LazyAR and K = 0 interleaved.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rank_by import ratio_interval
from benchmarks.report import stamp
from benchmarks.simulation.train import PLAIN
from benchmarks.steps import all_of, run_step
from export.graphs import export_graphs
from export.parity import check_parity
from serving.engines.ort import OrtExecutor
from serving.index.snapshot import IndexSnapshot
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from training.evaluation.ranking import rank_by_all
from training.evaluation.requests import draw_requests
from training.loop.retention import open_checkpoint
from training.preset.preset import Preset, add_preset_arguments
from training.rollout.executor import TorchExecutor
from training.run import RunData

WIDTHS = "64-128-256:64"
MINE = "lazyar"
OTHERS = ("k0", "mtp")
EXPORTED = (MINE, "k0")
POPULARITY = "popularity"
QUICK = (
    "training.steps=40",
    "training.validate_every=40",
    "training.validation_requests=32",
    "evaluation.requests=60",
)


class Ablation:
    """Models of a run folder's data and tokenizer, one a variant and seed, in RUN/ablation."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read the preset; `arguments` are those of the command line.

        Raises:
            ConfigError: a key of the preset is wrong.
        """
        self._config, self.run = arguments.config, arguments.run
        self._settings = [*PLAIN, *arguments.overrides, "training.threads=1"]
        self._settings += QUICK if arguments.quick else ()
        self.preset = Preset.load(self._config, self._settings)
        behind = self.preset.model.layers - 1
        self.variants: dict[str, tuple[str, ...]] = {
            MINE: (),
            "k0": ("model.shared_layers=0", "training.lambda_mtp=0"),
            "mtp": (
                "model.decoder=mtp",
                f"model.shared_layers={behind}",
                "training.lambda_mtp=0",
            ),
        }

    @property
    def labels(self) -> dict[str, str]:
        """What a variant is called."""
        shared = self.preset.model.shared_layers
        return {MINE: f"LazyAR, K = {shared}", "k0": "K = 0", "mtp": "MTP decoder"}

    def folder(self, name: str, seed: int) -> Path:
        """Of a model."""
        return self.run / "ablation" / f"{name}-seed{seed}"

    def train(self, name: str, seed: int) -> None:
        """Train a model, or go on with it.

        Raises:
            SystemExit: it failed; says where its log is.
        """
        folder = self.folder(name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        settings = [*self._settings, *self.variants[name], f"training.seed={seed}"]
        options = ["--config", self._config, "--run", self.run, "--out", folder]
        options += [word for setting in settings for word in ("--set", setting)]
        run_step("training.recipes.pretrain", *options, of=f"{name}, seed {seed}", log=folder / "log.txt")

    def recall(self, name: str, seed: int) -> dict[str, dict[int, np.ndarray]]:
        """Method (the variant, popularity) -> cut-off -> recall of each test request, float64 [R]."""
        data, checkpoint = RunData.load(self.run), open_checkpoint(self.folder(name, seed))
        rankings = rank_by_all(
            TorchExecutor(checkpoint.model.eval()),
            data.dataset(checkpoint.spec),
            ads=data.prepared.tables.ads,
            config=self.preset.evaluation,
            level_sizes=checkpoint.spec.level_sizes,
            target_behaviors=self.preset.logs.target_behaviors,
            min_history=self.preset.training.min_history,
            value_table=checkpoint.spec.value_buckets.means,
            serving=self.preset.serving,
        )
        return {
            of: {
                k: np.array(
                    [
                        np.isin(targets, ads[:k]).mean()
                        for ads, targets in zip(
                            rankings.ranked[method], rankings.requests.targets, strict=True
                        )
                    ]
                )
                for k in self.preset.evaluation.cutoffs
            }
            for of, method in ((name, "model"), (POPULARITY, POPULARITY))
        }

    def latency(self, *, requests: int) -> dict[str, np.ndarray]:
        """Seconds of each request in process, one thread, variants interleaved in random order."""
        checkpoints = {n: open_checkpoint(self.folder(n, 0)) for n in EXPORTED}
        spec = checkpoints[MINE].spec
        dataset = RunData.load(self.run).dataset(spec)
        drawn = draw_requests(
            dataset,
            target_behaviors=self.preset.logs.target_behaviors,
            min_history=self.preset.training.min_history,
            count=requests,
            seed=0,
        )
        live = np.ones(len(dataset.ad_ids), bool)
        snapshot = IndexSnapshot.build(
            dataset.ad_ids, dataset.ad_sids, active=live, level_sizes=spec.level_sizes
        )
        plan = WidthPlan.parse(WIDTHS, levels=spec.features.levels)
        executors = {}
        for name, checkpoint in checkpoints.items():
            folder = self.folder(name, 0) / "onnx"
            folder.mkdir(exist_ok=True)
            export_graphs(checkpoint.model, folder)
            check_parity(checkpoint.model, folder)
            executors[name] = OrtExecutor(folder, levels=spec.features.levels, threads=1)
        seconds: dict[str, list[float]] = {n: [] for n in EXPORTED}
        random = np.random.default_rng(0)
        for i, row in enumerate(drawn.rows):
            slots, profile = dataset.context(drawn.groups, np.array([row]))
            for name in random.permutation(EXPORTED):
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
        return {name: np.array(of) for name, of in seconds.items()}


def compared(found: Mapping[str, Sequence[dict[int, np.ndarray]]], other: str) -> dict[str, Any]:
    """LazyAR beside another variant by cut-off: ratio of means, its 95 % interval over requests, by seed.

    Args:
        found: variant -> of each seed cut-off -> recall of each request, float64 [R].
        other: a variant.
    """
    table = {}
    for k in found[MINE][0]:
        mine, theirs = (np.array([seed[k] for seed in found[name]]) for name in (MINE, other))  # [seeds, R]
        table[str(k)] = {
            "ratio": float(mine.mean() / theirs.mean()),
            "ratio_95": [1 + x for x in ratio_interval(mine.mean(0), theirs.mean(0))],
            "by_seed": (mine.mean(1) / theirs.mean(1)).tolist(),
        }
    return table


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
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, a thread each [2]")
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ablation, seeds = Ablation(arguments), range(arguments.seeds)
    jobs = [partial(ablation.train, name, seed) for seed in seeds for name in ablation.variants]
    all_of(jobs, at_once=arguments.jobs)
    recalls = {name: [ablation.recall(name, seed) for seed in seeds] for name in ablation.variants}
    of_models = {name: [seed[name] for seed in of] for name, of in recalls.items()}
    seconds = ablation.latency(requests=30 if arguments.quick else 210)
    pairs = {name: compared(of_models, name) for name in OTHERS}
    report = {
        **stamp(),
        "steps": ablation.preset.training.steps,
        "seeds": arguments.seeds,
        "shared_layers": ablation.preset.model.shared_layers,
        "widths": WIDTHS,
        "recall": {
            name: {str(k): [float(seed[k].mean()) for seed in of] for k in of[0]}
            for name, of in of_models.items()
        },
        "recall_popularity": {str(k): float(x.mean()) for k, x in recalls[MINE][0][POPULARITY].items()},
        "lazyar_vs": pairs,
        "latency_ms_median": {n: float(np.median(s) * 1e3) for n, s in seconds.items()},
        "latency_ms_p95": {n: float(np.percentile(s, 95) * 1e3) for n, s in seconds.items()},
        "latency_ratio": float(np.median(seconds["k0"]) / np.median(seconds[MINE])),
        "quick": arguments.quick,
    }
    path = arguments.run / "ablation" / "report.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    for name, label in ablation.labels.items():
        means = ", ".join(f"@{k} {np.mean(of):.4f}" for k, of in report["recall"][name].items())
        print(f"{label:16} recall {means}")
    for name, table in pairs.items():
        for k, figures in table.items():
            low, high = figures["ratio_95"]
            by_seed = ", ".join(f"{x:.3f}" for x in figures["by_seed"])
            print(
                f"LazyAR / {ablation.labels[name]}, recall@{k}: {figures['ratio']:.3f} "
                f"[{low:.3f}, {high:.3f}], by seed {by_seed}"
            )
    print(
        f"latency K = 0 / LazyAR: {report['latency_ratio']:.2f}x in process, one thread, widths {WIDTHS}\n"
        f"report: {path}"
    )


if __name__ == "__main__":
    main()
