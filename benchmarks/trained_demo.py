"""A trained run, ready to search in this process: graphs, catalogue, test requests and what they ask for.

Cold ads are ads without an event before the end of the training weeks: the model has never seen them, only
ads with similar semantic IDs.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.report import stamp
from export.graphs import export_graphs
from export.parity import check_parity
from serving.backend.resolve import NO_AD, Ads, resolve
from serving.engines.ort import OrtExecutor
from serving.index.snapshot import IndexSnapshot, Snapshot
from serving.search.beam_search import beam_search
from serving.search.beams import Beams
from serving.search.cold_start import ColdStart
from serving.search.executor import Executor
from serving.search.normalise import Normalise
from serving.search.widths import WidthPlan
from training.data.groups import TargetGroups
from training.data.parts import TRAIN
from training.data.samples import RequestDataset
from training.evaluation.requests import Requests, draw_requests
from training.loop.checkpoint import Checkpoint
from training.loop.retention import open_checkpoint
from training.preset.preset import Preset, add_preset_arguments
from training.run import RunData
from training.spec import ModelSpec

CUTOFFS = (10, 50, 200)
_NO_ADS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class TrainedDemo:
    """A trained run.

    Attributes:
        spec: of the model.
        plan: widths.
        executor: engine; FP32 graphs in ONNX Runtime where it was loaded of a run.
        dataset: events and SIDs.
        groups: test requests by row of `rows`.
        rows: the drawn ones.
        targets: ads int64 that each of them led to.
        values: what each of those was worth.
        cold_targets: those of them that are cold.
        snapshot: index of the whole catalogue.
        seen: packed SIDs int64 that the model was trained on.
    """

    spec: ModelSpec
    plan: WidthPlan
    executor: Executor
    dataset: RequestDataset
    groups: TargetGroups
    rows: np.ndarray
    targets: list[np.ndarray]
    values: list[np.ndarray]
    cold_targets: list[np.ndarray]
    snapshot: IndexSnapshot
    seen: np.ndarray

    @classmethod
    def load(cls, arguments: argparse.Namespace, *, graphs: str) -> TrainedDemo:
        """Of the command line's `options`; graphs are written into that folder of the run."""
        preset = Preset.load(arguments.config, arguments.overrides)
        checkpoint = open_checkpoint(arguments.run / "model")
        dataset = RunData.load(arguments.run).dataset(checkpoint.spec)
        drawn = draw_requests(
            dataset,
            target_behaviors=preset.logs.target_behaviors,
            min_history=10,
            count=arguments.requests,
            seed=0,
        )
        folder = arguments.run / graphs
        folder.mkdir(exist_ok=True)
        export_graphs(checkpoint.model, folder)
        check_parity(checkpoint.model, folder)
        return cls.of(
            checkpoint,
            dataset,
            drawn,
            widths=arguments.widths or preset.serving.widths,
            executor=OrtExecutor(folder, levels=checkpoint.spec.features.levels, threads=arguments.threads),
        )

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        dataset: RequestDataset,
        requests: Requests,
        *,
        widths: str,
        executor: Executor,
    ) -> TrainedDemo:
        """Of a model on an engine, and drawn requests."""
        spec = checkpoint.spec
        warm = np.unique(dataset.log.ad_ids[dataset.parts.event == TRAIN])
        return cls(
            spec=spec,
            plan=WidthPlan.parse(widths, levels=spec.features.levels),
            executor=executor,
            dataset=dataset,
            groups=requests.groups,
            rows=requests.rows,
            targets=requests.targets,
            values=requests.values,
            cold_targets=[t[~np.isin(t, warm)] for t in requests.targets],
            snapshot=index_of(dataset.ad_ids, dataset.ad_sids, spec),
            seen=dataset.seen_sids(spec.level_sizes),
        )

    def ads(
        self,
        row: int,
        *,
        snapshot: Snapshot | None = None,
        normalise: tuple[Normalise, ...] | None = None,
        cold_start: ColdStart | None = None,
    ) -> np.ndarray:
        """Ads int64 of the answer to a test request, best first, at most max(CUTOFFS)."""
        ads = self.answer(
            row, num_ads=max(CUTOFFS), snapshot=snapshot, normalise=normalise, cold_start=cold_start
        ).ad_ids
        return ads[ads != NO_AD]

    def answer(
        self,
        row: int,
        *,
        num_ads: int,
        snapshot: Snapshot | None = None,
        normalise: tuple[Normalise, ...] | None = None,
        cold_start: ColdStart | None = None,
    ) -> Ads:
        """The answer to a test request, the most probable ad first."""
        snapshot = snapshot or self.snapshot
        beams = self.beams(
            row, num_ads=num_ads, snapshot=snapshot, normalise=normalise, cold_start=cold_start
        )
        return resolve(
            snapshot,
            beams.sids[0],
            scores=beams.scores[0],
            expected_value=beams.expected_value[0],
            num_ads=num_ads,
            exclude=_NO_ADS,
        )

    def beams(
        self,
        row: int,
        *,
        num_ads: int,
        snapshot: Snapshot | None = None,
        normalise: tuple[Normalise, ...] | None = None,
        cold_start: ColdStart | None = None,
    ) -> Beams:
        """Beams of a test request, searched alone."""
        slots, profile = self.dataset.context(self.groups, np.array([row]))
        return beam_search(
            self.executor,
            (snapshot or self.snapshot).trie,
            slots,
            profile,
            plan=self.plan,
            num_results=np.array([num_ads]),
            value_table=self.spec.value_buckets.means,
            value_correction=self.spec.value_correction,
            normalise=normalise,
            cold_start=cold_start,
        )


