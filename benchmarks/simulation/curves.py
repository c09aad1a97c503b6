"""Arms at equal drift: a metric along a curve of strengths, read where another curve stands.

A curve is the arms of one `curve` in the settings, and the baseline: every objective at strength 0, with
the same requests, targets and steps. Letters: R requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Point:
    """An arm of one seed.

    Attributes:
        drift: its mean log(p / p_ref).
        metric: float64 [R].
    """

    drift: float
    metric: np.ndarray


@dataclass(frozen=True)
class Curve:
    """An objective of one seed.

    Attributes:
        start: the baseline.
        own: the arm that is compared.
        others: the same at other strengths.
    """

    start: Point
    own: Point
    others: Sequence[Point] = ()

    @property
    def moved(self) -> float:
        """How far the arm has drifted beyond the baseline."""
        return self.own.drift - self.start.drift

    def at(self, drift: float) -> np.ndarray:
        """The metric, float64 [R], at a drift between that of two points: linear between those beside it."""
        points = sorted([self.start, self.own, *self.others], key=lambda point: point.drift)
        right = max(int(np.searchsorted([point.drift for point in points], drift)), 1)
        low, high = points[right - 1 : right + 1]
        share = (drift - low.drift) / (high.drift - low.drift) if high.drift > low.drift else 0.0
        return (1 - share) * low.metric + share * high.metric


def at_equal_drift(mine: dict[int, Curve], theirs: dict[int, Curve]) -> tuple[np.ndarray, np.ndarray] | None:
    """The metrics of two objectives, [R] each, at equal drift in each seed, means over the seeds of both.

    In each seed it is the drift of the arm that has drifted less; the metric of the other is read from its
    curve, which begins at the baseline and so passes there. None without a seed, and where the two have
    drifted to different sides of the baseline: at no drift are both.
    """
    pairs = []
    for seed in mine.keys() & theirs.keys():
        both = mine[seed], theirs[seed]
        if both[0].moved * both[1].moved <= 0:
            return None
        drift = min(both, key=lambda curve: abs(curve.moved)).own.drift
        pairs.append([curve.at(drift) for curve in both])
    if not pairs:
        return None
    means = np.mean(pairs, axis=0)
    return means[0], means[1]
