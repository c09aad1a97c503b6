"""Settings of Triton, measured: `python -m benchmarks.sweep_triton`.

Every setting gets a server of its own. Before and after each of its bursts the same burst goes to a server
with the reference settings, so what the minute did to the machine cancels out. Writes RUN/sweep_triton.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pinned_server import Server
from benchmarks.report import stamp
from benchmarks.seeded_run import prepare
from benchmarks.triton_load import Deployment, deployed, summary
from export.render import render
from launcher.server_files import ServerError
from serving.backend.settings import ServingConfig
from training.preset.preset import Preset, add_preset_arguments

SATURATED = 8
KEYS = ("graph_calls", "scheduler_instances", "queue_delay_us", "max_batch_size", "threads")


def settings(serving: ServingConfig, *, cores: int) -> list[ServingConfig]:
    """The grid without what cannot matter: threads beyond the cores, waiting for what is full anyway.

    With the graphs in the scheduler only instances and threads vary: batches form as they do without.
    """
    grid = itertools.product(("bls", "in_process"), (1, 2), (0, 500, 2000), (1, 4, 8, 16), (1, 2))
    return [
        serving.model_copy(update=dict(zip(KEYS, values, strict=True)))
        for values in grid
        if values[4] <= cores
        and (values[2] == 0 or values[3] > SATURATED)
        and (values[0] == "bls" or (values[2] == 0 and values[3] > SATURATED))
    ]


def try_setting(
    reference: Deployment, run: Path, setting: ServingConfig, *, rounds: int, seconds: float
) -> dict[str, Any]:
    """One row: QPS at saturation, also relative to the reference, and latency of single requests."""
    row: dict[str, Any] = {key: getattr(setting, key) for key in KEYS}
    folder = run / "sweep"
    shutil.rmtree(folder, ignore_errors=True)
    render(run / "bundles", folder, index=run / "index", config=setting)
    try:
        with Server(folder, cores=reference.cores) as server:
            tried = replace(reference, server=server)
            for warmed in (tried, reference):
                warmed.triton(SATURATED, 1.0)
            around = [reference.triton(SATURATED, seconds)]
            full, single = [], []
            for _ in range(rounds):
                full.append(tried.triton(SATURATED, seconds))
                single.append(tried.triton(1, seconds / 2))
                around.append(reference.triton(SATURATED, seconds))
    except ServerError as error:
        return row | {"qps": None, "reason": str(error).splitlines()[0]}
    row |= summary(full)
    row["single_latency_ms"] = summary(single).get("latency_ms")
    pairs = [(around[i].qps + around[i + 1].qps) / 2 for i in range(rounds)]
    if row["qps"] is not None and not any(s.faults for s in around):
        relative = [s.qps / base for s, base in zip(full, pairs, strict=True)]
        row["relative_qps"] = round(float(np.median(relative)), 3)
    return row


def hops(deployment: Deployment, *, seconds: float) -> dict[str, Any]:
    """Where a lone request's milliseconds go (Triton's statistics), and the CPU time at saturation.

    `engine` is the graph models' own time as Triton sees it: ONNX Runtime, and a message there and back.
    """
    deployment.triton(1, 1.0)
    before = deployment.server.statistics()
    deployment.triton(1, seconds)
    seen = {m: c - before.get(m, Counter()) for m, c in deployment.server.statistics().items()}
    requests = seen["gr4ad"]["requests"]
    spent = {
        m: {k: c[k] / requests / 1e6 for k in c if k not in ("requests", "executions")}
        for m, c in seen.items()
    }
    graphs = [m for m in spent if m.startswith("lazyar_")]
    moved = sum(spent[m].get(k, 0.0) for m in graphs for k in ("queue", "input", "output"))
    engine = sum(spent[m]["infer"] for m in graphs)
    total = spent["gr4ad"]["total"]
    milliseconds = {
        "total": total,
        "engine": engine,
        "graph hops (queue, copies)": moved,
        "scheduler besides graphs": spent["beam_scheduler"]["total"] - engine - moved,
        "request_features": spent["request_features"]["total"],
        "ad_resolver": spent["ad_resolver"]["total"],
    }
    cpu = deployment.server.cpu_seconds()
    deployment.triton(SATURATED, seconds)
    cpu = deployment.server.cpu_seconds() - cpu
    return {
        "single_ms": {k: round(v, 2) for k, v in milliseconds.items()},
        "outside_engine": round(1 - engine / total, 3),
        "cpu_share_at_saturation": {m: round(s / cpu.total(), 3) for m, s in cpu.most_common()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Rows, best first."""
    lines = [
        " ".join(f"{k:>{len(k)}}" for k in KEYS) + f"{'qps':>9}{'relative':>10}{'p50 of one':>12}{'p95':>8}"
    ]
    for row in sorted(rows, key=lambda r: -r.get("relative_qps", 0)):
        line = " ".join(f"{row[k]:>{len(k)}}" for k in KEYS)
        if "relative_qps" not in row or not row["single_latency_ms"]:
            lines.append(f"{line}  none: {row.get('reason', 'the reference or single requests failed')}")
            continue
        one = row["single_latency_ms"]
        lines.append(
            f"{line}{row['qps']:>9.1f}{row['relative_qps']:>10.3f}{one['median']:>12.1f}{one['p95']:>8.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser, default="configs/bench.yaml")
    parser.add_argument("--run", type=Path, default=Path("build/bench"))
    parser.add_argument("--ads", type=int, default=100_000, help="size of the catalogue [100000]")
    parser.add_argument("--rounds", type=int, default=2, help="bursts of every setting [2]")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a burst [3]")
    parser.add_argument("--rebuild", action="store_true", help="export and index anew")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers must not outlive it
    run, began = arguments.run / "triton" / "sweep", time.monotonic()
    preset = Preset.load(arguments.config, arguments.overrides)
    serving = preset.serving
    prepare(run, ads=arguments.ads, preset=preset, rebuild=arguments.rebuild)
    cores = sorted(os.sched_getaffinity(0))
    blocks = []
    for count in sorted({1, min(2, len(cores))}):
        # The client keeps to the last core: beside the server where there are only two and it has both.
        with deployed(
            {"reference": run}, serving, server_cores=cores[:count], client_cores=cores[-1:]
        ) as found:
            rows = []
            for setting in settings(serving, cores=count):
                row = try_setting(
                    found["reference"], run, setting, rounds=arguments.rounds, seconds=arguments.seconds
                )
                rows.append(row)
                print({k: row.get(k) for k in (*KEYS, "relative_qps", "reason")}, file=sys.stderr, flush=True)
            block = {
                "server_cores": count,
                "rows": rows,
                "hops": hops(found["reference"], seconds=arguments.seconds),
            }
        blocks.append(block)
        print(f"\nserver on {count} core(s), {SATURATED} requests outstanding\n{table(rows)}")
        print(json.dumps(block["hops"], indent=1), flush=True)
    report = {
        **stamp(),
        "command": "python -m benchmarks.sweep_triton",
        "reference": {key: getattr(serving, key) for key in KEYS},
        "blocks": blocks,
        "seconds": round(time.monotonic() - began),
    }
    path = arguments.run / "sweep_triton.json"
    path.write_text(json.dumps(report, indent=1))
    print(path)


if __name__ == "__main__":
    main()
