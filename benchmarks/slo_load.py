"""What the scenarios of `make loadtest-slo` share: servers with other settings, a load, and figures of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.pinned_server import Server
from export.render import render
from loadtest.measure import Measured, measure
from loadtest.mix import Mix
from loadtest.options import Load
from loadtest.outcomes import OK
from loadtest.shapes import Shape
from serving.backend.settings import ServingConfig

SERVER_CORE = 0


@dataclass
class Bench:
    """What all scenarios share."""

    run: Path
    work: Path
    base: ServingConfig
    mix: Mix
    quick: bool
    crashes: int = 0

    def seconds(self, full: float) -> float:
        """Length of a scenario."""
        return full / 3 if self.quick else full

    @contextmanager
    def serving(self, name: str, **changes: Any) -> Iterator[Server]:
        """A server with these settings."""
        repository = self.work / name
        shutil.rmtree(repository, ignore_errors=True)
        config = self.base.model_copy(update=changes)
        render(self.run / "bundles", repository, index=self.work / "index", config=config)
        with Server(repository, cores={SERVER_CORE}, log_file=self.work / f"{name}.log") as server:
            offer_for(self, server, qps=5.0, seconds=3.0)  # the first requests are slow
            yield server
            self.crashes += server.poll() is not None


def offer_for(
    bench: Bench,
    server: Server,
    *,
    qps: float = 1.0,
    seconds: float,
    kind: str = "steady",
    peak: float = 4.0,
    users: int = 0,
    repeats: float = 0.0,
    seed: int = 0,
) -> Measured:
    """One load; `users` for a closed loop."""
    load = Load(
        server.grpc_url,
        "grpc",
        Shape(kind, qps, seconds, peak),
        closed_users=users,
        seed=seed,
        deadline_s=30.0,
        max_outstanding=2048,
    )
    mix = replace(bench.mix, repeats=repeats)
    folder = bench.work / "load"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return measure(load, mix, folder, metrics_url=server.metrics_url, pid=server.pid)


def inside(measured: Measured, slo_s: float) -> float:
    """Requests a second that were answered within the SLO."""
    done = measured.requests.filter((pl.col("outcome") == OK) & (pl.col("latency_ms") <= slo_s * 1e3))
    return done.height / measured.seconds


def latencies(measured: Measured, outcome: str) -> np.ndarray:
    """Milliseconds of the requests of an outcome."""
    return measured.requests.filter(pl.col("outcome") == outcome)["latency_ms"].to_numpy()
