"""Quiet and changing loads of `make loadtest-slo`; rates are of the measured capacity."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.slo_goodput import LEVELS, OVERLOAD
from benchmarks.slo_load import Bench, latencies, offer_for
from loadtest import report, summary
from loadtest.measure import Measured
from loadtest.outcomes import OK, REJECTED
from loadtest.shapes import SPIKE, Shape
from serving.load.ladder import plan_rows
from serving.search.widths import WidthPlan

IDLE = 0.2  # of the capacity of the configured widths


def idle(bench: Bench, *, qps: float, slo_s: float) -> dict[str, float]:
    """A fifth of the capacity: beams grow."""
    with bench.serving("adaptive", slo_ms=slo_s * 1e3, cache="off") as server:
        rising = offer_for(bench, server, qps=IDLE * qps, seconds=8.0)  # up to its rung
        seen = offer_for(bench, server, qps=IDLE * qps, seconds=bench.seconds(30.0), seed=1)
    rows = plan_rows(WidthPlan.parse(bench.base.widths, levels=LEVELS))
    return {
        "rows": float(seen.requests["beam_rows"].mean()),  # type: ignore[arg-type]
        "rows_ratio": float(seen.requests["beam_rows"].mean()) / rows,  # type: ignore[arg-type]
        "p99_ms": float(np.percentile(latencies(seen, OK), 99)),
        "rejected": len(latencies(rising, REJECTED)) + len(latencies(seen, REJECTED)),
        "changes_per_s": _changes(seen) / seen.seconds,
    }


def _changes(seen: Measured) -> float:
    counts = [s["gr4ad_plan_changes_total"] for s in seen.samples if "gr4ad_plan_changes_total" in s]
    return counts[-1] - counts[0] if counts else float("nan")


def step(bench: Bench, *, qps: float, slo_s: float, picture: Path) -> dict[str, Any]:
    """20 % to 300 % and back; the report with the picture is written to `picture`."""
    seconds = 75.0
    with bench.serving("adaptive", slo_ms=slo_s * 1e3, cache="off") as server:
        offer_for(bench, server, qps=IDLE * qps, seconds=8.0)
        seen = offer_for(bench, server, qps=IDLE * qps, kind="spike", peak=OVERLOAD / IDLE, seconds=seconds)
        steady = offer_for(bench, server, qps=OVERLOAD * qps, seconds=bench.seconds(20.0))
    up, down = (share * seconds for share in SPIKE)
    shape = Shape("spike", IDLE * qps, seconds, OVERLOAD / IDLE)
    _report(seen, bench, shape=shape, slo_s=slo_s, folder=picture)
    base = plan_rows(WidthPlan.parse(bench.base.widths, levels=LEVELS))
    rows = seen.requests.filter(pl.col("outcome") == OK).select("intended_s", "beam_rows").to_numpy()
    first_narrow = rows[(rows[:, 0] >= up - 1.0) & (rows[:, 1] < base), 0]
    shrunk = first_narrow.min() if len(first_narrow) else np.inf
    rejected = seen.requests.filter(pl.col("outcome") == REJECTED)["intended_s"].to_numpy()
    return {
        "settle_up_s": _settled(rows, up, down),
        "settle_down_s": _settled(rows, down, seconds),
        "rejects_before_shrink": int((rejected < shrunk).sum()),
        "rejected": len(rejected),
        "changes_per_s": _changes(steady) / steady.seconds,
        "p99_ms": float(np.percentile(latencies(seen, OK), 99)),
    }


def _settled(rows: np.ndarray, start: float, end: float) -> float:
    """Seconds from `start` until the mean rows of a second stay within a fifth of the phase's later half."""
    phase = rows[(rows[:, 0] >= start) & (rows[:, 0] < end)]
    late = phase[phase[:, 0] >= (start + end) / 2, 1]
    if not len(late):
        return float("nan")
    final = float(np.mean(late))
    off = 0.0
    for second in np.arange(start, end - 0.5, 0.5):
        window = phase[(phase[:, 0] >= second) & (phase[:, 0] < second + 0.5), 1]
        if len(window) and abs(window.mean() / final - 1) > 0.2:
            off = second + 0.5 - start
    return off


def _report(seen: Measured, bench: Bench, *, shape: Shape, slo_s: float, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = summary.summarise(seen.requests, seen.samples, seconds=seen.seconds, cpu_s=seen.cpu_s, workers=1)
    test = report.Test(
        name="step",
        title=f"open loop, {shape.qps:.0f} requests / s and {shape.qps * shape.peak:.0f} in the middle",
        command="make loadtest-slo",
        protocol="grpc",
        settings={"requests": bench.mix.source},
        shape=shape,
        slo_ms=slo_s * 1e3,
        notes=seen.notes,
    )
    report.write(folder, test, requests=seen.requests, samples=seen.samples, found=found, verdicts=[])
