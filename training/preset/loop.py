"""Settings of the training loop, which every recipe's section of a preset has."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

DeviceName = Literal["auto", "cpu", "cuda"]
TrainingPrecision = Literal["fp32", "bf16"]


# Keys that say how a run is run and watched: with others the same weights come out.
HOW_IT_RUNS = frozenset(
    {
        *("checkpoint_minutes", "device", "keep_checkpoints", "patience", "threads", "validate_every"),
        *("validation_requests", "workers"),
    }
)


class StepConfig(BaseModel):
    """Optimisation, a step at a time, and where it runs.

    Attributes:
        batch_size: requests a step, over all processes together.
        learning_rate: of AdamW at its highest; after the warm-up it falls by a cosine to a hundredth.
        warmup_steps: over which it rises from nothing.
        weight_decay: of AdamW, for matrices; vectors and tables of codes have none.
        clip_norm: largest norm of a gradient; a larger one is scaled down.
        keep_checkpoints: the last ones that stay, beside the best by validation.
        device: auto is cuda where there is a GPU.
        precision: bf16 computes products in bfloat16 (autocast); weights stay float32.
        seed: of weights, order of requests and dropout.
        threads: CPU threads of each process.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    keep_checkpoints: int = Field(2, ge=1)
    device: DeviceName = "auto"
    precision: TrainingPrecision = "fp32"
    seed: int = Field(0, ge=0)
    threads: int = Field(2, ge=1)


class LoopConfig(StepConfig):
    """Optimisation, and what is kept of it.

    Attributes:
        steps: optimizer steps.
        validate_every: steps between two validations, each of which ends with a checkpoint.
        validation_requests: requests that are drawn of the validation weeks (seeded).
        checkpoint_minutes: minutes after which a checkpoint is written also between two validations; None for
            none there.
        patience: validations in a row without a lower total loss after which the run ends; None for never.
        workers: processes that build batches, for each process that trains; 0 for a thread, which is enough
            until building takes longer than a step.
    """

    steps: int = Field(2000, ge=1)
    validate_every: int = Field(500, ge=1)
    validation_requests: int = Field(256, ge=1)
    checkpoint_minutes: float | None = Field(10.0, gt=0)
    patience: int | None = Field(None, ge=1)
    workers: int = Field(0, ge=0)
