"""The fixed-point grid on which codes are exact.

Codes must not depend on the batch a vector travels in (the indexer encodes one new ad, training encodes all),
but a BLAS product may round differently for other shapes or thread counts. So vectors and centroids live on a
grid of 2^-20: with |x| <= 2 and at most 4 levels every product and partial sum is a multiple of 2^-41 and far
fewer than 2^53 of them, so float64 is exact in any order of addition, and true ties go to the lowest code.

Letters: N points, D dimensions.
"""

import numpy as np

GRID = 2.0**20
MAX_NORM = 2.0


def on_grid(x: np.ndarray) -> np.ndarray:
    """Round to the nearest multiples of 2^-20, float32 of the shape of x."""
    # + 0.0 turns -0.0 into 0.0, so that equal vectors have equal bytes.
    return (np.rint(np.asarray(x, np.float64) * GRID) / GRID + 0.0).astype(np.float32)


def check_points(x: np.ndarray, *, dim: int | None = None) -> np.ndarray:
    """Return x, [N, D], on the grid, float32.

    Raises:
        ValueError: x is not finite [N, D] within |x| <= 2, or D is not `dim`.
    """
    x = np.asarray(x)
    if x.ndim != 2 or (dim is not None and x.shape[1] != dim):
        raise ValueError(f"expected vectors [N, {dim or 'D'}], got {list(x.shape)}")
    norms = np.sqrt((x.astype(np.float64) ** 2).sum(axis=1))
    # Written so that a NaN fails it too.
    if not (norms <= MAX_NORM).all():
        row = int(np.flatnonzero(~(norms <= MAX_NORM))[0])
        raise ValueError(f"row {row}: expected a finite vector of length <= {MAX_NORM}, got {norms[row]}")
    return on_grid(x)


def check_weights(weights: np.ndarray | None, count: int) -> None:
    """Weights of `count` points, None for 1 each.

    Raises:
        ValueError: they are not [count] and positive.
    """
    if weights is not None and (weights.shape != (count,) or not (weights > 0).all()):
        raise ValueError(f"expected {count} positive weights, got shape {list(weights.shape)}")


def merge_equal(x: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows of x, [N, D], in one order whatever theirs was, and the sum of their weights, float32."""
    # One opaque value a row: many times faster than np.unique(axis=0), and equal rows have equal bytes here.
    rows = np.ascontiguousarray(x + 0.0).view(np.dtype((np.void, x.dtype.itemsize * x.shape[1])))
    distinct, inverse = np.unique(rows.ravel(), return_inverse=True)
    merged = np.bincount(inverse, weights=weights, minlength=len(distinct)).astype(np.float32)
    return distinct.view(x.dtype).reshape(-1, x.shape[1]), merged
