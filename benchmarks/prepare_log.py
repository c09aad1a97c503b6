"""Time and memory of `make data` on a seeded log: python -m benchmarks.prepare_log --events 50_000_000.

Writes the log where it is missing, prepares it as a user would, and prints seconds, CPU seconds, and the
largest PSS and RSS of the process, looked at ten times a second.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import psutil

from benchmarks.event_log import write_log


def measure(log: Path, out: Path, overrides: list[str]) -> dict[str, float]:
    """Prepare a log in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    preset = out.with_suffix(".json")  # JSON is YAML
    data = {"source": "parquet", "path": str(log), "split": {"by": "days"}, "target_behaviors": ["click"]}
    preset.write_text(json.dumps({"data": data}))
    command = [sys.executable, "-m", "training.data.prepare", "--config", str(preset), "--out", str(out)]
    began, pss, rss, cpu = time.perf_counter(), 0, 0, 0.0
    running = psutil.Popen(command + [word for text in overrides for word in ("--set", text)])
    while running.poll() is None:
        try:
            memory, times = running.memory_full_info(), running.cpu_times()
        except psutil.Error:  # between its end and the poll
            continue
        pss, rss, cpu = max(pss, memory.pss), max(rss, memory.rss), times.user + times.system
        time.sleep(0.1)
    if running.returncode:
        raise RuntimeError(f"expected the data step to end well, got status {running.returncode}")
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "cpu_seconds": cpu, "pss_gb": pss / 1e9, "rss_gb": rss / 1e9}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prepare_log",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--events", type=int, default=50_000_000)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="for the data step")
    arguments = parser.parse_args()
    log = arguments.folder / f"log-{arguments.events}"
    if not log.exists():
        users, ads = max(arguments.events // 50, 1), max(arguments.events // 250, 1)
        write_log(log, events=arguments.events, users=users, ads=ads)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    out = arguments.folder / f"data-{arguments.events}"
    print(json.dumps(measure(log, out, arguments.overrides), indent=2))


if __name__ == "__main__":
    main()
