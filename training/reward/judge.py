"""A ranker judged on rows of a later part."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.reward.calibration import Calibration
from training.reward.measures import auc, auc_by_request, base_loss, calibration, log_loss
from training.reward.ranker import Predicted
from training.reward.rows import Rows


def judge(predicted: Predicted, rows: Rows, line: Calibration) -> dict[str, Any]:
    """AUC, log loss beside that of the base rate, calibration of p, of the value, and of their product."""
    p, value = line.probability(predicted), line.value(predicted, rows.features.value)
    had, weight = rows.had, rows.weight
    return {
        "auc": auc(p, had, weight),
        "auc_by_request": auc_by_request(p, had, rows.request),
        "log_loss": log_loss(p, had, weight),
        "base_log_loss": base_loss(had, weight),
        "value_rmse": _rmse(value[had], rows.value[had]),
        "value_rmse_of_ad_mean": _rmse(rows.features.value[had], rows.value[had]),
        "p": calibration(p, had.astype(np.float64), weight),
        "value": calibration(value[had], rows.value[had].astype(np.float64), weight[had]),
        "reward": calibration(p * value, rows.value.astype(np.float64), weight),
    }


def _rmse(expected: np.ndarray, came: np.ndarray) -> float:
    return float(np.sqrt(np.mean((expected - came) ** 2)))
