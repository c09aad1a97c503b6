"""Break a deployment in every known way, count what its users saw: python -m benchmarks.faults.

Writes build/bench/faults.json: a row for each fault (failed requests, wrong answers, seconds to recovery,
looks at which health was false), and the totals over all rows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults import parts
from benchmarks.report import holds, stamp

PARTS: dict[str, Callable[..., parts.Part]] = {
    "server": parts.server,
    "stop": parts.stop,
    "publishes": parts.publishes,
    "soak": parts.soak,
    "sidecar": parts.sidecar,
    "fuzz": parts.fuzz,
    "gateway": parts.gateway,
}
TARGETS = {
    "fuzz_deaths": "<= 0",
    "fuzz_hangs": "<= 0",
    "fuzz_wrong": "<= 0",
    "publish_failed_requests": "<= 0",
    "mixed_versions": "<= 0",
    "unrecovered": "<= 0",
    "slowest_recovery_s": "< 10",
    "false_health": "<= 0",
    "lost": "<= 0",
    "sigterm_failed": "<= 0",
    "soak_pss_growth": "<= 1.05",
    "stub_segfaults": "<= 0",
    "gateway_added_p50_ms": "<= 1",
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/faults.json"))
    parser.add_argument("--run", type=Path, default=Path("build/bench/faults"), help="folder to work in")
    parser.add_argument(
        "--quick", action="store_true", help="fewer faults, publishes and requests: 7 minutes"
    )
    parser.add_argument("--only", choices=PARTS, help="one part; the others keep what the file says of them")
    arguments = parser.parse_args()
    run: Path = arguments.run.absolute()
    out: Path = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(out.read_text())["parts"] if arguments.only and out.is_file() else {}
    for name in (arguments.only,) if arguments.only else PARTS:
        began = time.monotonic()
        figures, rows = PARTS[name](run, quick=arguments.quick, say=_say)
        seconds = round(time.monotonic() - began)
        found[name] = {
            "figures": figures,
            "faults": rows,
            "seconds": seconds,
            "quick": arguments.quick,
        } | stamp()
        out.write_text(json.dumps(summary(found), indent=1))  # a later part may fail
    report = summary(found)
    print(json.dumps({name: report[name] for name in report if name not in ("parts", "faults")}, indent=1))
    print(out)


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Totals over the rows of all parts, their own figures, and the rows."""
    rows = [row for part in found.values() for row in part["faults"]]
    figures = {name: value for part in found.values() for name, value in part["figures"].items()}
    times = [row["recovery_s"] for row in rows if row.get("recovery_s") is not None]
    totals = {
        "unrecovered": sum("recovery_s" in row and row["recovery_s"] is None for row in rows),
        "slowest_recovery_s": round(max(times, default=0.0), 2),
        "false_health": sum(row.get("false_health", 0) for row in rows),
        "lost": sum(row.get("lost", 0) for row in rows),
        "wrong": sum(row.get("wrong", 0) for row in rows),
    }
    missed = [name for name, bound in TARGETS.items() if not holds((figures | totals).get(name), bound)]
    return figures | totals | {"missed": missed, "targets": TARGETS, "faults": rows, "parts": found}


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


if __name__ == "__main__":
    main()
