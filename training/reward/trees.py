"""Gradient-boosted trees: one ensemble for the chance of an outcome, one for its value.

LightGBM (Ke et al. 2017), stored as its text, which its parser reads and nothing executes. Categories are
read as numbers: subsets of them (LightGBM's own way) fitted the training users, not others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import lightgbm
import numpy as np

from serving.ranking.features import Features
from training.preset.reward import RewardConfig
from training.reward.ranker import Predicted
from training.reward.rows import Rows

_PARTS = ("odds", "value")
_PATIENCE = 30  # trees without a gain on validation
_MIN_ROWS = 100  # of a leaf
# A leaf must hold so much of the curvature, about that share of all outcomes: rows that stand for many others
# make small leaves noisy. On the demo it takes the error by decile from 15 to 5 %.
_MIN_SHARE = 0.0035


class Trees:
    """Two LightGBM models; see `Ranker`."""

    def __init__(self, odds: lightgbm.Booster, value: lightgbm.Booster) -> None:
        """Of log-odds, and of the log of the ratio."""
        self._odds, self._value = odds, value

    @classmethod
    def fit(cls, rows: Rows, validation: Rows, config: RewardConfig) -> Self:
        """Fit; validation says after how many trees to stop.

        The value's loss is Poisson's of the ratio, weighed by the ad's mean: its minimum has the right sum of
        values, whatever their spread.
        """
        outcomes = float((rows.weight * rows.had).sum())
        odds = _boost(
            _dataset(rows, rows.had, weight=rows.weight),
            _dataset(validation, validation.had, weight=validation.weight),
            rows=len(rows),
            config=config,
            objective={"objective": "binary", "min_sum_hessian_in_leaf": _MIN_SHARE * outcomes},
        )
        value = _boost(
            *(_ratios(part.take(part.had)) for part in (rows, validation)),
            rows=int(rows.had.sum()),
            config=config,
            objective={"objective": "poisson"},
        )
        return cls(odds, value)

    @property
    def boosters(self) -> tuple[lightgbm.Booster, lightgbm.Booster]:
        """Of log-odds, and of the log of the ratio; both take the numbers, then the profile's codes."""
        return self._odds, self._value

    def predict(self, features: Features) -> Predicted:
        """See `Ranker`."""
        table = _table(features)
        logit, ratio = (
            model.predict(table, raw_score=True, num_threads=1) for model in (self._odds, self._value)
        )
        return Predicted(np.asarray(logit), np.exp(np.asarray(ratio)))

    def save(self, folder: Path, name: str) -> list[str]:
        """See `Ranker`."""
        files = [f"{name}-{part}.txt" for part in _PARTS]
        for file, model in zip(files, (self._odds, self._value), strict=True):
            model.save_model(folder / file)
        return files

    @classmethod
    def load(cls, folder: Path, name: str) -> Self:
        """Read what `save` wrote.

        Raises:
            lightgbm.basic.LightGBMError: not a model of LightGBM.
        """
        return cls(*(lightgbm.Booster(model_file=folder / f"{name}-{part}.txt") for part in _PARTS))


def _table(features: Features) -> np.ndarray:
    return np.concatenate([features.numbers, features.profile.astype(np.float32)], axis=1)


def _dataset(rows: Rows, label: np.ndarray, *, weight: np.ndarray) -> lightgbm.Dataset:
    return lightgbm.Dataset(
        _table(rows.features), label=label.astype(np.float32), weight=weight, params={"verbosity": -1}
    )


def _ratios(rows: Rows) -> lightgbm.Dataset:
    return _dataset(rows, rows.value / rows.features.value, weight=rows.features.value)


def _boost(
    fitted: lightgbm.Dataset,
    judged: lightgbm.Dataset,
    *,
    rows: int,
    config: RewardConfig,
    objective: dict[str, Any],
) -> lightgbm.Booster:
    settings = {
        **objective,
        "learning_rate": config.tree_rate,
        "num_leaves": config.leaves,
        "min_data_in_leaf": min(_MIN_ROWS, max(1, rows // 20)),
        "feature_fraction": 0.5,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "num_threads": config.threads,
        "seed": config.seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    return lightgbm.train(
        settings,
        fitted,
        num_boost_round=config.trees,
        valid_sets=[judged.set_reference(fitted)],
        callbacks=[lightgbm.early_stopping(_PATIENCE, verbose=False)],
    )
