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
        canary_share: of the requests that a new version answers first, until it is judged
            (docs/versions.md); 0 for none: it answers all at once. With serving.graph_calls: in_process.
        canary_requests: answers of a canary whose outcome is known, after which it answers all requests
            unless harm is shown.
        canary_max_value_loss: of the mean value of an answer; a canary is rolled back once it is shown to
            lose more, relative to the version that it is compared with.
        canary_max_calibration_change: most by which its expected over observed values may be shown to differ
            from those of that version, as a factor, up or down.
        canary_error: chance that a canary is rolled back though it is as good.
        kept: versions whose bundles stay; those that serve, are pinned or may be in use stay anyway.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate_requests: int = Field(64, ge=1)
    max_recall50_loss: float = Field(0.2, ge=0)
    max_value_change: float = Field(2.0, ge=1)
    canary_share: float = Field(0.0, ge=0, le=0.5, allow_inf_nan=False)
    canary_requests: int = Field(1000, ge=1)
    canary_max_value_loss: float = Field(0.0, ge=0, lt=1, allow_inf_nan=False)
    canary_max_calibration_change: float = Field(1.5, ge=1, allow_inf_nan=False)
    canary_error: float = Field(0.05, gt=0, lt=0.5, allow_inf_nan=False)
    kept: int = Field(8, ge=2)
