"""Arrivals of an open loop: a Poisson process whose rate is a shape."""

from __future__ import annotations

import numpy as np

from loadtest.shapes import Shape

_GRID = 20_000  # points of the inverse of the expected count; between them the rate counts as constant


def poisson_arrivals(shape: Shape, *, seed: int, worker: int = 0, workers: int = 1) -> np.ndarray:
    """Seconds from the start, ascending float64 [n], at which requests arrive.

    Arrivals of a unit-rate process, E_1, E_1 + E_2, .. with E exponential, are mapped through the inverse of
    the expected count: a process of rate `shape.rate`, exactly. Each of several workers has an independent
    process of its share of the rate; together they are one Poisson process of the whole rate.

    Args:
        shape: the rate.
        seed: the same seed and worker give the same arrivals.
        worker: number of this worker, from 0.
        workers: how many there are.
    """
    random = np.random.default_rng([seed, worker])
    total = float(shape.expected(shape.duration_s)) / workers
    counted: list[np.ndarray] = []
    last = 0.0
    while last < total:
        steps = random.exponential(size=max(64, int((total - last) * 1.1)))
        counted.append(last + np.cumsum(steps))
        last = counted[-1][-1]
    units = np.concatenate(counted)
    grid = np.linspace(0, shape.duration_s, _GRID)
    return np.interp(units[units < total], shape.expected(grid) / workers, grid)
