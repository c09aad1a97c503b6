"""Cells of a benchmark, timed interleaved: what differs between two of them is not the minute they ran in."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Cell:
    """One row of the table.

    Attributes:
        name: key of the row.
        label: what a reader sees.
        run: answers the requests with these numbers; this is what is timed.
        check: of an answer, how many results were invalid and how many requests got too few.
        batch: requests of a batch when throughput is measured; 1 for engines that take one at a time.
        every: takes part in one of so many rounds (slow engines).
        seconds: by batch size, seconds of each call.
    """

    name: str
    label: str
    run: Callable[[np.ndarray], Any]
    check: Callable[[Any], tuple[int, int]] = lambda answer: (0, 0)
    batch: int = 4
    every: int = 1
    seconds: dict[int, list[float]] = field(default_factory=dict)
    invalid: int = 0
    short: int = 0

    def call(self, rows: np.ndarray, *, count: bool = True) -> None:
        """Run and time one batch."""
        began = time.perf_counter()
        answer = self.run(rows)
        elapsed = time.perf_counter() - began
        invalid, short = self.check(answer)
        self.invalid += invalid
        self.short += short
        if count:
            self.seconds.setdefault(len(rows), []).append(elapsed)

    def row(self) -> dict:
        """Medians and p95 as a JSON row; a cell with a wrong answer has no figures."""
        row: dict = {"label": self.label, "invalid": self.invalid, "short": self.short}
        if self.invalid or self.short:
            return row
        for size, label in ((1, "latency_ms"), (self.batch, "batch_ms")):
            values = np.array(self.seconds[size]) * 1e3
            row[label] = {"median": float(np.median(values)), "p95": float(np.percentile(values, 95))}
        qps = self.batch / np.array(self.seconds[self.batch])
        row["qps"] = {"median": float(np.median(qps)), "p5": float(np.percentile(qps, 5))}
        row |= {"batch": self.batch, "samples": len(self.seconds[1])}
        return row


def interleave(
    cells: list[Cell],
    *,
    rounds: int,
    requests: int,
    seed: int = 0,
    between: Callable[[], None] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Every round gives each cell a turn, in random order: one request, and a batch.

    A call after another engine's finds its weights gone from the caches. So every call is made twice and the
    second is timed, except by cells whose calls are so long (`every` > 1) that it makes no difference.

    Args:
        cells: rows.
        rounds: timed rounds, after one that warms up.
        requests: requests to draw from.
        seed: of the draws.
        between: called once a round, timed elsewhere (e.g. a GEMM).
        progress: told how far it is.
    """
    random = np.random.default_rng(seed)
    for round_number in range(rounds + 1):
        progress(f"round {round_number} of {rounds}")
        for at in random.permutation(len(cells)):
            cell = cells[at]
            if round_number % cell.every and round_number:
                continue
            for size in {1, cell.batch}:
                rows = random.integers(0, requests, size)
                if cell.every == 1 or not round_number:
                    cell.call(rows, count=False)
                if round_number:
                    cell.call(rows)
        if between is not None and round_number:
            between()


def best_gemm(*, seconds: float = 0.15) -> Callable[[], None]:
    """Measures torch's FP32 matrix product; `gflops` of the returned function collects GFLOP/s by shape."""
    import torch

    shapes = ((256, 256, 1024), (512, 1024, 256), (1024, 1024, 1024), (2048, 2048, 2048))
    operands = {s: (torch.randn(s[0], s[1]), torch.randn(s[1], s[2])) for s in shapes}
    gflops: dict[tuple[int, ...], list[float]] = {s: [] for s in shapes}

    def measure() -> None:
        for shape, (a, b) in operands.items():
            flop = 2.0 * shape[0] * shape[1] * shape[2]
            count, began = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - began) < seconds / len(shapes) or count < 1:
                torch.mm(a, b)
                count += 1
            gflops[shape].append(flop * count / elapsed / 1e9)

    measure.gflops = gflops  # type: ignore[attr-defined]
    return measure
