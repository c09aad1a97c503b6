"""Compare policies of load control in the simulator.

python -m loadtest.simulate --shape step --low 0.2 --high 3 --out build/simulate
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtest.accounting import plan_changes, settle_time, summary, timeline
from loadtest.json_file import write_json
from loadtest.service import Service
from loadtest.simulator import Cluster, Run, simulate
from loadtest.threshold_policy import ThresholdPolicy
from loadtest.workload import SHAPES, poisson, shape
from serving.load.controller import LoadController
from serving.load.ladder import Ladder, plan_rows
from serving.load.policy import FixedPolicy, Policy
from serving.load.settings import ControlSettings
from serving.search.widths import WidthPlan

POLICIES = ("fixed", "fixed-admission", "threshold", "controller")

COLUMNS = {
    "offered_qps": "offered/s",
    "completed_qps": "completed/s",
    "goodput_qps": "in SLO/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "rows": "rows/base",
    "turned_away": "turned away",
    "rejected": "rejected",
    "changes_per_s": "changes/s",
}


def main(argv: list[str] | None = None) -> int:
    """Simulate, print a table, write JSON and a picture."""
    args = _arguments(argv)
    base = WidthPlan.parse(args.widths, levels=args.widths.partition(":")[0].count("-") + 1)
    ladder = Ladder.parse(args.ladder, base=base) if args.ladder else Ladder.around(base)
    rows = plan_rows(base)
    cluster = Cluster(
        replicas=args.replicas,
        instances=args.instances,
        max_batch=args.max_batch,
        max_queue=args.max_queue,
        balancer=args.balancer,
        metrics=not args.no_metrics,
        stamps=not args.no_stamps,
    )
    service = Service.of(
        args.batch_ms / 1e3,
        rows=rows,
        max_batch=args.max_batch,
        fixed=args.fixed,
        once=args.once,
        noise=args.noise,
    )
    qps = capacity_qps(service, cluster, rows)
    rate = shape(args.shape, low=args.low, high=args.high, duration_s=args.duration)
    arrivals = poisson(rate, qps=qps, duration_s=args.duration, seed=args.seed)
    settings = ControlSettings(
        slo_s=args.slo_ms / 1e3,
        instances=args.instances,
        max_batch=args.max_batch,
        max_queue=args.max_queue,
    )
    print(
        f"{len(arrivals):,} requests in {args.duration:g} s, {args.shape} {args.low:g} to {args.high:g} "
        f"x {qps:,.0f}/s (what {base} serves), SLO {args.slo_ms:g} ms, full batch {args.batch_ms:g} ms of "
        f"which {args.fixed:.0%} fixed\nladder {ladder}, the floor serves "
        f"{capacity_qps(service, cluster, ladder.rows[0]) / qps:.2f} x the base plan"
    )
    runs: dict[str, Run] = {}
    results: dict[str, dict[str, Any]] = {}
    for name in args.policies:
        began = time.perf_counter()
        runs[name] = simulate(
            arrivals,
            duration_s=args.duration,
            cluster=cluster,
            service=service,
            make_policy=maker(name, ladder, settings),
            seed=args.seed,
        )
        results[name] = summary(runs[name], slo_s=settings.slo_s, base_rows=rows) | {
            "simulated_in_s": time.perf_counter() - began
        }
        if args.shape == "step":
            results[name] |= step_figures(runs[name], args.duration)
        print(f"  {name}: {results[name]['simulated_in_s']:.1f} s")
    print(table(results))
    lines = {
        name: timeline(run, slo_s=settings.slo_s, base_rows=rows, window_s=args.window)
        for name, run in runs.items()
    }
    args.out.mkdir(parents=True, exist_ok=True)
    content = {
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "ladder": str(ladder),
        "base_capacity_qps": qps,
        "results": results,
        "timeline": lines,
    }
    write_json(args.out / "simulation.json", content)
    draw(lines, args.out / "simulation.png", slo_ms=args.slo_ms)
    print(f"wrote {args.out / 'simulation.json'} and {args.out / 'simulation.png'}")
    return 0


def capacity_qps(service: Service, cluster: Cluster, rows: float) -> float:
    """Requests a second that the cluster serves at full batches of a plan."""
    host = (service.entry_s + service.answer_s) if service.shared_core else 0.0
    each = cluster.max_batch / (service.seconds(cluster.max_batch, rows) + cluster.max_batch * host)
    return cluster.replicas * cluster.instances * each


def maker(name: str, ladder: Ladder, settings: ControlSettings) -> Callable[[], Policy]:
    """Constructor of a policy by its name.

    Raises:
        ValueError: no such policy.
    """
    base = ladder.plans[ladder.base]
    makers: dict[str, Callable[[], Policy]] = {
        "fixed": lambda: FixedPolicy(base),
        # The same widths, but late requests are turned away: what admission alone is worth.
        "fixed-admission": lambda: LoadController(Ladder((base,), 0), settings=settings),
        "threshold": lambda: ThresholdPolicy(
            ladder, instances=settings.instances, max_batch=settings.max_batch
        ),
        "controller": lambda: LoadController(ladder, settings=settings),
    }
    if name not in makers:
        raise ValueError(f"policy: expected one of {', '.join(makers)}, got {name!r}")
    return makers[name]


def step_figures(run: Run, duration_s: float) -> dict[str, float]:
    """How a step in the middle third was taken: settling, and what came first, narrower or rejected."""
    third = duration_s / 3
    before = run.searches[run.searches[:, 0] < third]
    rows = before[-1, 3] if len(before) else math.inf
    narrower = run.searches[(run.searches[:, 0] >= third) & (run.searches[:, 3] < rows), 0]
    away = run.finished[(run.status >= 2) & (run.finished >= third)]
    return {
        "settle_up_s": settle_time(run, start=third, end=2 * third),
        "settle_down_s": settle_time(run, start=2 * third, end=duration_s),
        "narrower_after_s": float(narrower.min() - third) if len(narrower) else math.nan,
        "first_rejection_after_s": float(away.min() - third) if len(away) else math.nan,
        "steady_changes_per_s": max(
            plan_changes(run, since=third * i + 5, until=third * (i + 1)) for i in range(3)
        ),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """One row a policy."""
    columns = dict(COLUMNS)
    if any("settle_up_s" in r for r in results.values()):
        columns |= {
            "settle_up_s": "settle up s",
            "settle_down_s": "down s",
            "narrower_after_s": "narrower after s",
            "first_rejection_after_s": "rejects after s",
        }
    lines = [["policy", *columns.values()]]
    for name, result in results.items():
        lines.append([name, *(_number(result.get(key, math.nan)) for key in columns)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def draw(lines: dict[str, dict[str, list[float]]], path: Path, *, slo_ms: float) -> None:
    """Offered and completed requests, width, queue, p99 and rejections on one axis of time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = (
        ("completed", "requests/s"),
        ("rows", "rows / base"),
        ("queue", "waiting"),
        ("p99_ms", "p99, ms"),
        ("rejected", "rejected/s"),
    )
    figure, axes = plt.subplots(len(rows), 1, sharex=True, figsize=(10, 11), constrained_layout=True)
    for axis, (key, label) in zip(axes, rows, strict=True):
        if key == "completed":
            first = next(iter(lines.values()))
            axis.plot(first["time"], first["offered"], color="0.6", linewidth=1, label="offered")
        if key == "p99_ms":
            axis.axhline(slo_ms, color="0.6", linestyle="--", linewidth=1)
            axis.set_yscale("log")
        for name, line in lines.items():
            axis.plot(line["time"], line[key], linewidth=1.2, label=name)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend(ncols=len(lines) + 1, fontsize=8, loc="upper right")
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.simulate",
        description="Simulate replicas under load with fixed widths, a threshold table and the load "
        "controller that serves. A load of 1 is what the configured plan can serve at full batches.",
        epilog="example: python -m loadtest.simulate --shape step --low 0.2 --high 3 --duration 60",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="step", help="load over time; constant runs at --high")
    add("--low", type=float, default=0.2, help="load outside the peak")
    add("--high", type=float, default=3.0, help="load at the peak")
    add("--duration", type=float, default=60.0, help="simulated seconds")
    add("--slo-ms", type=float, default=100.0, help="time within which a request must be answered")
    add("--widths", default="128-256-512:64", help="configured plan")
    add("--ladder", default=None, help="rungs, widest first; none: derived from the configured plan")
    add("--batch-ms", type=float, default=30.0, help="time of a full batch of the configured plan")
    add("--fixed", type=float, default=0.35, help="part of that time that no width changes")
    add(
        "--once", type=float, default=0.3, help="part of the fixed time paid once a batch, the rest a request"
    )
    add("--noise", type=float, default=0.1, help="standard deviation of a batch's time, over its mean")
    add("--replicas", type=int, default=4, help="Triton servers")
    add("--instances", type=int, default=2, help="scheduler processes of a server")
    add("--max-batch", type=int, default=16, help="largest batch")
    add("--max-queue", type=int, default=1024, help="requests that may wait in a server")
    add("--balancer", choices=("round-robin", "least-outstanding"), default="least-outstanding", help="how")
    add("--no-metrics", action="store_true", help="the queue's depth cannot be read")
    add("--no-stamps", action="store_true", help="requests do not say when they arrived")
    add("--policies", nargs="+", choices=POLICIES, default=list(POLICIES), help="what to compare")
    add("--window", type=float, default=0.5, help="seconds of a point in the picture")
    add("--seed", type=int, default=0, help="of arrivals and noise: equal seeds, equal results")
    add("--out", type=Path, default=Path("build/simulate"), help="folder for simulation.json and .png")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