def options(description: str) -> argparse.ArgumentParser:
    """Command line of a benchmark of a trained run."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser, default="configs/demo.yaml")
    parser.add_argument(
        "--run", type=Path, default=Path("build/demo"), help="run folder with a trained model"
    )
    parser.add_argument("--requests", type=int, default=1500, help="test requests [1500]")
    parser.add_argument("--widths", help="width plan (default: the preset's)")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def index_of(ad_ids: np.ndarray, sids: np.ndarray, spec: ModelSpec) -> IndexSnapshot:
    """Index of ads int64 [N], all active, with SIDs int32 [N, T]."""
    active = np.ones(len(ad_ids), bool)
    return IndexSnapshot.build(ad_ids, sids, active=active, level_sizes=spec.level_sizes)


def recalls(ranked: list[np.ndarray], targets: list[np.ndarray], *, k: int) -> np.ndarray:
    """Share of each request's targets among its first k ads; requests without targets are left out."""
    return np.array([np.isin(t, r[:k]).mean() for r, t in zip(ranked, targets, strict=True) if len(t)])


def interval(differences: np.ndarray, *, seed: int = 0) -> list[float]:
    """95 % bootstrap interval of the mean of paired differences."""
    random = np.random.default_rng(seed)
    means = [differences[random.integers(0, len(differences), len(differences))].mean() for _ in range(2000)]
    return [float(x) for x in np.percentile(means, [2.5, 97.5])]


def compare(
    demo: TrainedDemo, variants: dict[str, dict[str, Any]], *, plain: str
) -> tuple[dict[str, list[np.ndarray]], dict[str, dict[str, Any]]]:
    """Ads of every test request by variant (options of `TrainedDemo.ads`), and their latency and recall.

    Variants are interleaved in random order request by request; speed and recall are compared to `plain`.
    """
    ranked: dict[str, list[np.ndarray]] = {name: [] for name in variants}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    random = np.random.default_rng(0)
    for row in tqdm(demo.rows, desc="requests", mininterval=2.0):
        for name in random.permutation(list(variants)).tolist():
            began = time.perf_counter()
            ranked[name].append(demo.ads(row, **variants[name]))
            seconds[name].append(time.perf_counter() - began)
    rows = {
        name: {
            "latency_ms_median": float(np.median(seconds[name]) * 1e3),
            "speed_ratio": float(np.median(seconds[plain]) / np.median(seconds[name])),
            **_recalls(demo, ranked[name], ranked[plain]),
        }
        for name in variants
    }
    return ranked, rows


def write_report(path: Path, demo: TrainedDemo, rows: dict[str, dict[str, Any]], **more: Any) -> None:
    """Rows of `compare`, with what they were measured on."""
    content = {
        **stamp(),
        "widths": str(demo.plan),
        "requests": len(demo.rows),
        "requests_with_cold_targets": sum(len(t) > 0 for t in demo.cold_targets),
        "cold_targets": int(sum(map(len, demo.cold_targets))),
        **more,
        "rows": rows,
    }
    path.write_text(json.dumps(content, indent=2))
    print(f"report: {path}")


def _recalls(demo: TrainedDemo, ranked: list[np.ndarray], plain: list[np.ndarray]) -> dict:
    """Recall and cold recall at each cut-off, and the intervals of their differences to `plain`."""
    row: dict = {}
    for label, targets in (("recall", demo.targets), ("cold_recall", demo.cold_targets)):
        for k in CUTOFFS:
            found, reference = (recalls(r, targets, k=k) for r in (ranked, plain))
            row[f"{label}{k}"] = float(found.mean())
            row[f"{label}{k}_difference_95"] = interval(found - reference)
    return row
