"""What the rendered model repository serves with."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ServingConfig(BaseModel):
    """Settings that rendering writes into the model configs.

    Attributes:
        widths: width plan, beams after each SID level and, after the colon, beams that get a value.
        max_num_ads: most ads a request may ask for.
        max_exclude: most ads a request may exclude.
        max_batch_size: most requests in one batch.
        threads: CPU threads of each graph (cpu and onnxruntime targets).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: str = "64-128-256:64"
    max_num_ads: int = Field(200, ge=1)
    max_exclude: int = Field(1000, ge=0)
    max_batch_size: int = Field(16, ge=1)
    threads: int = Field(1, ge=1)
