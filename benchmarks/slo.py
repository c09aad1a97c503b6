"""Load control, overload and cache against a real Triton: make loadtest-slo; writes build/loadtest/slo.json.

Core 0 serves, core 1 makes the load. Rates are multiples of what the configured widths complete at saturation
on that core in the same run, and the SLO is a multiple of a lone request's median, so that figures of another
machine mean the same. Goodput and quiet are measured again with a neighbour on core 0, the same machine at
another speed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.cores import pinned
from benchmarks.neighbour import neighbour
from benchmarks.report import stamp
from benchmarks.slo_cache import cache
from benchmarks.slo_goodput import capacity, everybody_in, goodput
from benchmarks.slo_load import SERVER_CORE, Bench
from benchmarks.slo_scenarios import idle, step
from loadtest.mix import build_mix
from training.preset.preset import Preset, add_preset_arguments

SLO_OF_LONE = 6.0  # SLO over the median of a lone request


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slo", description=__doc__)
    add_preset_arguments(parser, default="configs/demo.yaml")
    parser.add_argument("--run", type=Path, default=Path("build/demo"), help="trained and exported run")
    parser.add_argument("--out", type=Path, default=Path("build/loadtest/slo.json"))
    parser.add_argument("--quick", action="store_true", help="a third of the time")
    arguments = parser.parse_args()
    settings = Preset.load(arguments.config, arguments.overrides).serving
    work = arguments.out.parent / "slo"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    shutil.copytree(arguments.run / "index", work / "index", ignore=shutil.ignore_patterns("writer.lock"))
    # One core: one scheduler, one thread (docs/decisions.md).
    base = settings.model_copy(update={"scheduler_instances": 1, "threads": 1, "max_batch_size": 16})
    mix = build_mix(arguments.run, users=500, num_ads=10, repeats=0.0, window_s=60.0)
    bench = Bench(run=arguments.run, work=work, base=base, mix=mix, quick=arguments.quick)
    began = time.monotonic()
    with pinned({1}):
        found = _at_this_speed(bench, rounds=1 if arguments.quick else 3)
        qps, slo_s = found["capacity"]["qps"], found["slo_s"]
        found["everybody_in"] = everybody_in(bench, qps=qps, slo_s=slo_s)
        _say("everybody_in", found["everybody_in"])
        found["step"] = step(bench, qps=qps, slo_s=slo_s, picture=arguments.out.parent / "step")
        _say("step", found["step"])
        found["cache"] = cache(bench)
        _say("cache", found["cache"])
        with neighbour(SERVER_CORE, at_most_s=600.0):
            found["neighbour"] = _at_this_speed(bench, rounds=1)
    figures = _figures(found, bench)
    content = figures | {"slo_ms": slo_s * 1e3, "scenarios": found, "quick": arguments.quick} | stamp()
    content["seconds"] = round(time.monotonic() - began)
    arguments.out.write_text(json.dumps(content, indent=1))
    print(json.dumps(figures, indent=1))
    print(f"{arguments.out}: {content['seconds']} s")


def _at_this_speed(bench: Bench, *, rounds: int) -> dict[str, Any]:
    """What the machine does as it is now: capacity, from it the SLO, then overload and quiet."""
    found: dict[str, Any] = {"capacity": capacity(bench)}
    qps, slo_s = found["capacity"]["qps"], SLO_OF_LONE * found["capacity"]["lone_ms"] / 1e3
    found["slo_s"] = slo_s
    _say("capacity", found["capacity"] | {"slo_s": slo_s})
    found["goodput"] = goodput(bench, slo_s=slo_s, rounds=rounds)
    _say("goodput", found["goodput"])
    found["idle"] = idle(bench, qps=qps, slo_s=slo_s)
    _say("idle", found["idle"])
    return found


def _figures(found: dict[str, Any], bench: Bench) -> dict[str, Any]:
    variants, step_, slo_ms = found["goodput"]["variants"], found["step"], found["slo_s"] * 1e3
    adaptive, fixed = variants["adaptive"], variants["fixed_admission"]
    return {
        "goodput_adaptive": found["goodput"]["adaptive"],
        "goodput_fixed": found["goodput"]["fixed_admission"],
        "goodput_bound": found["goodput"]["bound"],
        "overload_qps_ratio": adaptive["inside_slo_qps"] / fixed["inside_slo_qps"],
        "overload_p99_over_slo": adaptive["p99_ms"] / slo_ms,
        "reject_p50_ms": adaptive["reject_p50_ms"],
        "crashes": bench.crashes,
        "memory_growth": adaptive["memory_growth"],
        "idle_rejected": found["idle"]["rejected"],
        "idle_rows_ratio": found["idle"]["rows_ratio"],
        "idle_p99_over_slo": found["idle"]["p99_ms"] / slo_ms,
        "settle_up_s": step_["settle_up_s"],
        "settle_down_s": step_["settle_down_s"],
        "rejects_before_shrink": step_["rejects_before_shrink"],
        "plan_changes_per_s": max(step_["changes_per_s"], found["idle"]["changes_per_s"]),
        "cache_qps_ratio": found["cache"]["ratio"],
        "stale_ads": found["cache"]["stale_ads"],
    } | {f"neighbour_{key}": value for key, value in _slow_figures(found["neighbour"]).items()}


def _slow_figures(slow: dict[str, Any]) -> dict[str, float]:
    """Of the same machine with a neighbour on the server's core."""
    slo_ms = slow["slo_s"] * 1e3
    return {
        "goodput_adaptive": slow["goodput"]["adaptive"],
        "goodput_fixed": slow["goodput"]["fixed_admission"],
        "goodput_bound": slow["goodput"]["bound"],
        "overload_p99_over_slo": slow["goodput"]["variants"]["adaptive"]["p99_ms"] / slo_ms,
        "idle_rejected": slow["idle"]["rejected"],
        "idle_p99_over_slo": slow["idle"]["p99_ms"] / slo_ms,
    }


def _say(name: str, figures: dict[str, Any]) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {name}: {json.dumps(figures)}", flush=True)


if __name__ == "__main__":
    main()
