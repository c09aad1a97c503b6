"""Whether the expected value is what targets are worth: mean predicted beside mean realised.

The prediction is the one of serving, E[v | y, X] = sum_j p(v in bucket j | y, X) * mean of bucket j, for what
users really turned to, its semantic ID given. A target is an event here, as it is in training.

Letters: N targets, B requests, n targets of a request, T SID levels, V value buckets.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import polars as pl
from sklearn.isotonic import IsotonicRegression

from serving.model.value_correction import UNCORRECTED, ValueCorrection
from serving.search.executor import Executor
from training.data.groups import TargetGroups
from training.data.lists import pad
from training.data.samples import RequestDataset

DECILES = 10
LEAST_TARGETS = 1_000  # a hundred for each point of a correction


class TooFewTargetsError(ValueError):
    """There is too little to fit a correction on."""


class TargetValues(NamedTuple):
    """What targets were worth, and what the model expected of them.

    Attributes:
        predicted: float64 [N], E[v | y, X].
        realised: float64 [N], value of each target's event.
    """

    predicted: np.ndarray
    realised: np.ndarray


def calibration(values: TargetValues) -> dict[str, Any]:
    """How far predicted values are off on average, of all targets and of each tenth of them by prediction.

    error = |mean predicted - mean realised| / |mean realised|. `noise` is the error that 95 of 100 perfect
    predictions stay below, by the spread of the values alone (targets taken as independent).

    Returns:
        `targets`, `predicted`, `realised`, `error`, `noise`, and `by_decile`, a list of the same from the
        lowest tenth up; fewer than ten targets make as many parts. `error` and `noise` are None where the
        mean realised is 0.

    Raises:
        ValueError: no target.
    """
    count = len(values.realised)
    if not count:
        raise ValueError("calibration: expected at least one target, got none")
    order = np.argsort(values.predicted, kind="stable")
    parts = np.array_split(order, min(DECILES, count))
    return _off(values, order) | {"by_decile": [_off(values, part) for part in parts]}


def fit_correction(values: TargetValues) -> ValueCorrection:
    """Isotonic regression of realised on predicted values, through the means of tenths of the targets.

    Only the shape is taken: realised values are scaled to the mean of the predictions first. How dear the
    baskets of some weeks are says little of the next ones, and no order depends on it.

    Raises:
        TooFewTargetsError: fewer than `LEAST_TARGETS`, or targets that are worth nothing on average.
    """
    found = calibration(values)
    if found["targets"] < LEAST_TARGETS or not found["realised"] > 0:
        raise TooFewTargetsError(
            f"value correction: expected {LEAST_TARGETS:,} targets or more with a mean value above 0, got "
            f"{found['targets']:,} with {found['realised']}"
        )
    deciles = pl.DataFrame(found["by_decile"]).group_by("predicted").mean().sort("predicted")
    predicted, realised = deciles["predicted"].to_numpy(), deciles["realised"].to_numpy()
    level = found["predicted"] / found["realised"]
    corrected = IsotonicRegression().fit_transform(predicted, realised) * level
    return ValueCorrection(tuple(zip(predicted.tolist(), (corrected - predicted).tolist(), strict=True)))


def _off(values: TargetValues, rows: np.ndarray) -> dict[str, Any]:
    predicted, realised = values.predicted[rows], values.realised[rows]
    mean, scale = float(realised.mean()), abs(float(realised.mean())) or None
    spread = 1.96 * float((realised - predicted).std()) / len(rows) ** 0.5
    return {
        "targets": len(rows),
        "predicted": float(predicted.mean()),
        "realised": mean,
        "error": scale and abs(float(predicted.mean()) - mean) / scale,
        "noise": scale and spread / scale,
    }


def target_values(
    executor: Executor,
    dataset: RequestDataset,
    *,
    groups: TargetGroups,
    rows: np.ndarray,
    value_table: np.ndarray,
    correction: ValueCorrection = UNCORRECTED,
    batch_size: int,
) -> TargetValues:
    """Expected value of every target of requests, along its own SID (teacher forcing through the graphs).

    Args:
        executor: engine of the model.
        dataset: log and histories.
        groups: requests.
        rows: which of them.
        value_table: float32 [V], mean of each value bucket.
        correction: of expected values.
        batch_size: requests a call.
    """
    predicted, realised = [np.zeros(0)], [np.zeros(0)]
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        events = [dataset.targets(groups, int(row)) for row in batch]
        sids = pad([dataset.ad_sids[dataset.event_ad[e]] for e in events])  # [B, n, T]
        slots, profile = dataset.context(groups, batch)
        logprob = _value_level(executor, slots, profile, sids=sids, buckets=len(value_table))
        found = correction.of(np.exp(logprob) @ value_table).astype(np.float64)  # [B, n]
        predicted += [of_row[: len(e)] for of_row, e in zip(found, events, strict=True)]
        realised += [dataset.log.value[e].astype(np.float64) for e in events]
    return TargetValues(np.concatenate(predicted), np.concatenate(realised))


def _value_level(
    executor: Executor, slots: np.ndarray, profile: np.ndarray, *, sids: np.ndarray, buckets: int
) -> np.ndarray:
    """Log p(v in bucket | y, X) float32 [B, n, V] of SIDs int32 [B, n, T]."""
    batch, count, levels = sids.shape
    _, carry = executor.prefix(slots, profile)
    own_row = np.ascontiguousarray(np.broadcast_to(np.arange(count, dtype=np.int32), (batch, count)))
    parents: list[np.ndarray] = []
    for level in range(2, levels + 2):
        every = np.broadcast_to(np.arange(buckets, dtype=np.int32), (batch, count, buckets))
        allowed = sids[:, :, level - 1 : level] if level <= levels else every
        logprob, carry = executor.tail(
            level,
            carry,
            parents=parents,
            token=np.ascontiguousarray(sids[:, :, level - 2]),
            allowed=np.ascontiguousarray(allowed),
        )
        parents = [*parents, own_row]
    return logprob
