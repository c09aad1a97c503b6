"""What ads gain that the model never saw, and what the others lose: `make ablate-cold`.

`serving.cold_start` at several values, the same test requests for each, values interleaved in random order
request by request. Besides the recall of test targets, new ads are created: for each of some requests one
with the vector codes of the ad that the model ranks first (or tenth) and a hash code at random, which is what
an ad with the same text gets.
"""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from benchmarks.trained_demo import CUTOFFS, TrainedDemo, compare, index_of, options, write_report
from serving.search.cold_start import ColdStart

SHARES = (0.0, 0.3, 1.0, 2.0, 3.0)
CREATED = 200  # requests that get a new ad
PLACES = (1, 10)


def main() -> None:
    """Command line."""
    arguments = options(__doc__).parse_args()
    demo = TrainedDemo.load(arguments, graphs="cold_start")
    sizes = demo.spec.level_sizes
    compared = {str(s): ColdStart(demo.seen, sizes, s) if s else None for s in SHARES}
    plain = str(SHARES[0])
    ranked, rows = compare(demo, {name: {"cold_start": c} for name, c in compared.items()}, plain=plain)
    for place in PLACES:
        for name, shown in _created(demo, ranked[plain], compared, place=place).items():
            rows[name] |= {f"like_{place}_shown{k}": share for k, share in shown.items()}
    columns = ("recall10", "recall50", "recall200", "cold_recall50", "cold_recall200")
    new = [f"like_{place}_shown{k}" for place in PLACES for k in CUTOFFS]
    print(f"{'cold_start':>10} {'ms':>6} " + " ".join(f"{c:>14}" for c in (*columns, *new)))
    for name, row in rows.items():
        figures = " ".join(f"{row[c]:14.4f}" for c in (*columns, *new))
        print(f"{name:>10} {row['latency_ms_median']:6.1f} {figures}")
    write_report(
        arguments.run / "cold_start.json",
        demo,
        rows,
        live_sids=demo.snapshot.trie.leaves,
        seen_sids=len(demo.seen),
        created=min(CREATED, len(demo.rows)),
    )


def _created(
    demo: TrainedDemo, plain: list[np.ndarray], compared: dict[str, ColdStart | None], *, place: int
) -> dict[str, dict[int, float]]:
    """Share of new ads within each cut-off of their request's answer, by value of `cold_start`."""
    random = np.random.default_rng(place)
    rows, dataset = demo.rows[:CREATED], demo.dataset
    sids, _ = demo.snapshot.sids_of(np.array([plain[i][place - 1] for i in range(len(rows))]))
    sids[:, -1] = random.integers(0, demo.spec.level_sizes[-1], len(sids))
    ids = int(dataset.ad_ids.max()) + 1 + np.arange(len(rows))
    snapshot = index_of(np.append(dataset.ad_ids, ids), np.concatenate([dataset.ad_sids, sids]), demo.spec)
    found = {}
    for name, cold_start in compared.items():
        answers = [
            demo.ads(row, snapshot=snapshot, cold_start=cold_start)
            for row in tqdm(rows, desc=f"like the ad in place {place}, {name}", mininterval=2.0)
        ]
        found[name] = {
            k: float(np.mean([ad in a[:k] for ad, a in zip(ids, answers, strict=True)])) for k in CUTOFFS
        }
    return found


if __name__ == "__main__":
    main()
