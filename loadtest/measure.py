"""Offers a load to a server, and collects what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from loadtest.mix import Mix
from loadtest.options import Load
from loadtest.processes import LoadTestError, Workers
from loadtest.sampler import Sampler
from loadtest.summary import read_requests


@dataclass
class Measured:
    """What a test left behind.

    Attributes:
        requests: of `summary.read_requests`.
        samples: of `Sampler`.
        seconds: how long load was offered.
        cpu_s: CPU seconds of the client's processes.
        stopped: by Ctrl-C.
        notes: what a reader of the report must know.
    """

    requests: pl.DataFrame
    samples: list[dict[str, Any]]
    seconds: float
    cpu_s: float
    stopped: bool
    notes: list[str]


def measure(load: Load, mix: Mix, folder: Path, *, metrics_url: str | None, pid: int | None) -> Measured:
    """Make the load and collect what came of it; Ctrl-C ends it early, a second one ends everything.

    Raises:
        LoadTestError: no answer to the first request, a worker that failed, or not one request.
    """
    stopped, notes = False, []
    with Workers(load, mix, folder) as workers:
        start = workers.go()
        sampler = Sampler(metrics_url=metrics_url, pid=pid, start=start)
        sampler.start()
        seconds = load.shape.duration_s
        try:
            try:
                workers.wait()
            except KeyboardInterrupt:
                seconds = min(seconds, max(time.monotonic() - start, 1e-3))
                stopped = True
                notes.append(f"stopped after {seconds:.1f} of {load.shape.duration_s:g} s")
                workers.stop()
                workers.wait()
        finally:
            samples = sampler.stop()
        if metrics_url is not None and not any("success_total" in s for s in samples):
            notes.append(f"no metrics of gr4ad from {metrics_url}")
        requests = read_requests(workers.files())
        if not requests.height:
            raise LoadTestError(
                f"expected requests within {seconds:g} s, got none: raise --qps or --duration"
            )
        return Measured(
            requests=requests,
            samples=samples,
            seconds=seconds,
            cpu_s=workers.cpu_s(),
            stopped=stopped,
            notes=notes,
        )
