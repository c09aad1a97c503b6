"""How tastes move: walks that are added to the log rates of the response model.

Three of them, each an Ornstein-Uhlenbeck process X in steps of a day, counted from its place on day 0:

    shift(segment, ad, t) = sum over categories, categories within a segment, ads of
                            X(t) - X(0) - v(t) / 2,   v(t) = Var[X(t) - X(0)] = variance (1 - exp(-t / days))

The last term keeps the mean rate as it is: what moves is who buys what, not how much is bought. On day 0 the
shift is 0. `variance` and `days` are those of the demo's logs, see `benchmarks.closed_loop.drift_of_logs`.

Letters: D days, C categories, S segments, A ads, n candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

_BLOCK = 4096  # series that are walked at once: the whole of it in float64 would be large


@dataclass(frozen=True)
class Walk:
    """One process.

    Attributes:
        variance: of the difference between two times far apart.
        days: after which 63 % of it is reached.
    """

    variance: float
    days: float

    def paths(self, count: int, *, days: int, scale: float, random: np.random.Generator) -> np.ndarray:
        """Shifts float32 [D + 1, count] of independent series; the first row is 0.

        Args:
            count: of series.
            days: D.
            scale: times the deviation.
            random: generator.
        """
        deviation = scale * np.sqrt(self.variance / 2)
        kept = np.exp(-1 / self.days)
        out = np.zeros((days + 1, count), np.float32)
        lost = scale**2 * self.variance * (1 - np.exp(-np.arange(days + 1) / self.days)) / 2
        for first in range(0, count, _BLOCK):
            width = min(_BLOCK, count - first)
            x = begin = deviation * random.standard_normal(width)
            for day in range(1, days + 1):
                x = kept * x + deviation * np.sqrt(1 - kept**2) * random.standard_normal(width)
                out[day, first : first + width] = x - begin - lost[day]
        return out


CATEGORY, SEGMENT, AD = Walk(0.17, 70.0), Walk(0.012, 42.0), Walk(0.85, 91.0)


@dataclass(frozen=True)
class Drift:
    """Where all walks are on every day.

    Attributes:
        category: float32 [D + 1, C].
        segment: float32 [D + 1, S, C].
        ad: float32 [D + 1, A].
        of_ad: int64 [A], category of each ad.
    """

    category: np.ndarray
    segment: np.ndarray
    ad: np.ndarray
    of_ad: np.ndarray

    @classmethod
    def draw(cls, of_ad: np.ndarray, *, segments: int, days: int, scale: float, seed: int) -> Self:
        """Draw everything at once.

        Args:
            of_ad: int64 [A], category of each ad, 0 .. C - 1.
            segments: S.
            days: D; later days are as the last one.
            scale: 1 for what the logs have, 0 for none.
            seed: of the draws.
        """
        random = np.random.default_rng([seed, 17])
        categories = int(of_ad.max()) + 1
        segment = SEGMENT.paths(segments * categories, days=days, scale=scale, random=random)
        return cls(
            category=CATEGORY.paths(categories, days=days, scale=scale, random=random),
            segment=segment.reshape(days + 1, segments, categories),
            ad=AD.paths(len(of_ad), days=days, scale=scale, random=random),
            of_ad=of_ad,
        )

    def at(self, day: float, *, segment: int, rows: np.ndarray) -> np.ndarray:
        """Shift float64 [n] of ads, rows int64 [n], for a user of a segment."""
        d = min(int(day), len(self.ad) - 1)
        of = self.of_ad[rows]
        shift: np.ndarray = self.category[d, of] + self.segment[d, segment, of] + self.ad[d, rows]
        return shift.astype(np.float64)
