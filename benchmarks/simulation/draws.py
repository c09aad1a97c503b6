"""Random numbers that belong to what they are for, not to the order in which they are asked for.

The draw of (request, ad, round) is the same whichever arm shows the ad: common random numbers. The hash is
SplitMix64 (Steele, Lea, Flood, 2014), applied to one column after the other.
"""

from __future__ import annotations

import numpy as np

from training.data.folds import user_fold

BIDS, PURCHASES = 1, 2  # streams: what a draw is for
# Not the folds of the reward model: what judges a user must not have learnt of just the users his ranker did.
_FOLDS_SEED = 1_000_003


def uniform(*columns: np.ndarray | int, stream: int, seed: int) -> np.ndarray:
    """Uniform float64 in (0, 1) of whole numbers, of the shape that the columns broadcast to."""
    state = _mix(_mix(np.array(seed, np.uint64)) ^ np.uint64(stream))
    for column in columns:
        state = _mix(state ^ _mix(np.asarray(column, np.int64).astype(np.uint64)))
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def judged(user_ids: np.ndarray, *, folds: int, seed: int) -> np.ndarray:
    """Bool [N]: the users whose requests are judged, one fold; the response model is fitted on the others."""
    return user_fold(user_ids, folds=folds, seed=seed + _FOLDS_SEED) == 0


def _mix(state: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        state = np.asarray(state, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))
