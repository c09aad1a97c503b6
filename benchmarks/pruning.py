"""Exact pruning on and off, on a trained run: `make bench-pruning`; writes build/bench/pruning.json.

In this process: answers compared, beams that the tails see, time. Through Triton on one core: the same
requests to a server that prunes and to one that does not, in turn. Random weights are not sure of anything:
nothing lies far below the best, and pruning shows on trained models only.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.pruning_triton import through_triton
from benchmarks.report import stamp
from benchmarks.trained_demo import TrainedDemo, options, recalls
from serving.engines.metered import MeteredExecutor
from serving.search.beam_search import beam_search
from serving.search.beams import Beams
from serving.search.cold_start import ColdStart
from serving.search.rank import RankBy, beam_worth
from serving.search.widths import WidthPlan
from training.preset.preset import Preset

BASE, WIDE = "128-256-512:64", "256-1024-2048:64"
COUNTS = (10, 20, 50)  # ads
BATCHES = (1, 4, 8)
ALL_VALUED = "128-256-512:512"
TIE, SCORE, VALUE = 1e-6, 1e-5, 1e-4  # apart: scores of a tie, scores and values (relative) of a beam
RECALL = 10
TARGETS = {
    "prune_rows_n10": "<= 0.30",
    "prune_qps_n10": ">= 2.0",
    "prune_qps_n20": ">= 1.4",
    "prune_qps_n50": ">= 0.97",
    "prune_qps_n512": ">= 0.97",
    "prune_differences": "<= 0",
    "wide_vs_base_pruned": "<= 1.3",
    "hf_512_n10": ">= 1.8",
    "ct2_512_n10": ">= 1.8",
}


class Searches:
    """Searches of test requests, with what they took."""

    def __init__(self, demo: TrainedDemo) -> None:
        """Of a trained run, with its cold start as it serves."""
        self._demo, self._executor = demo, MeteredExecutor(demo.executor)
        self._lift = ColdStart(demo.seen, demo.spec.level_sizes, 1.0)

    def run(
        self,
        rows: np.ndarray,
        plan: WidthPlan,
        *,
        num_ads: int,
        pool: int | None,
        by_value: bool = False,
    ) -> tuple[Beams, int, float]:
        """Beams of test requests searched together, rows that the tails saw for each, and seconds of CPU."""
        slots, profile = self._demo.dataset.context(self._demo.groups, rows)
        count = len(rows)
        self._executor.take()
        began = time.process_time()
        beams = beam_search(
            self._executor,
            self._demo.snapshot.trie,
            slots,
            profile,
            plan=plan,
            num_results=np.full(count, num_ads),
            pool=None if pool is None else np.full(count, pool),
            by_value=by_value,
            value_table=self._demo.spec.value_buckets.means,
            value_correction=self._demo.spec.value_correction,
            cold_start=self._lift,
        )
        seconds = time.process_time() - began
        return beams, sum(call.rows for call in self._executor.take()), seconds


def differences(plain: Beams, pruned: Beams, *, count: int, by: RankBy) -> int:
    """Requests whose first `count` beams in an order are not the same: SIDs but for ties, scores, values."""
    first, second = (_ordered(beams, count=count, by=by) for beams in (plain, pruned))
    leaves, scores, values = zip(first, second, strict=True)
    apart = np.abs(scores[0] - scores[1])
    same = leaves[0] == leaves[1]
    wrong = (apart > SCORE) | (~same & (apart > TIE))
    wrong |= same & (np.abs(values[0] - values[1]) > VALUE * np.abs(values[0]))
    return int(wrong.any(axis=1).sum())


def _ordered(beams: Beams, *, count: int, by: RankBy) -> list[np.ndarray]:
    """Leaves, scores and values [B, count], best first."""
    worth = np.stack(
        [beam_worth(s, v, by=by) for s, v in zip(beams.scores, beams.expected_value, strict=True)]
    )
    order = np.argsort(-worth, axis=1, kind="stable")[:, :count]
    arrays = (beams.leaves, beams.scores, beams.expected_value)
    return [np.take_along_axis(array, order, 1) for array in arrays]


def compared(
    searches: Searches,
    rows: np.ndarray,
    plan: WidthPlan,
    *,
    num_ads: int,
    batch: int,
    by: RankBy = "probability",
) -> dict[str, Any]:
    """With pruning over without, the two in turn: rows, time (medians of pairs), requests that differ."""
    by_value = by == "value"
    pool = plan.pool(num_ads, ranked_among=plan.sid[-1] if by_value else 0)
    seen: list[tuple[int, int]] = []
    seconds: list[tuple[float, float]] = []
    wrong = 0
    for number, first in enumerate(range(0, len(rows) - batch + 1, batch)):
        found = {}
        for pruned in (False, True) if number % 2 else (True, False):  # who is second finds warm caches
            found[pruned] = searches.run(
                rows[first : first + batch],
                plan,
                num_ads=num_ads,
                pool=pool if pruned else None,
                by_value=by_value,
            )
        wrong += differences(found[False][0], found[True][0], count=num_ads, by=by)
        seen.append((found[False][1], found[True][1]))
        seconds.append((found[False][2], found[True][2]))
    plain, pruned_rows = np.array(seen).mean(axis=0)
    times = np.array(seconds)
    return {
        "plan": str(plan),
        "num_ads": num_ads,
        "pool": pool,
        "batch": batch,
        "rows": [float(plain), float(pruned_rows)],
        "rows_ratio": float(pruned_rows / plain),
        "cpu_ms": (1e3 * np.median(times, axis=0)).tolist(),
        "speed_ratio": float(np.median(times[:, 0] / times[:, 1])),
        "requests": len(seen) * batch,
        "differences": wrong,
    }


def wide(demo: TrainedDemo, searches: Searches, rows: np.ndarray) -> dict[str, Any]:
    """Ten ads of the wide plan over ten of the base one, both pruned, in turn; recall of both."""
    plans = {name: WidthPlan.parse(text, levels=3) for name, text in (("base", BASE), ("wide", WIDE))}
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    seen: dict[str, list[int]] = {name: [] for name in plans}
    ads: dict[str, list[np.ndarray]] = {name: [] for name in plans}
    for number, row in enumerate(tqdm(rows, desc="wide", mininterval=5.0)):
        for name in list(plans) if number % 2 else list(plans)[::-1]:
            beams, count, time_ = searches.run(np.array([row]), plans[name], num_ads=RECALL, pool=RECALL)
            seconds[name].append(time_)
            seen[name].append(count)
            ads[name].append(demo.snapshot.ads_of_leaves(beams.leaves[0])[1][:RECALL])
    ratio = float(np.median(np.array(seconds["wide"]) / np.array(seconds["base"])))
    targets = demo.targets[: len(rows)]
    return {
        "ratio": ratio,
        **{
            name: {
                "plan": str(plans[name]),
                "rows": float(np.mean(seen[name])),
                f"recall{RECALL}": float(recalls(ads[name], targets, k=RECALL).mean()),
            }
            for name in plans
        },
    }


def in_process(demo: TrainedDemo, *, timed: int) -> dict[str, Any]:
    """All comparisons in this process; but for ten ads one by one, of `timed` requests."""
    searches, plan = Searches(demo), WidthPlan.parse(BASE, levels=3)
    searches.run(demo.rows[:8], plan, num_ads=10, pool=None)  # the first calls are slow
    some = demo.rows[:timed]
    table = []
    for num_ads in COUNTS:
        for batch in BATCHES:
            rows = demo.rows if (num_ads, batch) == (COUNTS[0], 1) else some
            table.append(compared(searches, rows, plan, num_ads=num_ads, batch=batch))
    by_value = {
        text: compared(
            searches,
            some,
            WidthPlan.parse(text, levels=3),
            num_ads=10,
            batch=1,
            by="value",
        )
        for text in (BASE, ALL_VALUED)
    }
    return {"by_probability": table, "by_value": by_value, "wide": wide(demo, searches, some)}


def ratios(found: dict[str, Any]) -> dict[str, float | None]:
    """The figures that targets are about."""
    table = found["in_process"]["by_probability"]
    alone = {row["num_ads"]: row for row in table if row["batch"] == 1}
    every = [*table, *found["in_process"]["by_value"].values()]
    triton = found["triton"] or {}
    return {
        "prune_rows_n10": alone[10]["rows_ratio"],
        "prune_rows_n20": alone[20]["rows_ratio"],
        **{f"prune_qps_n{n}": triton.get(str(n), {}).get("ratio") for n in (10, 20, 50, 512)},
        "prune_differences": sum(row["differences"] for row in every),
        "wide_vs_base_pruned": found["in_process"]["wide"]["ratio"],
        **{key: found["rivals"][key] for key in ("hf_512_n10", "ct2_512_n10") if "rivals" in found},
    }


def measure(arguments: argparse.Namespace, *, against_others: bool = False) -> dict[str, Any]:
    """Everything, of the command line's run; with Hugging Face and CTranslate2 where they are there."""
    demo = TrainedDemo.load(arguments, graphs="onnx")
    found: dict[str, Any] = {"in_process": in_process(demo, timed=arguments.timed), "triton": None}
    if against_others:
        from benchmarks.pruning_rivals import rivals

        searches, plan = Searches(demo), WidthPlan.parse(BASE, levels=3)

        def search(rows: np.ndarray, pruned: bool) -> Any:
            return searches.run(rows, plan, num_ads=10, pool=10 if pruned else None)

        found["rivals"] = rivals(demo, search, threads=arguments.threads, rounds=max(arguments.rounds, 2))
    if arguments.rounds:
        serving = Preset.load(arguments.config, arguments.overrides).serving
        found["triton"] = through_triton(
            arguments.run, serving.model_copy(update={"widths": BASE}), rounds=arguments.rounds
        )
    return {**stamp(), "ratios": ratios(found), "targets": TARGETS, **found}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = options(__doc__ or "")
    made.add_argument("--timed", type=int, default=200, help="requests of all but the first comparison [200]")
    made.add_argument("--rounds", type=int, default=6, help="of every cell through Triton; 0 for none [6]")
    made.add_argument("--out", type=Path, default=Path("build/bench/pruning.json"))
    return made


def main() -> None:
    """Command line."""
    arguments = parser().parse_args()
    found = measure(arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1))
    print(json.dumps(found["ratios"], indent=1))
    print(arguments.out)


if __name__ == "__main__":
    main()
