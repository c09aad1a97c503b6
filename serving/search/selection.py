"""Which candidates a level keeps.

Letters: B requests, m candidates, k kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from serving.index.eligible import Eligible
from serving.index.trie import PrefixTree

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
    if leaves is None or (np.count_nonzero(kept >= 0, axis=1) >= needed).all():
        pass  # every prefix leads to one
    elif (leaves(kept).sum(axis=1) < needed).any():
        # So `needed` prefixes are always enough.
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


def ban(
    scores: np.ndarray, banned: list[np.ndarray] | None, *, nodes_at: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Take candidates [B, m] out, in place, whose leaves (of positions [B, m]) their request bans, if any."""
    if banned is None:
        return
    leaves = nodes_at(np.broadcast_to(np.arange(scores.shape[1]), scores.shape))
    for row, leaves_banned in enumerate(banned):
        if len(leaves_banned):
            scores[row, np.isin(leaves[row], leaves_banned)] = -np.inf


def only(
    scores: np.ndarray,
    level: int,
    *,
    eligible: list[Eligible | None] | None,
    nodes: Callable[[], Sequence[np.ndarray] | np.ndarray],
) -> np.ndarray:
    """Candidates float32 [B, ..], of which those are none (-inf) whose nodes a request may not go to.

    Args:
        scores: m of a request, in whatever shape.
        level: of the candidates.
        eligible: of each request; None for all.
        nodes: of the candidates, B times [m].
    """
    if eligible is None:
        return scores
    out, every = scores.reshape(len(scores), -1).copy(), nodes()
    for row, state in enumerate(eligible):
        if state is not None:
            out[row, ~state.mask(level, every[row])] = -np.inf
    return out.reshape(scores.shape)


def leaves_below(
    trie: PrefixTree, level: int, nodes: np.ndarray, *, eligible: list[Eligible | None] | None
) -> np.ndarray:
    """SIDs below nodes [B, k] that a request may be shown, int [B, k]; 0 for padding (-1)."""
    counts = trie.leaf_counts(level, nodes)
    for row, state in enumerate(eligible or ()):
        if state is not None:
            counts[row] = state.count(level, nodes[row])
    return counts
