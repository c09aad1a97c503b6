"""Predictions brought to what happened: log-odds by a line (Platt 1999), values by a factor.

The line keeps the order of candidates, and its two numbers need few outcomes. Letters: N rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.reward.ranker import Predicted
from training.reward.rows import Rows

_STEPS = 50
_RIDGE = 1.0  # outcomes' worth of belief that the line is the identity


@dataclass(frozen=True)
class Calibration:
    """p = sigmoid(slope * logit + offset); value = factor * ratio * the ad's mean."""

    slope: float = 1.0
    offset: float = 0.0
    factor: float = 1.0

    @classmethod
    def fit(cls, predicted: Predicted, rows: Rows) -> Calibration:
        """The line of the highest weighted likelihood, by Newton's method; the factor that makes sums equal.

        Where nothing came of any row, or something of every one, the line is the identity.
        """
        had = rows.had.astype(np.float64)
        line = np.array([1.0, 0.0])
        if 0 < had.sum() < len(had):
            columns = np.stack([predicted.logit, np.ones(len(had))], axis=1)
            for _ in range(_STEPS):
                p = _sigmoid(columns @ line)
                gradient = columns.T @ (rows.weight * (p - had)) + _RIDGE * (line - [1.0, 0.0])
                curve = (columns.T * (rows.weight * p * (1 - p))) @ columns + _RIDGE * np.eye(2)
                step = np.linalg.solve(curve, gradient)
                line = line - step / max(1.0, float(np.abs(step).max()))  # no leap out of the flat ends
                if np.abs(step).max() < 1e-9:
                    break
        expected = float((rows.weight * had * predicted.ratio * rows.features.value).sum())
        came = float((rows.weight * had * rows.value).sum())
        factor = came / expected if expected > 0 and came > 0 else 1.0
        return cls(float(line[0]), float(line[1]), factor)

    def probability(self, predicted: Predicted) -> np.ndarray:
        """P of a target behavior, float64 [N]."""
        return _sigmoid(self.slope * predicted.logit + self.offset)

    def value(self, predicted: Predicted, mean: np.ndarray) -> np.ndarray:
        """Value expected then, float64 [N]; `mean` is that of each ad."""
        return self.factor * predicted.ratio * mean


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
