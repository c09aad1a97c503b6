"""What normalising levels over live children costs and gives, level by level: `make ablate-live`.

A trained model, its exported graphs in this process, the same test requests for every variant, variants
interleaved in random order request by request.
"""

from __future__ import annotations

import json
import time

import numpy as np
from tqdm import tqdm

from benchmarks.report import stamp
from benchmarks.trained_demo import TrainedDemo, options, recall_figures
from serving.beam_search import Normalise


def variants(levels: int) -> dict[str, tuple[Normalise, ...]]:
    """Codebook throughout, each level alone, and each suffix of levels."""
    found: dict[str, tuple[Normalise, ...]] = {}
    for chosen in [set(), *({t} for t in range(levels)), *(set(range(t, levels)) for t in range(levels))]:
        normalise: tuple[Normalise, ...] = tuple("live" if t in chosen else "codebook" for t in range(levels))
        found["-".join(normalise)] = normalise
    return found


def main() -> None:
    """Command line."""
    arguments = options(__doc__).parse_args()
    demo = TrainedDemo.load(arguments, graphs="live_levels")
    compared = variants(len(demo.plan.sid))
    ranked: dict[str, list[np.ndarray]] = {n: [] for n in compared}
    seconds: dict[str, list[float]] = {n: [] for n in compared}
    random = np.random.default_rng(0)
    for row in tqdm(demo.rows, desc="requests", mininterval=2.0):
        for name in random.permutation(list(compared)):
            began = time.perf_counter()
            ranked[name].append(demo.ads(row, normalise=compared[name]))
            seconds[name].append(time.perf_counter() - began)
    plain = "-".join(["codebook"] * len(demo.plan.sid))
    rows = {
        name: {
            "latency_ms_median": float(np.median(seconds[name]) * 1e3),
            "speed_ratio": float(np.median(seconds[plain]) / np.median(seconds[name])),
            **recall_figures(demo, ranked[name], ranked[plain]),
        }
        for name in compared
    }
    report = {
        **stamp(),
        "widths": str(demo.plan),
        "requests": len(demo.rows),
        "requests_with_cold_targets": sum(len(t) > 0 for t in demo.cold_targets),
        "cold_targets": int(sum(map(len, demo.cold_targets))),
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
