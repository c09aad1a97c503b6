"""Settings of recipes, beside those of the loop that they share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class FineTuneConfig(BaseModel):
    """Fine-tuning for FP8, see `training.quantize_aware`.

    Attributes:
        steps: optimizer steps.
        batch_size: requests a step.
        catalogue_targets: SIDs drawn from the catalogue for each request, beside its targets.
        learning_rate: AdamW, cosine to 0.
        calibration_batches: batches that ranges of activations are measured on before the first step.
        validation_batches: batches of validation requests that the divergence is measured on, before and
            after.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(200, ge=1)
    batch_size: int = Field(32, ge=1)
    catalogue_targets: int = Field(10, ge=0)
    learning_rate: float = Field(1e-5, gt=0)
    calibration_batches: int = Field(8, ge=1)
    validation_batches: int = Field(8, ge=1)
    seed: int = 0


class EvaluationConfig(BaseModel):
    """Ranking quality on the test weeks.

    Attributes:
        requests: test requests drawn (seeded); all of them when there are fewer.
        cutoffs: k of Recall@k and NDCG@k.
        widths: width plan of the beam search; the last width must reach the largest cutoff.
        batch_size: requests a search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    requests: int = Field(2000, ge=1)
    cutoffs: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (10, 50, 100)
    widths: str = "64-128-256:1"
    batch_size: int = Field(16, ge=1)
    seed: int = 0
