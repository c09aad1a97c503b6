"""Residual k-means: vector -> codes, coarse to fine.

Level l quantises what the levels before it left over (RQ-Kmeans; GR4AD, arXiv 2602.22732, section on UA-SID):

    r_0 = x      c_l = argmin_k |r_{l-1} - C_l[k]|^2      r_l = r_{l-1} - C_l[c_l]

Letters: N points, D dimensions, K codes of a level.

Codes must not depend on the batch a vector travels in (the indexer encodes one new ad, training encodes all),
but a BLAS product may round differently for other shapes or thread counts. So vectors and centroids live on a
grid of 2^-20: with |x| <= 2 and at most 4 levels every product and partial sum is a multiple of 2^-41 and far
fewer than 2^53 of them, so float64 is exact in any order of addition, and true ties go to the lowest code.
"""

from collections.abc import Sequence
from typing import Self

import faiss
import numpy as np

GRID = 2.0**20
MAX_NORM = 2.0
BLOCK_ROWS = 8192  # bounds the [rows, K] score matrix: 64 MiB for K = 1024


class ResidualKMeans:
    """Codebooks of the levels, float32 [K_l, D] each, on the fixed-point grid."""

    def __init__(self, codebooks: Sequence[np.ndarray]) -> None:
        """Take the codebooks of all levels.

        Raises:
            ValueError: no codebook, or codebooks of unequal width.
        """
        shapes = [list(book.shape) for book in codebooks]
        if not shapes or any(len(shape) != 2 or shape[1] != shapes[0][-1] for shape in shapes):
            raise ValueError(f"expected codebooks [K, D] of one D, got {shapes}")
        self.codebooks = tuple(_on_grid(book) for book in codebooks)

    @classmethod
    def fit(
        cls,
        x: np.ndarray,
        sizes: Sequence[int],
        *,
        iterations: int,
        seed: int,
        weights: np.ndarray | None = None,
        start: np.ndarray | None = None,
    ) -> Self:
        """Learn one codebook a level from x, float32 [N, D]; the order of the points does not matter.

        Equal points are merged and their weights ([N], > 0, default 1 each) added: no two codes start from
        copies of one point, while centroids go where the weight is.

        With `start`, codes int [N, levels] that the points have by an older quantizer, each level begins with
        the means of its older codes, so that most points keep theirs; without, and where an older code has no
        point, with points drawn by weight.

        Raises:
            ValueError: a level has fewer distinct residuals than codes, x is not finite [N, D] within
                |x| <= 2, or the weights are not [N] and positive.
        """
        residual = _check_points(x)
        codebooks: list[np.ndarray] = []
        if weights is not None and (weights.shape != (len(x),) or not (weights > 0).all()):
            raise ValueError(f"expected {len(x)} positive weights, got shape {list(weights.shape)}")
        random = np.random.default_rng(seed)
        for level, size in enumerate(sizes, start=1):
            points, mass = _merge_equal(residual, weights)
            if len(points) < size:
                raise ValueError(
                    f"level {level}: expected at least {size} distinct vectors for its {size} codes, "
                    f"got {len(points)} among {len(x)}: lower codebook_sizes or give more varied texts"
                )
            # Every point counts (faiss would sample 256 a centroid); a small cluster is no reason to warn.
            kmeans = faiss.Kmeans(
                points.shape[1],
                size,
                niter=iterations,
                seed=seed + level,
                min_points_per_centroid=1,
                max_points_per_centroid=max(256, len(points)),
            )
            # faiss would start from points drawn uniformly; draw them by weight as well.
            share = mass.astype(np.float64) / mass.sum(dtype=np.float64)
            begin = points[random.choice(len(points), size, replace=False, p=share)]
            if start is not None and level <= start.shape[1]:
                begin = _older_means(residual, weights, codes=start[:, level - 1], drawn=begin)
            kmeans.train(points, weights=mass, init_centroids=begin)
            codebook = _on_grid(np.asarray(kmeans.centroids))
            codebooks.append(codebook)
            residual = residual - codebook[_nearest(residual, codebook)]
        return cls(codebooks)

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Return codes int32 [N, levels] of x, float32 [N, D]; a row depends on that row alone.

        Raises:
            ValueError: x is not finite [N, D] within |x| <= 2.
        """
        residual = _check_points(x, dim=self.codebooks[0].shape[1])
        codes = np.empty((len(residual), len(self.codebooks)), np.int32)
        for level, codebook in enumerate(self.codebooks):
            codes[:, level] = _nearest(residual, codebook)
            residual = residual - codebook[codes[:, level]]
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the reconstruction float32 [N, D] of codes [N, l]: the sum of their first l levels.

        Raises:
            ValueError: wrong number of levels, or a code outside its codebook.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or not 1 <= codes.shape[1] <= len(self.codebooks):
            raise ValueError(f"expected codes [N, 1..{len(self.codebooks)}], got {list(codes.shape)}")
        total = np.zeros((len(codes), self.codebooks[0].shape[1]), np.float32)
        for level, codebook in enumerate(self.codebooks[: codes.shape[1]]):
            column = codes[:, level]
            # NumPy would read a negative code from the end of the codebook.
            if column.size and not 0 <= column.min() <= column.max() < len(codebook):
                span = f"{column.min()}..{column.max()}"
                raise ValueError(f"level {level + 1}: expected codes 0..{len(codebook) - 1}, got {span}")
            total += codebook[column]
        return total


def _nearest(residual: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    centroids = codebook.astype(np.float64)
    half_norm = 0.5 * (centroids * centroids).sum(axis=1)  # [K]
    nearest = np.empty(len(residual), np.int32)
    for start in range(0, len(residual), BLOCK_ROWS):
        block = residual[start : start + BLOCK_ROWS].astype(np.float64)
        # [rows, D] @ [D, K]: argmin |r - c|^2 = argmin |c|^2 / 2 - r.c, exact in any order of addition.
        nearest[start : start + BLOCK_ROWS] = (half_norm - block @ centroids.T).argmin(axis=1)
    return nearest


def _check_points(x: np.ndarray, *, dim: int | None = None) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim != 2 or (dim is not None and x.shape[1] != dim):
        raise ValueError(f"expected vectors [N, {dim or 'D'}], got {list(x.shape)}")
    norms = np.sqrt((x.astype(np.float64) ** 2).sum(axis=1))
    # Written so that a NaN fails it too.
    if not (norms <= MAX_NORM).all():
        row = int(np.flatnonzero(~(norms <= MAX_NORM))[0])
        raise ValueError(f"row {row}: expected a finite vector of length <= {MAX_NORM}, got {norms[row]}")
    return _on_grid(x)


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


def _on_grid(x: np.ndarray) -> np.ndarray:
    # + 0.0 turns -0.0 into 0.0, so that equal vectors have equal bytes.
    return (np.rint(np.asarray(x, np.float64) * GRID) / GRID + 0.0).astype(np.float32)


def _merge_equal(x: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    # One opaque value a row: many times faster than np.unique(axis=0), and equal rows have equal bytes here.
    rows = np.ascontiguousarray(x + 0.0).view(np.dtype((np.void, x.dtype.itemsize * x.shape[1])))
    distinct, inverse = np.unique(rows.ravel(), return_inverse=True)
    merged = np.bincount(inverse, weights=weights, minlength=len(distinct)).astype(np.float32)
    return distinct.view(x.dtype).reshape(-1, x.shape[1]), merged
