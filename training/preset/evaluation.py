"""Settings of the evaluation."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class EvaluationConfig(BaseModel):
    """Ranking quality on the test weeks.

    Attributes:
        requests: test requests drawn (seeded); all of them when there are fewer.
        cutoffs: k of Recall@k and NDCG@k.
        widths: width plan of the beam search; the last width must reach the largest cutoff.
        batch_size: requests a search.
        seed: of the draw of requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    requests: int = Field(2000, ge=1)
    cutoffs: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (10, 50, 100)
    widths: str = "64-128-256:1"
    batch_size: int = Field(16, ge=1)
    seed: int = 0
