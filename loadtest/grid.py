"""Load control on many machines: every cell of a grid against the targets, in the simulator.

python -m loadtest.grid --out build/simulate
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from loadtest.accounting import settle_time, summary
from loadtest.json_file import write_json
from loadtest.service import Service
from loadtest.simulate import capacity_qps, maker, step_figures
from loadtest.simulator import Cluster, Run, simulate
from loadtest.workload import poisson, shape
from serving.load.ladder import Ladder, plan_rows
from serving.load.settings import ControlSettings
from serving.search.widths import WidthPlan

BASE = WidthPlan((64, 128, 256), 64)
LADDER, ROWS = Ladder.around(BASE), plan_rows(BASE)
REQUEST_S = 0.014  # of a full base batch, for each of its requests
ONCE = 0.3  # of the fixed part is paid once a search
SLO_OF_LONE = 6.0  # as in benchmarks/slo.py
OVERLOAD, IDLE = 3.0, 0.2
ENTRY_S, ANSWER_S = 0.0007, 0.0008  # a twentieth of a request each, as on the server of the demo
STALL_EVERY_S, STALL_S = 3.0, 0.05


@dataclass(frozen=True)
class Cell:
    """One machine and its traffic.

    Attributes:
        fixed: share of a full batch's time that no width changes.
        instances: schedulers.
        max_batch: largest batch.
        noise: deviation of a search's time.
        burst: deviation of the arrival rate from one fifth of a second to the next.
        host: whether entry and answers take time on the core of the search, which stalls now and then.
    """

    fixed: float
    instances: int
    max_batch: int
    noise: float
    burst: float
    host: bool = False


@dataclass(frozen=True)
class Found:
    """Figures of a cell: rates over the capacity of the configured widths, latencies over the SLO."""

    bound: float
    adaptive: float
    fixed_admission: float
    p99: float
    idle_rows: float
    idle_p99: float
    idle_rejected: int
    up_s: float
    down_s: float
    rejects_first: bool

    def misses(self) -> list[str]:
        """Targets that the cell misses, in words."""
        wrong = {
            f"adaptive {self.adaptive:.2f} < 1.5": self.bound >= 1.5 and self.adaptive < 1.5,
            f"fixed {self.fixed_admission:.2f} < 0.8": self.fixed_admission < 0.8,
            f"p99 {self.p99:.2f} > 1": self.p99 > 1.0,
            f"quiet p99 {self.idle_p99:.2f} > 0.7": self.idle_p99 > 0.7,
            f"quiet: {self.idle_rejected} rejected": self.idle_rejected > 0,
            f"up {self.up_s:.1f} s > 5": self.up_s > 5.0,
            f"down {self.down_s:.1f} s > 5": self.down_s > 5.0,
            "rejected before narrower": self.rejects_first,
        }
        return [text for text, missed in wrong.items() if missed]


def cells(*, quick: bool) -> Iterator[Cell]:
    """All cells, or the corners."""
    axes: tuple[tuple, ...] = ((0.2, 0.45, 0.7), (1, 2, 4), (1, 4, 16), (0.1, 0.25, 0.4), (0.0, 0.7))
    if quick:
        axes = ((0.2, 0.5), (1, 4), (4, 16), (0.1, 0.25), (0.0,))
    for values in itertools.product(*axes):
        cell = Cell(*values)
        yield cell
        if cell.instances == 1 and not quick:
            yield replace(cell, host=True)


def play(cell: Cell, *, seconds: float = 30.0, seed: int = 0) -> Found:
    """Overload, quiet and a step on one machine; figures leave the first 5 s out, but in the step."""
    full_s = REQUEST_S * cell.max_batch
    service = Service.of(
        full_s, rows=ROWS, max_batch=cell.max_batch, fixed=cell.fixed, once=ONCE, noise=cell.noise
    )
    if cell.host:
        service = replace(
            service, entry_s=ENTRY_S, answer_s=ANSWER_S, stall_every_s=STALL_EVERY_S, stall_s=STALL_S
        )
    cluster = Cluster(replicas=1, instances=cell.instances, max_batch=cell.max_batch)
    slo_s = SLO_OF_LONE * (service.seconds(1, ROWS) + service.entry_s + service.answer_s)
    settings = ControlSettings(slo_s=slo_s, instances=cell.instances, max_batch=cell.max_batch)
    qps = capacity_qps(service, cluster, ROWS)

    def run(policy: str, kind: str, *, low: float, high: float, duration: float) -> Run:
        rate = shape(kind, low=low, high=high, duration_s=duration)
        arrivals = poisson(rate, qps=qps, duration_s=duration, seed=seed, burst=cell.burst)
        return simulate(
            arrivals,
            duration_s=duration,
            cluster=cluster,
            service=service,
            make_policy=maker(policy, LADDER, settings),
            seed=seed,
        )

    def figures(policy: str, load: float) -> dict[str, float]:
        steady = run(policy, "constant", low=0.0, high=load, duration=seconds)
        return summary(steady, slo_s=slo_s, base_rows=ROWS, since=5.0)

    over, plain, quiet = (
        figures("controller", OVERLOAD),
        figures("fixed-admission", OVERLOAD),
        figures("controller", IDLE),
    )
    stepped = run("controller", "step", low=IDLE, high=OVERLOAD, duration=2 * seconds)
    third = 2 * seconds / 3
    step = step_figures(stepped, 2 * seconds)
    return Found(
        bound=capacity_qps(service, cluster, LADDER.rows[0]) / qps,
        adaptive=over["goodput_qps"] / qps,
        fixed_admission=plain["goodput_qps"] / qps,
        p99=over["p99_ms"] / slo_s / 1e3,
        idle_rows=quiet["rows"],
        idle_p99=quiet["p99_ms"] / slo_s / 1e3,
        idle_rejected=int(quiet["rejected"]),
        # Windows and tolerance of `benchmarks.slo_scenarios`.
        up_s=settle_time(stepped, start=third, end=2 * third, window_s=0.5, within=0.2),
        down_s=settle_time(stepped, start=2 * third, end=3 * third, window_s=0.5, within=0.2),
        rejects_first=step["first_rejection_after_s"] < step["narrower_after_s"],
    )


def main(argv: list[str] | None = None) -> int:
    """Play all cells, print those that miss a target, write all to grid.json."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.grid", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the corners only")
    parser.add_argument("--out", type=Path, default=Path("build/simulate"), help="folder for grid.json")
    arguments = parser.parse_args(argv)
    began, results, missed = time.monotonic(), [], 0
    print("fixed  n   M  noise burst host | bound adaptive fixed  p99 | quiet rows  p99 | up   down  misses")
    for cell in cells(quick=arguments.quick):
        found = play(cell)
        misses = found.misses()
        missed += bool(misses)
        results.append(asdict(cell) | asdict(found) | {"misses": misses})
        print(
            f"{cell.fixed:5.2f} {cell.instances:2} {cell.max_batch:3} {cell.noise:6.2f} {cell.burst:5.1f} "
            f"{'yes' if cell.host else ' no':>4} | {found.bound:5.2f} {found.adaptive:8.2f} "
            f"{found.fixed_admission:5.2f} {found.p99:4.2f} | {found.idle_rows:10.2f} "
            f"{found.idle_p99:4.2f} | {found.up_s:3.1f} {found.down_s:6.1f}  {'; '.join(misses)}",
            flush=True,
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "grid.json", {"cells": results})
    print(f"{len(results)} cells, {missed} miss a target; {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
