"""How good predictions are: order (AUC), log loss, calibration by decile. Letters: N rows, R requests."""

from __future__ import annotations

from typing import Any

import numpy as np

DECILES = 10


def auc(score: np.ndarray, had: np.ndarray, weight: np.ndarray) -> float:
    """Chance that a row with an outcome scores above one without, equals count half; NaN with one class.

    Args:
        score: float [N].
        had: bool [N].
        weight: float [N], of each row.
    """
    _, at = np.unique(score, return_inverse=True)
    with_, without = (np.bincount(at, weight * of, minlength=at.max(initial=-1) + 1) for of in (had, ~had))
    below = np.cumsum(without) - without / 2
    pairs = with_.sum() * without.sum()
    return float((with_ * below).sum() / pairs) if pairs else float("nan")


def auc_by_request(score: np.ndarray, had: np.ndarray, request: np.ndarray) -> float:
    """Mean of the AUC within each request that has both kinds of rows; request ascends."""
    bounds = np.flatnonzero(np.diff(request)) + 1
    ones = np.ones(len(had))
    parts = zip(*(np.split(of, bounds) for of in (score, had, ones)), strict=True)
    found = [auc(*part) for part in parts]
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def log_loss(p: np.ndarray, had: np.ndarray, weight: np.ndarray) -> float:
    """Weighted mean of -log P(what happened), nats."""
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return float(-np.average(np.where(had, np.log(p), np.log1p(-p)), weights=weight))


def base_loss(had: np.ndarray, weight: np.ndarray) -> float:
    """Log loss of the base rate."""
    return log_loss(np.full(len(had), np.average(had, weights=weight)), had, weight)


def calibration(expected: np.ndarray, came: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    """What was expected beside what came, in all and by decile of what was expected.

    Args:
        expected: float [N], as p or p x value.
        came: float [N], as 1 or 0, or the value.
        weight: float [N]; deciles hold equal weights.

    Returns:
        error: of the sums, over what came (its sign is that of expecting too much); mean_error: mean over
        deciles of |expected - came|, over the mean of what came; deciles: means of each.
    """
    order = np.argsort(expected, kind="stable")
    place = np.cumsum(weight[order]) - weight[order] / 2
    decile = np.minimum((place / weight.sum() * DECILES).astype(int), DECILES - 1)
    weights, expected, came = weight[order], expected[order], came[order]
    sums = np.maximum(np.bincount(decile, weights, minlength=DECILES), 1e-12)
    means = [np.bincount(decile, weights * of, minlength=DECILES) / sums for of in (expected, came)]
    total = [float((weights * of).sum() / weights.sum()) for of in (expected, came)]
    over = max(total[1], 1e-12)
    return {
        "expected": total[0],
        "came": total[1],
        "error": (total[0] - total[1]) / over,
        "mean_error": float(np.abs(means[0] - means[1]).mean() / over),
        "deciles": [{"expected": float(e), "came": float(c)} for e, c in zip(*means, strict=True)],
    }
