"""Goodput of `make loadtest-slo`: answers inside the SLO a second over the configured widths' capacity.

The configured widths are searched without pruning, the floor and the adaptive ones with it: compared is
all that the server does about a load.

Capacity is what they answer at saturation, measured in the same rounds as the variants, before and after
them, on the same core: a machine that changes its speed changes both.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import polars as pl

from benchmarks.pinned_server import Server
from benchmarks.slo_load import Bench, inside, latencies, offer_for
from loadtest.measure import Measured
from loadtest.outcomes import OK, REJECTED
from serving.backend.plans import SearchPlans

OVERLOAD = 3.0  # of the capacity of the configured widths
USERS = 16  # of a closed loop that saturates: a full batch
LEVELS = 3


def capacity(bench: Bench) -> dict[str, float]:
    """What the configured widths do at saturation, and the median of a lone request."""
    with bench.serving("fixed", load_control="fixed", cache="off", prune="off") as server:
        lone = offer_for(bench, server, users=1, seconds=bench.seconds(9.0))
        qps = saturated(bench, server, seconds=bench.seconds(15.0))
    return {"lone_ms": float(np.median(latencies(lone, OK))), "qps": qps}


def saturated(bench: Bench, server: Server, *, seconds: float) -> float:
    """Answers a second to users who always have a request waiting."""
    full = offer_for(bench, server, users=USERS, seconds=seconds, seed=1)
    return full.requests.filter(pl.col("outcome") == OK).height / full.seconds


def goodput(bench: Bench, *, slo_s: float, rounds: int) -> dict[str, Any]:
    """Rounds of: capacity, adaptive and configured widths at three times the capacity, the floor, capacity.

    Both variants have the same admission. The floor's capacity is the bound: the part of a request that no
    width changes, measured.
    """
    widths = bench.base.widths
    floor = str(
        SearchPlans.of(
            bench.base.model_copy(update={"load_control": "adaptive"}), levels=LEVELS
        ).ladder.plans[0]
    )
    settings: dict[str, dict[str, Any]] = {
        "base": {"load_control": "fixed", "prune": "off"},
        "floor": {"load_control": "fixed", "widths": floor},
        "adaptive": {"load_control": "adaptive", "slo_ms": slo_s * 1e3},
        "fixed_admission": {
            "load_control": "adaptive",
            "slo_ms": slo_s * 1e3,
            "ladder": widths,
            "max_widths": widths,
            "prune": "off",
        },
    }
    found: list[dict[str, Any]] = []
    seen: dict[str, list[Measured]] = {"adaptive": [], "fixed_admission": []}
    with ExitStack() as stack:
        servers = {n: stack.enter_context(bench.serving(n, cache="off", **c)) for n, c in settings.items()}
        for number in range(rounds):
            before = saturated(bench, servers["base"], seconds=bench.seconds(9.0))
            for name, measured in seen.items():
                measured.append(
                    offer_for(
                        bench,
                        servers[name],
                        qps=OVERLOAD * before,
                        seconds=bench.seconds(27.0),
                        seed=20 + number,
                    )
                )
            narrow = saturated(bench, servers["floor"], seconds=bench.seconds(9.0))
            qps = (before + saturated(bench, servers["base"], seconds=bench.seconds(9.0))) / 2
            found.append(
                {
                    "qps": qps,
                    "bound": narrow / qps,
                    **{name: inside(measured[-1], slo_s) / qps for name, measured in seen.items()},
                }
            )
    return {
        "rounds": found,
        **{key: float(np.median([r[key] for r in found])) for key in found[0]},
        "variants": {name: _variant(measured, slo_s) for name, measured in seen.items()},
    }


def everybody_in(bench: Bench, *, qps: float, slo_s: float) -> dict[str, Any]:
    """The trivial baseline: configured widths, and a queue that takes all."""
    with bench.serving("fixed", load_control="fixed", cache="off", prune="off") as server:
        return _variant([offer_for(bench, server, qps=OVERLOAD * qps, seconds=bench.seconds(30.0))], slo_s)


def _variant(rounds: list[Measured], slo_s: float) -> dict[str, Any]:
    """Figures of all rounds together; memory from a third of the first round to the end of the last."""
    accepted = np.concatenate([latencies(seen, OK) for seen in rounds])
    rejected = np.concatenate([latencies(seen, REJECTED) for seen in rounds])
    memory = [[s["server_rss_mb"] for s in seen.samples if "server_rss_mb" in s] for seen in rounds]
    warm = memory[0][len(memory[0]) // 3 :][:5]
    outcomes: dict[str, int] = {}
    for seen in rounds:
        for outcome, count in seen.requests["outcome"].value_counts().iter_rows():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
    return {
        "offered_qps": float(np.mean([seen.requests.height / seen.seconds for seen in rounds])),
        "inside_slo_qps": float(np.mean([inside(seen, slo_s) for seen in rounds])),
        "answered_qps": float(np.mean([len(latencies(seen, OK)) / seen.seconds for seen in rounds])),
        "p99_ms": float(np.percentile(accepted, 99)) if len(accepted) else None,
        "rejected": len(rejected),
        "reject_p50_ms": float(np.median(rejected)) if len(rejected) else None,
        "memory_growth": float(np.mean(memory[-1][-5:]) / np.mean(warm)),
        "outcomes": outcomes,
    }
