"""What makes one beam better than another: its probability, or what showing its ad is worth on average.

A beam has p = exp(score), the probability of its semantic ID, and v, its expected value. Rank by p where the
next ad is to be found, by p x v where what it earns counts.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

RankBy = Literal["probability", "value"]
RANK_BY: tuple[RankBy, ...] = get_args(RankBy)


def beam_worth(scores: np.ndarray, expected_value: np.ndarray, *, by: RankBy) -> np.ndarray:
    """What beams are ranked by, float64 [n], the largest first.

    Args:
        scores: float32 [n], log-probabilities; -inf is padding.
        expected_value: float32 [n]; NaN where the search gave none: such beams rank behind the others.
        by: probability, by its logarithm, or value, p x v.
    """
    if by == "probability":
        return scores.astype(np.float64)
    worth = np.exp(scores.astype(np.float64)) * expected_value
    return np.where(np.isnan(worth), -np.inf, worth)


def falls(scores: np.ndarray, expected_value: np.ndarray, *, rank_by: RankBy | None) -> bool:
    """Whether beams stand best first by an order; where it is None, by any of `RANK_BY`."""
    worth = [beam_worth(scores, expected_value, by=by) for by in (RANK_BY if rank_by is None else (rank_by,))]
    return any(bool((w[1:] <= w[:-1]).all()) for w in worth)
