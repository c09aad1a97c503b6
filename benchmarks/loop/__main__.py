"""Weights into a running server, and from it: python -m benchmarks.loop writes build/bench/loop.json."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.loop.kills import kills
from benchmarks.loop.learning import learning
from benchmarks.loop.parts import publishes, swaps
from benchmarks.report import holds, stamp
from benchmarks.trained_run import trained_run

TARGETS = {
    "failed_requests": "<= 0",
    "mixed_versions": "<= 0",
    "p99_with_publishes_ratio": "<= 1.15",
    "publish_p50_s": "<= 5",
    "memory_growth": "<= 1.02",
    "fds_growth": "<= 0",
    "request_creation_ratio": "<= 1.05",
    "feedback_to_weights_p50_s": "<= 20",
    "feedback_to_weights_p99_s": "<= 60",
    "not_learnt": "<= 0",
    "lost": "<= 0",
    "learnt_twice": "<= 0",
    "half_published": "<= 0",
}
PARTS = ("publishes", "swaps", "learning", "kills")
CONFIG = "configs/demo.yaml"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("build/bench/loop.json"), help="[%(default)s]")
    add("--run", type=Path, default=Path("build/bench/loop"), help="folder to work in [%(default)s]")
    add("--quick", action="store_true", help="20 publishes, 20 swaps, 10 reports, 4 kills: 5 minutes")
    add("--publishes", type=int, help="how many [100]")
    add("--swaps", type=int, help="how many [1000]")
    add("--reports", type=int, help="of feedback, how many [100]")
    add("--kills", type=int, help="how many [100]")
    add(
        "--demo",
        type=Path,
        default=Path("build/demo"),
        help="trained run; one is made otherwise [%(default)s]",
    )
    add("--every", type=float, default=4.0, help="seconds between two publishes [%(default)s]")
    add("--only", choices=PARTS, help="one part; the others keep what the file says of them")
    arguments = parser.parse_args()
    run, out = arguments.run.absolute(), arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(out.read_text())["parts"] if arguments.only and out.is_file() else {}
    for name in (arguments.only,) if arguments.only else PARTS:
        began = time.monotonic()
        if name == "publishes":
            count = arguments.publishes or (20 if arguments.quick else 100)
            figures = publishes(run / name, count=count, every_s=arguments.every, say=_say)
        elif name == "swaps":
            count = arguments.swaps or (20 if arguments.quick else 1_000)
            figures = swaps(run / name, count=count, say=_say)
        else:
            demo = trained_run(arguments.demo, run, config=CONFIG)
            few = 10 if name == "learning" else 4
            wanted = arguments.reports if name == "learning" else arguments.kills
            part = learning if name == "learning" else kills
            count = wanted or (few if arguments.quick else 100)
            figures = part(run / name, demo=demo, config=CONFIG, count=count, say=_say)
        found[name] = figures | {"seconds": round(time.monotonic() - began)} | stamp()
        out.write_text(json.dumps(summary(found), indent=1))  # another part may fail
    report = summary(found)
    print(json.dumps({name: report[name] for name in report if name != "parts"}, indent=1))
    print(out)


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Figures of all parts, and which of the targets they miss."""
    figures: dict[str, Any] = {}
    for part in found.values():
        figures |= {name: value for name, value in part.items() if name not in ("environment", "seconds")}
    missed = [name for name, bound in TARGETS.items() if not holds(figures.get(name), bound)]
    return figures | {"missed": missed, "targets": TARGETS, "parts": found}


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


if __name__ == "__main__":
    main()
