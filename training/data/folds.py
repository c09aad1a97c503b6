"""Users set apart: what is learnt of some is used on others.

Cross-fitting and simulation split users the same way, by their ids alone: a user keeps the fold in every log
and on every machine.
"""

import numpy as np
import numpy.typing as npt

_MOST = 127  # of int8
_GOLDEN, _FIRST, _SECOND = (
    np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def user_fold(user_ids: npt.NDArray[np.int64], *, folds: int, seed: int) -> npt.NDArray[np.int8]:
    """Fold of each user, int8 [N] in 0 .. folds - 1; about equally many users in each.

    The hash is SplitMix64's finaliser (Steele, Lea, Flood 2014) over seed and id.

    Args:
        user_ids: int64 [N].
        folds: how many, 1 .. 127.
        seed: >= 0; of another seed the folds are others.

    Raises:
        ValueError: folds or seed out of range.
    """
    if not 1 <= folds <= _MOST:
        raise ValueError(f"expected 1 to {_MOST} folds of users, got {folds}")
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"expected a seed of folds from 0 to 2**63 - 1, got {seed}")
    salt = _mixed(np.array([seed], np.uint64))
    hashed = _mixed(np.asarray(user_ids, np.int64).astype(np.uint64) ^ salt)
    return (hashed % np.uint64(folds)).astype(np.int8)


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64 of each word; products wrap at 2**64, as they are meant to."""
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))
