"""Settings of the training loop."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat


class TrainingConfig(BaseModel):
    """Optimisation.

    Attributes:
        steps: optimizer steps.
        batch_size: requests a step, over all processes together.
        targets_per_request: targets drawn of each request (its basket is a set).
        learning_rate, warmup_steps, weight_decay, clip_norm: AdamW with warm-up, then cosine to a hundredth.
        lambda_value: lambda_e, weight of the value level.
        lambda_mtp: weight of the multi-token-prediction loss.
        behavior_weights: w_behavior of each behavior.
        validate_every, validation_requests: how often and on how many requests.
        recent_weeks: train on targets of the last weeks only (their histories go all the way back); None for
            all weeks.
        min_history: events a user must have before a target counts as a sample.
        threads: CPU threads of each process.
        workers: processes that build batches, for each process that trains; 0 for a thread, which is enough
            until building takes longer than a step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(2000, ge=1)
    batch_size: int = Field(64, ge=1)
    targets_per_request: int = Field(8, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    lambda_value: float = Field(0.2, ge=0)
    lambda_mtp: float = Field(0.3, ge=0)
    behavior_weights: dict[Literal["impression", "click", "conversion"], NonNegativeFloat] = Field(
        default={"impression": 1.0, "click": 1.0, "conversion": 1.0}
    )
    validate_every: int = Field(500, ge=1)
    validation_requests: int = Field(256, ge=1)
    min_history: int = Field(10, ge=0)
    recent_weeks: int | None = Field(None, ge=1)
    seed: int = 0
    threads: int = Field(2, ge=1)
    workers: int = Field(0, ge=0)
