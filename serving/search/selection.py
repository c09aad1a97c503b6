"""Which candidates a level keeps.

Letters: B requests, m candidates, k kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_MAXIMA_PER_KEPT = 4


def keep(
    scores: np.ndarray, width: int, *, needed: np.ndarray, leaves: Callable[[np.ndarray], np.ndarray] | None
) -> np.ndarray:
    """Positions of the best `width` candidates of each row, more where they lead to too few live SIDs.

    Args:
        scores: float [B, m], no NaN; -inf is no candidate.
        width: beams of the level.
        needed: int [B], live SIDs that the kept prefixes must lead to.
        leaves: live SIDs below the candidates at positions [B, k], 0 at -1. None at the last level, where
            a candidate is a SID.

    Returns:
        int64 [B, k], best first, equals by position; -1 is padding.
    """
    kept = top_k(scores, width)
    if leaves is not None and (leaves(kept).sum(axis=1) < needed).any():
        # Every prefix leads to a live SID, so `needed` prefixes are always enough.
        kept = top_k(scores, max(width, int(needed.max())))
        count = leaves(kept)
        before = np.cumsum(count, axis=1) - count
        kept = np.where((np.arange(kept.shape[1]) < width) | (before < needed[:, None]), kept, -1)
    return kept[:, : max(int((kept >= 0).sum(axis=1).max()), 1)]


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k largest of each row, largest first, equals by position; -1 stands for -inf.

    Exact, without sorting all (top-k pre-cut). The row is cut before anything is sorted: with the candidates
    in groups, the k-th largest of the groups' maxima is a lower bound of the k-th largest candidate, because
    k candidates reach it. What lies below it cannot be among the k best, so only the rest (about k of them)
    is sorted.

    Args:
        scores: float [B, m], no NaN.
        k: how many, at least 1.

    Returns:
        int64 [B, min(k, m)].
    """
    count = scores.shape[1]
    k = min(k, count)
    out = np.full((len(scores), k), -1, np.int64)
    bound = _lower_bound(scores, k)
    for row, (values, least) in enumerate(zip(scores, bound, strict=True)):
        left = np.flatnonzero((values >= least) & (values > -np.inf))
        best = left[np.argsort(-values[left], kind="stable")[:k]]
        out[row, : len(best)] = best
    return out


def _lower_bound(scores: np.ndarray, k: int) -> np.ndarray:
    """For each row a value that at least k candidates reach, [B]."""
    batch, count = scores.shape
    groups = count // max(count // (_MAXIMA_PER_KEPT * k), 1)  # at least k of them
    size = count // groups
    # Strided groups: the maximum runs along rows of `groups` numbers, which is what NumPy does fast.
    maxima = scores[:, : size * groups].reshape(batch, size, groups).max(axis=1) if size > 1 else scores
    return np.partition(maxima, maxima.shape[1] - k, axis=1)[:, maxima.shape[1] - k]


def ban(scores: np.ndarray, leaves: np.ndarray, banned: list[np.ndarray]) -> None:
    """Take candidates [B, m] out, in place, whose leaves [B, m] are among those of their request."""
    for row, leaves_banned in enumerate(banned):
        if len(leaves_banned):
            scores[row, np.isin(leaves[row], leaves_banned)] = -np.inf
