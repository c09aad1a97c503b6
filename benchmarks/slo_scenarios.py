"""The scenarios of `make loadtest-slo`, each with servers of its own; rates are of the measured capacity."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.pinned_server import Server
from benchmarks.slo_load import Bench, inside, latencies, offer_for
from examples.client import send
from indexer.events.event import PauseEvent, ResumeEvent
from indexer.store.incoming import Incoming
from indexer.store.index_store import IndexStore
from loadtest import report, summary
from loadtest.measure import Measured
from loadtest.outcomes import OK, REJECTED
from loadtest.sampler import read_metrics
from loadtest.shapes import SPIKE, Shape
from serving.index.reader import MAX_WAIT_S
from serving.load.ladder import plan_rows
from serving.search.widths import WidthPlan

OVERLOAD, IDLE = 3.0, 0.2  # of the capacity of the configured widths
REPEATS = 0.278
STALE_TRIES = 20


def capacity(bench: Bench) -> dict[str, float]:
    """What the configured widths do at saturation, and the median of a lone request."""
    with bench.serving("fixed", load_control="fixed", cache="off") as server:
        lone = offer_for(bench, server, users=1, seconds=bench.seconds(9.0))
        full = offer_for(bench, server, users=16, seconds=bench.seconds(15.0), seed=1)
    answered = full.requests.filter(pl.col("outcome") == OK).height
    return {
        "lone_ms": float(np.median(latencies(lone, OK))),
        "qps": answered / full.seconds,
    }


def overload(bench: Bench, *, qps: float, slo_s: float) -> dict[str, Any]:
    """Three times the capacity: adaptive, and the configured widths with the same admission and without."""
    slo_ms, base = slo_s * 1e3, bench.base.widths
    variants: dict[str, dict[str, Any]] = {
        "adaptive": {"load_control": "adaptive"},
        "fixed_admission": {"load_control": "adaptive", "ladder": base, "max_widths": base},
        "fixed": {"load_control": "fixed"},
    }
    found: dict[str, Any] = {}
    for name, changes in variants.items():
        with bench.serving(name, slo_ms=slo_ms, cache="off", **changes) as server:
            seen = offer_for(bench, server, qps=OVERLOAD * qps, seconds=bench.seconds(60.0))
        rejected = latencies(seen, REJECTED)
        accepted = latencies(seen, OK)
        memory = [s["server_rss_mb"] for s in seen.samples if "server_rss_mb" in s]
        found[name] = {
            "offered_qps": seen.requests.height / seen.seconds,
            "inside_slo_qps": inside(seen, slo_s),
            "answered_qps": len(accepted) / seen.seconds,
            "p99_ms": float(np.percentile(accepted, 99)) if len(accepted) else None,
            "rejected": len(rejected),
            "reject_p50_ms": float(np.median(rejected)) if len(rejected) else None,
            "memory_growth": float(np.mean(memory[-5:]) / np.mean(memory[len(memory) // 3 :][:5])),
            "outcomes": dict(seen.requests["outcome"].value_counts().iter_rows()),
        }
    return found


def idle(bench: Bench, *, qps: float, slo_s: float) -> dict[str, float]:
    """A fifth of the capacity: beams grow."""
    with bench.serving("adaptive", slo_ms=slo_s * 1e3, cache="off") as server:
        offer_for(bench, server, qps=IDLE * qps, seconds=8.0)  # up to its rung
        seen = offer_for(bench, server, qps=IDLE * qps, seconds=bench.seconds(30.0), seed=1)
    rows = plan_rows(WidthPlan.parse(bench.base.widths, levels=3))
    return {
        "rows": float(seen.requests["beam_rows"].mean()),  # type: ignore[arg-type]
        "rows_ratio": float(seen.requests["beam_rows"].mean()) / rows,  # type: ignore[arg-type]
        "p99_ms": float(np.percentile(latencies(seen, OK), 99)),
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
    base = plan_rows(WidthPlan.parse(bench.base.widths, levels=3))
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


def cache(bench: Bench) -> dict[str, Any]:
    """Repeats at saturation, with and without the cache, in turns; then ads that are paused while cached."""
    rounds: dict[str, list[float]] = {"local": [], "off": []}
    with (
        bench.serving("cached", load_control="fixed", cache="local") as cached,
        bench.serving("uncached", load_control="fixed", cache="off") as uncached,
    ):
        for number in range(1 if bench.quick else 3):
            for name, server in (("local", cached), ("off", uncached)):
                seen = offer_for(
                    bench,
                    server,
                    users=16,
                    seconds=bench.seconds(20.0),
                    repeats=REPEATS,
                    seed=10 + number,
                )
                rounds[name].append(seen.requests.filter(pl.col("outcome") == OK).height / seen.seconds)
        stale, hits = _stale(bench, cached)
    ratios = [a / b for a, b in zip(rounds["local"], rounds["off"], strict=True)]
    return {"qps": rounds, "ratio": float(np.median(ratios)), "stale_ads": stale, "stale_hits": hits}


def _stale(bench: Bench, server: Server) -> tuple[int, int]:
    """Answers, from the cache, that held an ad after it was paused, and how many came from the cache."""

    def hits() -> float:
        lookups = [s for s in read_metrics(server.metrics_url) if s.name == "gr4ad_cache_lookups_total"]
        return sum(s.value for s in lookups if s.labels["result"] == "hit")

    stale, before = 0, hits()
    with IndexStore(bench.work / "index") as store:
        for tensors in bench.mix.users[:STALE_TRIES]:
            send(server.grpc_url, tensors)
            ads = send(server.grpc_url, tensors)["ad_ids"][0]  # from the cache
            view = store.ad(int(ads[0]))
            assert view is not None
            paused = PauseEvent(ad_id=view.ad_id, version=view.status_version + 1)
            store.apply([Incoming(paused, b"{}", "slo")])
            time.sleep(MAX_WAIT_S + 0.02)  # readers follow within that
            again = send(server.grpc_url, tensors)["ad_ids"][0]
            stale += int(ads[0] in again)
            resumed = ResumeEvent(ad_id=view.ad_id, version=view.status_version + 2)
            store.apply([Incoming(resumed, b"{}", "slo")])
    return stale, int(hits() - before)
