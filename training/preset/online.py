"""Settings of online learning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from training.preset.loop import StepConfig


class OnlineConfig(StepConfig):
    """Learning from what is served, see `training.recipes.online`.

    Which targets count, and the weights of VSL's terms, says section `training`; what a list teaches, section
    `post_training`.

    Attributes:
        learning_rate: of AdamW; after the warm-up it stays as it is.
        replay: share of a batch that is drawn of the training part of the logs, so that what was learnt there
            stays; of a batch that is not full, too.
        rolled_out: share of what is replayed that comes with a list of a roll-out, where there are some (see
            `training.recipes.roll_out_online`).
        list_objective: what is learnt of a list, served or rolled out; vsl learns nothing of it.
        strength: of lists beside targets, see `post_training.strength`; lambda is measured on the first
            batches.
        wait_seconds: longest that a sample waits for others to fill its batch.
        replay_only_steps: most steps in a row without a served sample; then the trainer waits for one.
        checkpoint_seconds: at least so long is between two checkpoints, each of which may be published.
        probe_requests: validation requests that guards look at before each checkpoint.
        max_loss_rise: guard: most that their loss may be above its moving average, as a share of it.
        min_entropy: guard: least entropy of the first level over all of them, as a share of what it was at
            the start; below, everybody gets the same.
        max_unseen: guard: largest share of the ads of late answers that have no SID here, or another one than
            was served.
    """

    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    warmup_steps: int = Field(10, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    keep_checkpoints: int = Field(4, ge=2)
    threads: int = Field(1, ge=1)
    replay: float = Field(0.5, ge=0, lt=1)
    rolled_out: float = Field(0.5, ge=0, le=1)
    list_objective: Literal["vsl", "rspo", "uvr", "dpo", "grpo"] = "uvr"
    strength: float = Field(1.0, gt=0)
    wait_seconds: float = Field(1.0, ge=0)
    replay_only_steps: int = Field(0, ge=0)
    checkpoint_seconds: float = Field(5.0, ge=0)
    probe_requests: int = Field(64, ge=1)
    max_loss_rise: float = Field(0.2, gt=0)
    min_entropy: float = Field(0.5, ge=0, le=1)
    max_unseen: float = Field(0.5, gt=0, le=1)
