"""Load control, overload and cache against a real Triton: make loadtest-slo; writes build/loadtest/slo.json.

Core 0 serves, core 1 makes the load. Rates are multiples of what the configured widths complete at saturation
on that core in the same run, and the SLO is a multiple of a lone request's median, so that figures of another
machine mean the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.pinned_server import Server
from benchmarks.report import stamp
from examples.client import send
from export.render import render
from indexer.events.event import PauseEvent, ResumeEvent
from indexer.store.incoming import Incoming
from indexer.store.index_store import IndexStore
from loadtest import report, summary
from loadtest.mix import Mix, build_mix
from loadtest.options import Load
from loadtest.outcomes import OK, REJECTED
from loadtest.run import Measured
from loadtest.run import measure as offer
from loadtest.shapes import SPIKE, Shape
from serving.backend.settings import ServingConfig
from serving.index.reader import MAX_WAIT_S
from serving.load.ladder import plan_rows
from serving.search.widths import WidthPlan
from training.config import load_section

SLO_OF_LONE = 6.0  # SLO over the median of a lone request
OVERLOAD, IDLE = 3.0, 0.2  # of the capacity of the configured widths
REPEATS = 0.278
STALE_TRIES = 20
KEYS = (
    *("overload_qps_ratio", "overload_p99_over_slo", "reject_p50_ms", "crashes", "memory_growth"),
    *("idle_rows_ratio", "idle_p99_over_slo", "settle_up_s", "settle_down_s", "rejects_before_shrink"),
    *("plan_changes_per_s", "cache_qps_ratio", "stale_ads"),
)


@dataclass
class Bench:
    """What all scenarios share."""

    run: Path
    work: Path
    base: ServingConfig
    mix: Mix
    quick: bool
    crashes: int = 0

    def seconds(self, full: float) -> float:
        """Length of a scenario."""
        return full / 3 if self.quick else full

    @contextmanager
    def serving(self, name: str, **changes: Any) -> Iterator[Server]:
        """A server with these settings."""
        repository = self.work / name
        shutil.rmtree(repository, ignore_errors=True)
        config = self.base.model_copy(update=changes)
        render(self.run / "bundles", repository, index=self.work / "index", config=config)
        with Server(repository, cores={0}, log_file=self.work / f"{name}.log") as server:
            offer_for(self, server, qps=5.0, seconds=3.0)  # the first requests are slow
            yield server
            self.crashes += server.poll() is not None


def offer_for(
    bench: Bench,
    server: Server,
    *,
    qps: float = 1.0,
    seconds: float,
    kind: str = "steady",
    peak: float = 4.0,
    users: int = 0,
    repeats: float = 0.0,
    seed: int = 0,
) -> Measured:
    """One load; `users` for a closed loop."""
    load = Load(
        server.grpc_url,
        "grpc",
        Shape(kind, qps, seconds, peak),
        closed_users=users,
        seed=seed,
        deadline_s=30.0,
        max_outstanding=2048,
    )
    mix = Mix(bench.mix.users, bench.mix.live_ads, bench.mix.source, repeats, 60.0)
    folder = bench.work / "load"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return offer(load, mix, folder, metrics_url=server.metrics_url, pid=server.pid)


def inside(measured: Measured, slo_s: float) -> float:
    """Requests a second that were answered within the SLO."""
    done = measured.requests.filter((pl.col("outcome") == OK) & (pl.col("latency_ms") <= slo_s * 1e3))
    return done.height / measured.seconds


def latencies(measured: Measured, outcome: str) -> np.ndarray:
    """Milliseconds of the requests of an outcome."""
    return measured.requests.filter(pl.col("outcome") == outcome)["latency_ms"].to_numpy()


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
        "step",
        f"open loop, {shape.qps:.0f} requests / s and {shape.qps * shape.peak:.0f} in the middle",
        "make loadtest-slo",
        "grpc",
        {"requests": bench.mix.source},
        shape,
        slo_s * 1e3,
        seen.notes,
    )
    report.write(folder, test, seen.requests, seen.samples, found, [])


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
        with urllib.request.urlopen(server.metrics_url, timeout=5) as page:
            families = text_string_to_metric_families(page.read().decode())
            samples = [s for f in families for s in f.samples if s.name == "gr4ad_cache_lookups_total"]
        return sum(s.value for s in samples if s.labels["result"] == "hit")

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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slo", description=__doc__)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--run", type=Path, default=Path("build/demo"), help="trained and exported run")
    parser.add_argument("--out", type=Path, default=Path("build/loadtest/slo.json"))
    parser.add_argument("--quick", action="store_true", help="a third of the time")
    arguments = parser.parse_args()
    work = arguments.out.parent / "slo"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    shutil.copytree(arguments.run / "index", work / "index", ignore=shutil.ignore_patterns("writer.lock"))
    settings = load_section(arguments.config, "serving", ServingConfig)
    # One core: one scheduler, one thread (docs/decisions.md).
    base = settings.model_copy(update={"scheduler_instances": 1, "threads": 1, "max_batch_size": 16})
    mix = build_mix(arguments.run, users=500, num_ads=10, repeats=0.0, window_s=60.0)
    bench = Bench(arguments.run, work, base, mix, arguments.quick)
    began = time.monotonic()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {1})
    try:
        found: dict[str, Any] = {"capacity": capacity(bench)}
        qps, slo_s = found["capacity"]["qps"], SLO_OF_LONE * found["capacity"]["lone_ms"] / 1e3
        _say(f"{qps:.1f} requests/s at saturation, SLO {slo_s * 1e3:.0f} ms")
        found["overload"] = overload(bench, qps=qps, slo_s=slo_s)
        _say(f"overload: {json.dumps(found['overload'])}")
        found["idle"] = idle(bench, qps=qps, slo_s=slo_s)
        _say(f"idle: {json.dumps(found['idle'])}")
        found["step"] = step(bench, qps=qps, slo_s=slo_s, picture=arguments.out.parent / "step")
        _say(f"step: {json.dumps(found['step'])}")
        found["cache"] = cache(bench)
        _say(f"cache: {json.dumps(found['cache'])}")
    finally:
        os.sched_setaffinity(0, before)
    adaptive, strongest = found["overload"]["adaptive"], found["overload"]["fixed_admission"]
    figures = {
        "overload_qps_ratio": adaptive["inside_slo_qps"] / strongest["inside_slo_qps"],
        "overload_p99_over_slo": adaptive["p99_ms"] / (slo_s * 1e3),
        "reject_p50_ms": adaptive["reject_p50_ms"],
        "crashes": bench.crashes,
        "memory_growth": adaptive["memory_growth"],
        "idle_rows_ratio": found["idle"]["rows_ratio"],
        "idle_p99_over_slo": found["idle"]["p99_ms"] / (slo_s * 1e3),
        "settle_up_s": found["step"]["settle_up_s"],
        "settle_down_s": found["step"]["settle_down_s"],
        "rejects_before_shrink": found["step"]["rejects_before_shrink"],
        "plan_changes_per_s": max(found["step"]["changes_per_s"], found["idle"]["changes_per_s"]),
        "cache_qps_ratio": found["cache"]["ratio"],
        "stale_ads": found["cache"]["stale_ads"],
    }
    content = figures | {"slo_ms": slo_s * 1e3, "scenarios": found, "quick": arguments.quick} | stamp()
    content["seconds"] = round(time.monotonic() - began)
    arguments.out.write_text(json.dumps(content, indent=1))
    print(json.dumps(figures, indent=1))
    print(f"{arguments.out}: {content['seconds']} s")


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


if __name__ == "__main__":
    main()
