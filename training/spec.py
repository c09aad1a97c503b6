"""What a model is besides its weights: its shape, and what its inputs and outputs mean.

Fitted on the data once, by the run that starts a model; from then on it travels with the checkpoint.

Letters: T SID levels, P profile columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.model.features import FeatureSpec
from serving.model.value_correction import UNCORRECTED, ValueCorrection
from training.data.values import ValueBuckets
from training.model.gr4ad import Generator
from training.model.initialise import initialise
from training.model.item_head import ItemSizes
from training.model.mtp import MtpGenerator
from training.preset.model import ModelConfig


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build the generator and to feed it, besides its weights.

    Attributes:
        model: sizes.
        features: what a context looks like.
        level_sizes: V_1 .. V_T of the SIDs.
        value_buckets: of the value level.
        profile_columns: of each profile column the categories of codes 1, 2, ..; 0 is unknown. Length P.
        tokenizer_id: whose SIDs the model speaks.
        value_correction: of the expected values of these weights; others need their own.
        items: of the item level; None for a model without one.
    """

    model: ModelConfig
    features: FeatureSpec
    level_sizes: tuple[int, ...]
    value_buckets: ValueBuckets
    profile_columns: dict[str, tuple[str, ...]]
    tokenizer_id: str
    value_correction: ValueCorrection = UNCORRECTED
    items: ItemSizes | None = None

    def empty(self) -> Generator:
        """Generator whose weights are yet to be set."""
        kind = MtpGenerator if self.model.decoder == "mtp" else Generator
        return kind(
            self.model,
            self.features,
            level_sizes=self.level_sizes,
            value_buckets=len(self.value_buckets.means),
            items=self.items,
        )

    def build(self) -> Generator:
        """Generator with fresh weights (seed torch before)."""
        return initialise(self.empty())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.model.model_dump(),
            "features": self.features.to_json(),
            "level_sizes": list(self.level_sizes),
            "tokenizer_id": self.tokenizer_id,
            "value_edges": self.value_buckets.edges.tolist(),
            "value_means": self.value_buckets.means.tolist(),
            "value_correction": [list(point) for point in self.value_correction.points],
            "profile_columns": {k: list(v) for k, v in self.profile_columns.items()},
            "items": None if self.items is None else self.items._asdict(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelSpec:
        """Inverse of `to_json`."""
        buckets = ValueBuckets(
            np.asarray(values["value_edges"], np.float32), np.asarray(values["value_means"], np.float32)
        )
        return cls(
            model=ModelConfig(**values["model"]),
            features=FeatureSpec.from_json(values["features"]),
            level_sizes=tuple(values["level_sizes"]),
            value_buckets=buckets,
            profile_columns={k: tuple(v) for k, v in values["profile_columns"].items()},
            tokenizer_id=values["tokenizer_id"],
            # Older checkpoints have none.
            value_correction=ValueCorrection(tuple(map(tuple, values.get("value_correction", ())))),
            items=ItemSizes(**values["items"]) if values.get("items") else None,
        )
