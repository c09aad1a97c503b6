"""Levels that each quantise what the ones before left over.

    r_0 = x      c_l = argmin_k |r_{l-1} - C_l[k]|^2 + b_l[k]      r_l = r_{l-1} - C_l[c_l]

(RQ-Kmeans; GR4AD, arXiv 2602.22732, section on UA-SID.) b is the price of a code, 0 in plain k-means: a dear
code loses the points that lie nearly as close to another one.

Letters: N points, D dimensions, K codes of a level, L levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.quantizers.base import Arrays, check_codes
from training.tokenizer.quantizers.grid import GRID, check_points, check_weights, merge_equal, on_grid

BLOCK_ROWS = 512  # bounds the [rows, K] score matrix, which should stay in a core's cache
MAX_PRICE = 64.0  # more than any squared distance decides, and few enough bits for exact sums


@dataclass(frozen=True)
class Level:
    """Codes of one level.

    Attributes:
        codebook: float32 [K, D], on the grid.
        price: float64 [K], on the grid, 0 or more.
    """

    codebook: np.ndarray
    price: np.ndarray

    @classmethod
    def of(cls, codebook: np.ndarray, price: np.ndarray | None = None) -> Self:
        """Put both on the grid; no price is 0.

        Raises:
            ValueError: a price is not finite in 0..64, or their number is not K.
        """
        price = np.zeros(len(codebook)) if price is None else np.asarray(price, np.float64)
        if price.shape != codebook.shape[:1] or not ((price >= 0) & (price <= MAX_PRICE)).all():
            raise ValueError(
                f"expected a price in 0..{MAX_PRICE} for each of {len(codebook)} codes, got shape "
                f"{list(price.shape)} and values {price.min(initial=0)}..{price.max(initial=0)}"
            )
        return cls(on_grid(codebook), np.rint(price * GRID) / GRID)

    @property
    def bias(self) -> np.ndarray:
        """Half of |C[k]|^2 + b[k], float64 [K]: code k scores bias - r.C[k], and the least wins."""
        centroids = self.codebook.astype(np.float64)
        return 0.5 * ((centroids * centroids).sum(axis=1) + self.price)

    def nearest(self, residual: np.ndarray) -> np.ndarray:
        """Return codes int32 [N] of residuals [N, D] on the grid, exact in any order of addition."""
        centroids, bias = self.codebook.astype(np.float64).T, self.bias
        codes = np.empty(len(residual), np.int32)
        for start in range(0, len(residual), BLOCK_ROWS):
            block = residual[start : start + BLOCK_ROWS].astype(np.float64)
            codes[start : start + BLOCK_ROWS] = (bias - block @ centroids).argmin(axis=1)  # [rows, K]
        return codes


class ResidualQuantizer(ABC):
    """Levels one after the other; how the codes of one are learnt is the subclass's."""

    def __init__(self, levels: Sequence[Level]) -> None:
        """Take all levels.

        Raises:
            ValueError: no level, or codebooks of unequal width.
        """
        shapes = [list(level.codebook.shape) for level in levels]
        if not shapes or any(len(shape) != 2 or shape[1] != shapes[0][-1] for shape in shapes):
            raise ValueError(f"expected codebooks [K, D] of one D, got {shapes}")
        self.levels = tuple(levels)

    @staticmethod
    @abstractmethod
    def fit_level(
        points: np.ndarray,
        weights: np.ndarray,
        *,
        begin: np.ndarray,
        older: bool,
        iterations: int,
        seed: int,
    ) -> Level:
        """Learn the codes of one level.

        Args:
            points: float32 [N, D], distinct, on the grid.
            weights: float32 [N], > 0.
            begin: float32 [K, D], centroids to begin with.
            older: whether those are means of an older quantizer's codes, which should stay what they are.
            iterations: over the points, of the centroids.
            seed: of this level.
        """

    @classmethod
    def fit(
        cls,
        x: np.ndarray,
        config: TokenizerConfig,
        *,
        weights: np.ndarray | None = None,
        start: np.ndarray | None = None,
    ) -> Self:
        """See `Quantizer`.

        Equal points are merged and their weights added: no two codes begin with copies of one point, while
        centroids go where the weight is. A level begins with points drawn by weight; with `start` with the
        means of its older codes, so that most points keep theirs.

        Raises:
            ValueError: a level has fewer distinct residuals than codes, x is not finite [N, D] within
                |x| <= 2, or the weights are not [N] and positive.
        """
        residual = check_points(x)
        check_weights(weights, len(x))
        random = np.random.default_rng(config.seed)
        levels: list[Level] = []
        for number, size in enumerate(config.codebook_sizes, start=1):
            points, mass = merge_equal(residual, weights)
            if len(points) < size:
                raise ValueError(
                    f"level {number}: expected at least {size} distinct vectors for its {size} codes, got "
                    f"{len(points)} among {len(x)}: lower codebook_sizes or give more varied ads"
                )
            share = mass.astype(np.float64) / mass.sum(dtype=np.float64)
            begin = points[random.choice(len(points), size, replace=False, p=share)]
            older = None if start is None or number > start.shape[1] else start[:, number - 1]
            if older is not None:
                begin = _older_means(residual, weights, codes=older, drawn=begin)
            level = cls.fit_level(
                points,
                mass,
                begin=begin,
                older=older is not None,
                iterations=config.kmeans_iterations,
                seed=config.seed + number,
            )
            levels.append(level)
            residual = residual - level.codebook[level.nearest(residual)]
        return cls(levels)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """See `Quantizer`."""
        return tuple(len(level.codebook) for level in self.levels)

    def encode(self, x: np.ndarray) -> np.ndarray:
        """See `Quantizer`."""
        return self.encode_points(check_points(x, dim=self.levels[0].codebook.shape[1]))

    def encode_points(self, residual: np.ndarray) -> np.ndarray:
        """Return codes int32 [N, L] of points float32 [N, D] that are on the grid already."""
        codes = np.empty((len(residual), len(self.levels)), np.int32)
        for number, level in enumerate(self.levels):
            codes[:, number] = level.nearest(residual)
            residual = residual - level.codebook[codes[:, number]]
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """See `Quantizer`: the sum of the codes' centroids."""
        codes = check_codes(codes, self.level_sizes)
        total = np.zeros((len(codes), self.levels[0].codebook.shape[1]), np.float32)
        for level, column in zip(self.levels, codes.T, strict=False):
            total += level.codebook[column]
        return total

    def state(self) -> Arrays:
        """Return codebook.0, .. and, of a level that has prices, price.0, .."""
        codebooks = {f"codebook.{n}": level.codebook for n, level in enumerate(self.levels)}
        prices = {f"price.{n}": level.price for n, level in enumerate(self.levels) if level.price.any()}
        return codebooks | prices

    @classmethod
    def from_state(cls, arrays: Arrays) -> Self:
        """Rebuild from `state()`."""
        count = sum(name.startswith("codebook.") for name in arrays)
        return cls([Level.of(arrays[f"codebook.{n}"], arrays.get(f"price.{n}")) for n in range(count)])


def _older_means(
    points: np.ndarray, weights: np.ndarray | None, *, codes: np.ndarray, drawn: np.ndarray
) -> np.ndarray:
    """Means of older codes in the place of `drawn`, float32 [K, D]; of more than K codes the heaviest K."""
    older = max(int(codes.max()) + 1, len(drawn))
    mass = np.bincount(codes, weights=weights, minlength=older)
    columns = points.T if weights is None else points.T * weights
    sums = np.stack([np.bincount(codes, weights=column, minlength=older) for column in columns], axis=1)
    kept = np.sort(np.argsort(-mass, kind="stable")[: len(drawn)])  # every code where there are at most K
    means = (sums[kept] / np.maximum(mass[kept], 1e-9)[:, None]).astype(np.float32)
    return np.where(mass[kept][:, None] > 0, means, drawn)
