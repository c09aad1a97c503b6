"""What normalising levels over live children costs and gives, level by level: `make ablate-live`.

A trained model, its exported graphs in this process, the same test requests for every variant, variants
interleaved in random order request by request. Cold ads are ads without an event before the end of the
training weeks: the model has never seen them, only ads with similar semantic IDs.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.report import stamp
from export.config import ServingConfig
from export.graphs import export_graphs
from export.parity import check_parity
from serving.beam_search import Normalise, beam_search
from serving.index.snapshot import IndexSnapshot
from serving.ort import OrtExecutor
from serving.resolve import NO_AD, resolve
from serving.widths import WidthPlan
from training.checkpoint import load_checkpoint
from training.config import load_section
from training.data.config import DataConfig
from training.data.prepare import load_prepared
from training.dataset import RequestDataset, load_sids
from training.evaluate import draw_requests

CUTOFFS = (10, 50, 200)
NO_ADS = np.zeros(0, np.int64)


def variants(levels: int) -> dict[str, tuple[Normalise, ...]]:
    """Codebook throughout, each level alone, and each suffix of levels."""
    found: dict[str, tuple[Normalise, ...]] = {}
    for chosen in [set(), *({t} for t in range(levels)), *(set(range(t, levels)) for t in range(levels))]:
        normalise: tuple[Normalise, ...] = tuple("live" if t in chosen else "codebook" for t in range(levels))
        found["-".join(normalise)] = normalise
    return found


def recalls(ranked: list[np.ndarray], targets: list[np.ndarray], *, k: int) -> np.ndarray:
    """Share of each request's targets among its first k ads; requests without targets are left out."""
    return np.array([np.isin(t, r[:k]).mean() for r, t in zip(ranked, targets, strict=True) if len(t)])


def interval(differences: np.ndarray, *, seed: int = 0) -> list[float]:
    """95 % bootstrap interval of the mean of paired differences."""
    random = np.random.default_rng(seed)
    means = [differences[random.integers(0, len(differences), len(differences))].mean() for _ in range(2000)]
    return [float(x) for x in np.percentile(means, [2.5, 97.5])]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument(
        "--run", type=Path, default=Path("build/demo"), help="run folder with a trained model"
    )
    parser.add_argument("--requests", type=int, default=1500, help="test requests [1500]")
    parser.add_argument("--widths", help="width plan (default: the preset's)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    data = load_section(arguments.config, "data", DataConfig)
    widths = arguments.widths or load_section(arguments.config, "serving", ServingConfig).widths
    checkpoint = load_checkpoint(arguments.run / "model" / "checkpoint")
    spec = checkpoint.spec
    plan = WidthPlan.parse(widths, levels=spec.features.levels)
    folder = arguments.run / "live_levels"
    folder.mkdir(exist_ok=True)
    export_graphs(checkpoint.model, folder)
    check_parity(checkpoint.model, folder)
    executor = OrtExecutor(folder, levels=spec.features.levels, threads=arguments.threads)
    dataset = RequestDataset(
        load_prepared(arguments.run / "data"), load_sids(arguments.run / "tokenizer"), spec=spec.features
    )
    drawn = draw_requests(
        dataset, target_behaviors=data.target_behaviors, min_history=10, count=arguments.requests, seed=0
    )
    log = dataset.log
    warm = np.unique(log.ad_ids[log.timestamp < dataset.split.train_end])
    cold_targets = [t[~np.isin(t, warm)] for t in drawn.targets]
    snapshot = IndexSnapshot.build(
        dataset.ad_ids,
        dataset.ad_sids,
        active=np.ones(len(dataset.ad_ids), bool),
        level_sizes=spec.level_sizes,
    )
    compared = variants(len(plan.sid))
    ranked: dict[str, list[np.ndarray]] = {n: [] for n in compared}
    seconds: dict[str, list[float]] = {n: [] for n in compared}
    random = np.random.default_rng(0)
    for row in tqdm(drawn.rows, desc="requests", mininterval=2.0):
        slots, profile = dataset.context(drawn.groups, np.array([row]))
        for name in random.permutation(list(compared)):
            began = time.perf_counter()
            beams = beam_search(
                executor,
                snapshot.trie,
                slots,
                profile,
                plan=plan,
                num_results=np.array([max(CUTOFFS)]),
                value_table=spec.value_buckets.means,
                normalise=compared[name],
            )
            seconds[name].append(time.perf_counter() - began)
            ads = resolve(
                snapshot,
                beams.sids[0],
                scores=beams.scores[0],
                expected_value=beams.expected_value[0],
                num_ads=max(CUTOFFS),
                exclude=NO_ADS,
            ).ad_ids
            ranked[name].append(ads[ads != NO_AD])
    plain = "-".join(["codebook"] * len(plan.sid))
    rows = {}
    for name in compared:
        row: dict = {"latency_ms_median": float(np.median(seconds[name]) * 1e3)}
        row["speed_ratio"] = float(np.median(seconds[plain]) / np.median(seconds[name]))
        for label, targets in (("recall", drawn.targets), ("cold_recall", cold_targets)):
            for k in CUTOFFS:
                found, reference = (recalls(ranked[n], targets, k=k) for n in (name, plain))
                row[f"{label}{k}"] = float(found.mean())
                row[f"{label}{k}_difference_95"] = interval(found - reference)
        rows[name] = row
    report = {
        **stamp(),
        "widths": str(plan),
        "requests": len(drawn.rows),
        "requests_with_cold_targets": sum(len(t) > 0 for t in cold_targets),
        "cold_targets": int(sum(map(len, cold_targets))),
        "rows": rows,
    }
    (arguments.run / "live_levels.json").write_text(json.dumps(report, indent=2))
    print(f"{'normalise':28} {'ms':>6} {'speed':>6} {'recall@10':>10} {'recall@50':>10} {'cold@50':>9}")
    for name, row in rows.items():
        print(
            f"{name:28} {row['latency_ms_median']:6.1f} {row['speed_ratio']:5.2f}x {row['recall10']:10.4f} "
            f"{row['recall50']:10.4f} {row['cold_recall50']:9.4f}   recall@50 difference, 95 %: "
            f"{row['recall50_difference_95'][0]:+.4f} .. {row['recall50_difference_95'][1]:+.4f}"
        )
    print(f"report: {arguments.run}/live_levels.json")


if __name__ == "__main__":
    main()
