"""Which code of an older tokenizer each code of a new one goes on from.

A re-fit makes other codes, and a model's embeddings belong to the old ones. The ads are known to both.
Level by level, new and old codes are paired one to one so that as many ads as can be stay with their code
(assignment problem, Kuhn 1955); at the next level only ads count whose codes so far are paired. Where
counts are equal the nearer centroids go together. A code that is left over goes on from the old code with
the nearest centroid.

Coordinates of two embedders have nothing in common, so centroids are compared in the old tokenizer's space:
the mean, over the ads of a code, of what the levels before left of the old vectors.

Letters: N ads, L levels before the hash, K codes of a level, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from scipy.optimize import linear_sum_assignment

from training.tokenizer.alignment import NONE, Alignment
from training.tokenizer.tokenizer import Tokenizer


def align(new: Tokenizer, old: Tokenizer, *, ads: pl.DataFrame) -> Alignment:
    """Pair the codes of two tokenizers over the ads, which both can encode.

    A code of the hash level means the same in both if size and salt are the same, and nothing otherwise.

    Raises:
        ValueError: no ad, or a tokenizer that cannot read them.
    """
    sources, agreement = match_codes(
        old.vectors(ads),
        old=old.encode(ads)[:, :-1],
        new=new.encode(ads)[:, :-1],
        old_sizes=old.level_sizes[:-1],
        new_sizes=new.level_sizes[:-1],
    )
    more = [np.empty(0, np.int64)] * (new.config.levels - 1 - len(sources))
    # A model has one table a level, by its place.
    same = all(
        getattr(new.config, key) == getattr(old.config, key) for key in ("levels", "hash_size", "hash_salt")
    )
    hashed = np.arange(new.config.hash_size if same else 0)
    return Alignment(new.tokenizer_id, old.tokenizer_id, (*sources, *more, hashed), agreement)


def match_codes(
    vectors: np.ndarray,
    *,
    old: np.ndarray,
    new: np.ndarray,
    old_sizes: Sequence[int],
    new_sizes: Sequence[int],
) -> tuple[tuple[np.ndarray, ...], tuple[float, ...]]:
    """Pair codes that the same ads have.

    Args:
        vectors: [N, D], the ads in the space of the old tokenizer.
        old: int [N, L_old], their codes by it, hash level left out.
        new: int [N, L_new], by the new one.
        old_sizes: K of each old level.
        new_sizes: K of each new level.

    Returns:
        For each level that both have, the old code of each new one, int64 [K_new] (`NONE` for a code without
        an ad), and the share of ads whose codes up to this level are paired.

    Raises:
        ValueError: no ad.
    """
    if not len(vectors):
        raise ValueError("expected ads that both tokenizers encode, got none")
    old_rest = new_rest = np.asarray(vectors, np.float64)  # [N, D]
    paired = np.ones(len(vectors), bool)
    sources, agreement = [], []
    for level, (old_size, new_size) in enumerate(zip(old_sizes, new_sizes, strict=False)):
        was, now = old[:, level], new[:, level]
        old_mean, old_ads = _means(old_rest, was, size=old_size)
        new_mean, new_ads = _means(new_rest, now, size=new_size)
        cost = _distances(new_mean, old_mean)  # [K_new, K_old], the one array of this size
        cost[:, old_ads == 0] = cost.max() + 1  # no ad, no centroid: the last choice
        source = cost.argmin(axis=1)
        # Distances only decide between equal counts: all of one row or column stay below half an ad.
        cost /= 2 * (cost.max() + 1) * max(old_size, new_size)
        pairs, common = np.unique(now[paired] * np.int64(old_size) + was[paired], return_counts=True)
        cost[np.divmod(pairs, old_size)] -= common
        rows, columns = linear_sum_assignment(cost)
        source[rows] = columns
        source[new_ads == 0] = NONE
        paired &= source[now] == was
        sources.append(source)
        agreement.append(float(paired.mean()))
        old_rest, new_rest = old_rest - old_mean[was], new_rest - new_mean[now]
    return tuple(sources), tuple(agreement)


def _means(points: np.ndarray, codes: np.ndarray, *, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [K, D] of the points of each code, zero where there is none, and their number [K]."""
    ads = np.bincount(codes, minlength=size)
    sums = np.stack([np.bincount(codes, weights=column, minlength=size) for column in points.T], axis=1)
    return sums / np.maximum(ads, 1)[:, None], ads


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances [K_a, K_b]; in place, 2 GB for 16,384 codes each."""
    squared = -2 * a @ b.T
    squared += (a * a).sum(axis=1)[:, None]
    squared += (b * b).sum(axis=1)
    return np.maximum(squared, 0.0, out=squared)
