"""Measure the live index: python -m benchmarks.live_index [--quick]; writes build/bench/index.json, a plot.

Key figures: visible_p50_ms, visible_p99_ms (event acknowledged until a Triton answer shows it),
p99_with_updates_ratio, kills, lost, duplicated, verify_clean, build_1m_s, build_10m_peak_gb, reader_start_s,
reader_bytes_per_ad, file_growth, memory_growth.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.live_index import build, growth, kills, visible
from benchmarks.live_index.plot import plot
from benchmarks.report import stamp

PARTS = ("visible", "build", "growth", "kills")
KEYS = (
    *("visible_p50_ms", "visible_p99_ms", "p99_with_updates_ratio", "kills", "lost", "duplicated"),
    *("verify_clean", "build_1m_s", "build_10m_peak_gb", "reader_start_s", "reader_bytes_per_ad"),
    *("file_growth", "memory_growth"),
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live_index", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/index.json"))
    parser.add_argument("--run", type=Path, default=Path("build/bench/live_index"), help="folder to work in")
    parser.add_argument("--quick", action="store_true", help="fewer ads, events and kills: 5 minutes")
    parser.add_argument("--only", choices=PARTS, help="one part; the others keep what the file says of them")
    arguments = parser.parse_args()
    quick, run = arguments.quick, arguments.run
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "visible": lambda: visible.measure(
            run, ads=1_000_000, windows=1 if quick else 4, window_s=15.0, say=_say
        ),
        "build": lambda: build.measure(run, ads=1_000_000, many=2_000_000 if quick else 10_000_000, say=_say),
        "growth": lambda: growth.measure(
            run,
            ads=100_000 if quick else 1_000_000,
            events=300_000 if quick else 10_000_000,
            say=_say,
        ),
        "kills": lambda: kills.measure(
            run, kills=6 if quick else 100, redis_kills=2 if quick else 10, say=_say
        ),
    }
    out: Path = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(out.read_text())["parts"] if arguments.only and out.is_file() else {}
    for name in (arguments.only,) if arguments.only else PARTS:
        began = time.monotonic()
        found[name] = parts[name]() | {"quick": quick} | stamp()
        found[name]["seconds"] = round(time.monotonic() - began)
        report = {key: value for part in found.values() for key, value in part.items() if key in KEYS}
        out.write_text(json.dumps(report | {"parts": found}, indent=1))  # a later part may fail
    if "growth" in found:
        plot(found["growth"], out.with_suffix(".png"))
    print(json.dumps({key: report.get(key) for key in KEYS}, indent=1))
    print(out)


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


if __name__ == "__main__":
    main()
