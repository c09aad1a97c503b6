"""Settings of the evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from serving.search.normalise import Normalise, parse_normalise
from serving.search.rank import RankBy


class EvaluationConfig(BaseModel):
    """Ranking quality on a held-out part.

    Attributes:
        part: validation or test.
        requests: requests drawn (seeded); all of them when there are fewer.
        cutoffs: k of Recall@k, NDCG@k and value recall@k.
        widths: width plan of the beam search; the last width must reach the largest cutoff.
        item_pool: best ads of the search that the item level orders, of a model that has one (`model.item`).
        normalise: of each SID level, as serving.normalise; None is codebook for all.
        rank_by: what ads are ranked by, probability or value (p x v), as the request parameter of serving.
        exclude_seen: leave out ads of the user's history, as answers and as targets; off where users repeat.
        recent_days: days before a request that count as recent, for the baseline recent_popularity.
        half_life_days: days in which a time that a user had an ad comes to count half, for the baseline
            recent_frequency.
        batch_size: requests a search.
        seed: of the draw of requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    part: Literal["validation", "test"] = "test"
    requests: int = Field(2000, ge=1)
    cutoffs: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (10, 50, 100)
    widths: str = "64-128-256:1"
    item_pool: int = Field(256, ge=1)
    normalise: str | None = None
    rank_by: RankBy = "probability"
    exclude_seen: bool = False
    recent_days: float = Field(7, gt=0)
    half_life_days: float = Field(60, gt=0)
    batch_size: int = Field(16, ge=1)
    seed: int = 0

    def levels_normalised(self, levels: int) -> tuple[Normalise, ...] | None:
        """`normalise` of each of so many levels.

        Raises:
            ValueError: it is of another number, or of no such form.
        """
        return None if self.normalise is None else parse_normalise(self.normalise, levels=levels)
