"""Settings of the roll-out."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class RolloutConfig(BaseModel):
    """Candidate lists by the search that serves, see `training.rollout`.

    Attributes:
        requests: requests drawn (seeded); all of them when there are fewer.
        widths: width plan of the beam search; None for evaluation.widths.
        list_size: the model's best beams of each request.
        sampled: beams drawn by their probability, without replacement, from those beyond the best ones.
        recent_weeks: of the training part, requests of the last weeks only; None for training.recent_weeks.
        batch_size: requests a search.
        seed: of the draw of requests and beams.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int = Field(3200, ge=1)  # post-training of 100 steps of 32 sees each once
    widths: str | None = None
    list_size: int = Field(96, ge=1)
    sampled: int = Field(32, ge=0)
    recent_weeks: int | None = Field(None, ge=1)
    batch_size: int = Field(16, ge=1)
    seed: int = Field(0, ge=0)
