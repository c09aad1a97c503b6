"""Load shapes: the offered rate as a function of time, never a number of users.

Every shape moves between the base rate `qps` and `qps * peak`:

    rate(t) = qps (1 + (peak - 1) g(t / duration)),    0 <= g <= 1

so a shape is its g and the integral G of g from 0. `steady` stays at the base rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SPIKE = (0.4, 0.6)  # start and end of the spike, as shares of the duration
FLASH = (0.25, 0.30, 0.15)  # the crowd starts to come, is there, and leaves with this time constant
STAIRS = 5  # levels of `step`, the base rate included

Curve = Callable[[np.ndarray], np.ndarray]


def _spike(x: np.ndarray) -> np.ndarray:
    return ((x >= SPIKE[0]) & (x < SPIKE[1])).astype(float)


def _spike_integral(x: np.ndarray) -> np.ndarray:
    return np.clip(x, *SPIKE) - SPIKE[0]


def _diurnal(x: np.ndarray) -> np.ndarray:
    return (1 - np.cos(2 * np.pi * x)) / 2


def _diurnal_integral(x: np.ndarray) -> np.ndarray:
    return x / 2 - np.sin(2 * np.pi * x) / (4 * np.pi)


def _flash(x: np.ndarray) -> np.ndarray:
    start, top, leave = FLASH
    rise = np.clip((x - start) / (top - start), 0, 1)
    return np.where(x < top, rise, np.exp(-np.maximum(x - top, 0) / leave))


def _flash_integral(x: np.ndarray) -> np.ndarray:
    start, top, leave = FLASH
    rise = np.clip(x - start, 0, top - start)
    return rise**2 / (2 * (top - start)) + leave * (1 - np.exp(-np.maximum(x - top, 0) / leave))


def _stairs(x: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(x * STAIRS), 0, STAIRS - 1) / (STAIRS - 1)


def _stairs_integral(x: np.ndarray) -> np.ndarray:
    level = np.clip(np.floor(x * STAIRS), 0, STAIRS - 1)
    below = level * (level - 1) / 2 / STAIRS  # of the levels 0 .. level - 1
    return (below + level * (x - level / STAIRS)) / (STAIRS - 1)


CURVES: dict[str, tuple[Curve, Curve]] = {
    "steady": (np.zeros_like, np.zeros_like),
    "ramp": (lambda x: x, lambda x: x**2 / 2),
    "step": (_stairs, _stairs_integral),
    "spike": (_spike, _spike_integral),
    "flash-crowd": (_flash, _flash_integral),
    "diurnal": (_diurnal, _diurnal_integral),
}


@dataclass(frozen=True)
class Shape:
    """Offered rate over time.

    Attributes:
        kind: a key of `CURVES`; `diurnal` is one day, night to night, within the duration.
        qps: base rate in requests a second.
        duration_s: length in seconds.
        peak: highest rate as a multiple of the base rate.
    """

    kind: str
    qps: float
    duration_s: float
    peak: float = 4.0

    def __post_init__(self) -> None:
        """Reject what is no load."""
        if self.kind not in CURVES:
            raise ValueError(f"shape: expected one of {', '.join(CURVES)}, got {self.kind!r}")
        for name in ("qps", "duration_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        if not 1 <= self.peak < float("inf"):
            raise ValueError(f"peak: expected a multiple of the base rate, >= 1, got {self.peak}")

    def rate(self, seconds: np.ndarray | float) -> np.ndarray:
        """Requests a second offered at these times; 0 before the start and from the end on."""
        seconds = np.asarray(seconds, float)
        inside = (seconds >= 0) & (seconds < self.duration_s)
        curve = CURVES[self.kind][0](np.clip(seconds / self.duration_s, 0, 1))
        return np.where(inside, self.qps * (1 + (self.peak - 1) * curve), 0.0)

    def expected(self, seconds: np.ndarray | float) -> np.ndarray:
        """Requests expected from the start until these times: the integral of `rate`."""
        seconds = np.clip(np.asarray(seconds, float), 0, self.duration_s)
        integral = CURVES[self.kind][1](seconds / self.duration_s)
        return self.qps * (seconds + (self.peak - 1) * self.duration_s * integral)
