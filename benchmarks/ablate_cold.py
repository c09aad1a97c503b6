"""What ads gain that the model never saw, and what the others lose: `make ablate-cold`.

`serving.cold_start` at several values, the same test requests for each, values interleaved in random order
request by request. Besides the recall of test targets, new ads are created: for each of some requests one
with the vector codes of the ad that the model ranks first (or tenth) and a hash code at random, which is what
an ad with the same text gets.
"""

from __future__ import annotations

import json
import time

import numpy as np
from tqdm import tqdm

from benchmarks.report import stamp
from benchmarks.trained_demo import CUTOFFS, TrainedDemo, index_of, options, recall_figures
from serving.cold_start import ColdStart

SHARES = (0.0, 0.3, 1.0, 2.0, 3.0)
CREATED = 200  # requests that get a new ad
PLACES = (1, 10)


def main() -> None:
    """Command line."""
    arguments = options(__doc__).parse_args()
    demo = TrainedDemo.load(arguments, graphs="cold_start")
    sizes = demo.spec.level_sizes
    compared = {share: ColdStart(demo.seen, sizes, share) if share else None for share in SHARES}
    ranked: dict[float, list[np.ndarray]] = {s: [] for s in SHARES}
    seconds: dict[float, list[float]] = {s: [] for s in SHARES}
    random = np.random.default_rng(0)
    for row in tqdm(demo.rows, desc="requests", mininterval=2.0):
        for share in random.permutation(SHARES).tolist():
            began = time.perf_counter()
            ranked[share].append(demo.ads(row, cold_start=compared[share]))
            seconds[share].append(time.perf_counter() - began)
    shown = {f"like_{place}": _created(demo, ranked[0.0], compared, place=place) for place in PLACES}
    rows = {
        str(share): {
            "latency_ms_median": float(np.median(seconds[share]) * 1e3),
            "speed_ratio": float(np.median(seconds[0.0]) / np.median(seconds[share])),
            **recall_figures(demo, ranked[share], ranked[0.0]),
            **{f"{name}_shown{k}": found[share][k] for name, found in shown.items() for k in CUTOFFS},
        }
        for share in SHARES
    }
    report = {
        **stamp(),
        "widths": str(demo.plan),
        "requests": len(demo.rows),
        "requests_with_cold_targets": sum(len(t) > 0 for t in demo.cold_targets),
        "cold_targets": int(sum(map(len, demo.cold_targets))),
        "live_sids": demo.snapshot.trie.leaves,
        "seen_sids": len(demo.seen),
        "created": min(CREATED, len(demo.rows)),
        "rows": rows,
    }
    (arguments.run / "cold_start.json").write_text(json.dumps(report, indent=2))
    columns = ("recall10", "recall50", "recall200", "cold_recall50", "cold_recall200")
    new = [f"like_{place}_shown{k}" for place in PLACES for k in CUTOFFS]
    print(f"{'cold_start':>10} {'ms':>6} " + " ".join(f"{c:>14}" for c in (*columns, *new)))
    for name, row in rows.items():
        figures = " ".join(f"{row[c]:14.4f}" for c in (*columns, *new))
        print(f"{name:>10} {row['latency_ms_median']:6.1f} {figures}")
    print(f"report: {arguments.run}/cold_start.json")


def _created(
    demo: TrainedDemo, plain: list[np.ndarray], compared: dict[float, ColdStart | None], *, place: int
) -> dict[float, dict[int, float]]:
    """Share of new ads within each cut-off of their request's answer, by value of `cold_start`."""
    random = np.random.default_rng(place)
    rows, dataset = demo.rows[:CREATED], demo.dataset
    sids, _ = demo.snapshot.sids_of(np.array([plain[i][place - 1] for i in range(len(rows))]))
    sids[:, -1] = random.integers(0, demo.spec.level_sizes[-1], len(sids))
    ids = int(dataset.ad_ids.max()) + 1 + np.arange(len(rows))
    snapshot = index_of(np.append(dataset.ad_ids, ids), np.concatenate([dataset.ad_sids, sids]), demo.spec)
    found = {}
    for share, cold_start in compared.items():
        answers = [
            demo.ads(row, snapshot=snapshot, cold_start=cold_start)
            for row in tqdm(rows, desc=f"like the ad in place {place}, {share}", mininterval=2.0)
        ]
        found[share] = {
            k: float(np.mean([ad in a[:k] for ad, a in zip(ids, answers, strict=True)])) for k in CUTOFFS
        }
    return found


if __name__ == "__main__":
    main()
