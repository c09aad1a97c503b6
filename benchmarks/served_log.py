"""What the served log costs: the same requests with it, without it, and with its sink gone, in turn.

    python -m benchmarks.served_log             writes build/bench/served_log.json; --quick takes 2 minutes

Three servers of one bundle with seeded weights, one core each in its turn, answers checked against the search
in this process. Load control is off, since widths that follow the load would hide the difference.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import stamp
from benchmarks.seeded_run import prepare
from benchmarks.triton_load import compare, deployed
from export.render import render
from serving.backend.settings import ServingConfig
from serving.served_log.segments import segments
from serving.served_log.settings import ServedLogConfig
from training.preset.preset import Preset, add_preset_arguments

LOAD = 8  # requests outstanding
NOWHERE = "redis://127.0.0.1:9/0"


def main() -> int:
    """Measure, print, write; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser, default="configs/demo.yaml")
    parser.add_argument("--run", type=Path, default=Path("build/bench"), help="work folder [build/bench]")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a small catalogue")
    arguments = parser.parse_args()
    preset = Preset.load(arguments.config, arguments.overrides)
    result = stamp() | measure(
        preset, arguments.run, quick=arguments.quick, say=lambda text: print(text, flush=True)
    )
    text = json.dumps(result, indent=1)
    arguments.run.mkdir(parents=True, exist_ok=True)
    (arguments.run / "served_log.json").write_text(text + "\n")
    print(text)
    return 0 if result["served_log_qps_ratio"] is not None else 1


def measure(
    preset: Preset, run: Path, *, quick: bool = False, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Figures of three servers.

    Args:
        preset: sizes of the model, and what is served with; load control and cache are left out.
        run: work folder; the bundle in it is used again.
        quick: fewer rounds, a small catalogue.
        say: is told what is done.

    Returns:
        `served_log_qps_ratio`, on by off, median over the rounds, and `sink_gone_qps_ratio` likewise, with
        the least and the most of the rounds; None where a request failed or was answered wrong.
        `served_log_cpu_ratio`, of the server's CPU time a request, which others on the machine blur less.
        `rows`, and the log's `records` and `bytes_per_record`.
    """
    fixed = preset.serving.model_copy(update={"load_control": "fixed", "cache": "off"})
    base = run / "served_log"
    prepare(base, ads=10_000 if quick else 100_000, preset=preset.model_copy(update={"serving": fixed}))
    log = (base / "log").absolute()
    shutil.rmtree(log, ignore_errors=True)
    more = {
        "on": _repository(base, fixed, name="on", sink="file", folder=str(log)),
        "gone": _repository(base, fixed, name="gone", sink="redis", url=NOWHERE),
    }
    cells = [(name, "triton", LOAD) for name in ("off", *more)]
    rounds, seconds = (5, 3.0) if quick else (15, 4.0)
    with deployed({"off": base}, fixed, more={name: ("off", path) for name, path in more.items()}) as servers:
        rows = compare(servers, cells, rounds=rounds, seconds=seconds, say=say)
        time.sleep(1.0)  # what waits is written
    lines, size = _written(log)
    cpu_ms = {row["variant"]: row.get("cpu_ms") for row in rows}
    cpu_ratio = cpu_ms["on"] / cpu_ms["off"] if cpu_ms["on"] and cpu_ms["off"] else None
    return {
        **_ratio(rows, "on", name="served_log_qps_ratio"),
        "served_log_cpu_ratio": cpu_ratio and round(cpu_ratio, 4),
        **_ratio(rows, "gone", name="sink_gone_qps_ratio"),
        "cpu_ms": cpu_ms,
        "records": lines,
        "bytes_per_record": round(size / max(lines, 1)),
        "rows": rows,
    }


def _repository(base: Path, serving: ServingConfig, *, name: str, **served_log: Any) -> Path:
    folder = base / f"repository_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    config = serving.model_copy(update={"served_log": ServedLogConfig(**served_log)})
    render(base / "bundles", folder, index=base / "index", config=config)
    return folder


def _ratio(rows: list[dict[str, Any]], variant: str, *, name: str) -> dict[str, Any]:
    found = {row["variant"]: row.get("qps_rounds", []) for row in rows}
    each = [a / b for a, b in zip(found[variant], found["off"], strict=False)]
    if not each:
        return {name: None}
    return {
        name: round(float(np.median(each)), 4),
        f"{name}_rounds": [round(min(each), 4), round(max(each), 4)],
    }


def _written(log: Path) -> tuple[int, int]:
    """Records and bytes of a log."""
    contents = [(log / s.name).read_bytes() for row in segments(log).values() for s in row]
    return sum(content.count(b"\n") for content in contents), sum(map(len, contents))


if __name__ == "__main__":
    raise SystemExit(main())
