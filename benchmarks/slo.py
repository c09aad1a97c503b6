"""Load control, overload and cache against a real Triton: make loadtest-slo; writes build/loadtest/slo.json.

Core 0 serves, core 1 makes the load. Rates are multiples of what the configured widths complete at saturation
on that core in the same run, and the SLO is a multiple of a lone request's median, so that figures of another
machine mean the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.cores import pinned
from benchmarks.report import stamp
from benchmarks.slo_load import Bench
from benchmarks.slo_scenarios import cache, capacity, idle, overload, step
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
