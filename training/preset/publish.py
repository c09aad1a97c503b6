"""What new weights of a model that serves must keep, and how many versions are kept."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PublishConfig(BaseModel):
    """How `python -m export publish --checkpoint` judges new weights.

    Attributes:
        gate_requests: validation requests drawn (`precision.seed`) that new weights and those that serve are
            compared on; all of them when there are fewer.
        max_recall50_loss: most of recall@50 that may be lost on them, relative to the version that serves.
        max_value_change: most by which the sum of expected values may change, as a factor, up or down, over
            the SIDs that both find among their first beams.
        kept: versions whose bundles stay; those that serve, are pinned or may be in use stay anyway.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate_requests: int = Field(64, ge=1)
    max_recall50_loss: float = Field(0.2, ge=0)
    max_value_change: float = Field(2.0, ge=1)
    kept: int = Field(8, ge=2)
