"""Settings of recipes, beside those of the loop that they share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat

from training.preset.loop import LoopConfig


class TrainingConfig(LoopConfig):
    """Pre-training, see `training.recipes.pretrain`.

    Attributes:
        targets_per_request: targets drawn of each request (its basket is a set).
        lambda_value: lambda_e, weight of the value level.
        lambda_mtp: weight of the multi-token-prediction loss.
        behavior_weights: w_behavior of each behavior; 0 for one that is left out.
        min_history: events a user must have before a target counts as a sample.
        recent_weeks: train on targets of the last weeks only (their histories go all the way back); None for
            all weeks.
        warm_start: another run, its folder of a model, or one of its checkpoints, whose weights a new model
            starts with where they fit; None for random ones.
    """

    targets_per_request: int = Field(8, ge=1)
    lambda_value: float = Field(0.2, ge=0)
    lambda_mtp: float = Field(0.3, ge=0)
    behavior_weights: dict[Literal["impression", "click", "conversion"], NonNegativeFloat] = Field(
        default={"impression": 1.0, "click": 1.0, "conversion": 1.0}
    )
    min_history: int = Field(1, ge=0)
    recent_weeks: int | None = Field(None, ge=1)
    warm_start: str | None = None


class FineTuneConfig(LoopConfig):
    """Fine-tuning for FP8, see `training.recipes.fine_tune_fp8`; which requests, says section `training`.

    Attributes:
        catalogue_targets: SIDs drawn from the catalogue for each request, beside its targets.
        calibration_batches: batches that ranges of activations are measured on before the first step.
    """

    steps: int = Field(200, ge=1)
    learning_rate: float = Field(1e-5, gt=0)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    validate_every: int = Field(100, ge=1)
    batch_size: int = Field(32, ge=1)
    catalogue_targets: int = Field(10, ge=0)
    calibration_batches: int = Field(8, ge=1)
