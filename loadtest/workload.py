"""Arrival times of simulated traffic: Poisson, at a rate that changes with time, smooth or in bursts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Rate = Callable[[np.ndarray], np.ndarray]
"""Load (1 = what the base plan can serve at full batches) at times t, seconds."""

SHAPES = ("constant", "step", "diurnal", "spike", "flash")


def shape(name: str, *, low: float, high: float, duration_s: float) -> Rate:
    """Load over time.

    constant: `high`. step: `low`, `high` for the middle third, `low`. diurnal: a sine between them, two days
    long. spike: `low` with a second of `high` every ten. flash: `low`, a jump to `high` after a fifth that
    decays by half every eighth of the time (flash crowd).

    Raises:
        ValueError: no such shape, or loads out of order.
    """
    if not 0 <= low <= high or high <= 0 or duration_s <= 0:
        raise ValueError(f"load: expected 0 <= low <= high, high and duration > 0, got {low}, {high}")
    third, jump = duration_s / 3, duration_s / 5
    rates: dict[str, Rate] = {
        "constant": lambda t: np.full_like(t, high),
        "step": lambda t: np.where((t >= third) & (t < 2 * third), high, low),
        "diurnal": lambda t: low + (high - low) * (0.5 - 0.5 * np.cos(4 * np.pi * t / duration_s)),
        "spike": lambda t: np.where(t % 10 >= 9, high, low),
        "flash": lambda t: low + (high - low) * (t >= jump) * 0.5 ** (8 * (t - jump) / duration_s),
    }
    if name not in rates:
        raise ValueError(f"load: expected one of {', '.join(rates)}, got {name!r}")
    return rates[name]


def poisson(
    rate: Rate,
    *,
    qps: float,
    duration_s: float,
    seed: int,
    burst: float = 0.0,
    burst_s: float = 0.2,
) -> np.ndarray:
    """Arrival times, float [N]: a Poisson process of intensity qps * rate(t) * bursts(t).

    Args:
        rate: load over time.
        qps: requests a second at a load of 1.
        duration_s: length.
        seed: of the random numbers.
        burst: every `burst_s` has a factor of its own, gamma distributed with mean 1 and this standard
            deviation, so that counts scatter by more than a Poisson process's (a Cox process); 0 for none.
        burst_s: see there.
    """
    rng = np.random.default_rng(seed)
    grid = np.linspace(0.0, duration_s, int(duration_s * 200) + 1)
    middle = (grid[1:] + grid[:-1]) / 2
    intensity = qps * rate(middle)
    if burst > 0:
        factors = rng.gamma(1 / burst**2, burst**2, int(duration_s / burst_s) + 1)
        intensity = intensity * factors[(middle / burst_s).astype(int)]
    expected = np.concatenate([[0.0], np.cumsum(intensity * np.diff(grid))])
    count = rng.poisson(expected[-1])
    # Given their number, arrivals are independent draws from the intensity.
    return np.interp(np.sort(rng.uniform(0.0, expected[-1], count)), expected, grid)
