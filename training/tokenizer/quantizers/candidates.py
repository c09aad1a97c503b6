"""Nearest codes of one set of points while only the prices move, without looking at every code each time.

Code k scores bias[k] - r.C[k]. Centroids stand still while prices are sought, so a point keeps a list of the
codes that scored least when it was last compared with all of them, and the least score outside the list, its
floor. Since then no score outside has fallen by more than the bias that fell most:

    bias[k] - r.C[k] >= floor + min_j (bias[j] - bias_then[j])     for k outside the list

A point whose best listed code scores less than that has found its code; the others are compared with all
codes again. (Hamerly's bound, 2010, on lists.) All of it is on the grid, so codes are those of
`Level.nearest`, bit for bit.

Letters: N points, D dimensions, K codes, M codes on a list.
"""

import numpy as np

from training.tokenizer.quantizers.residual import BLOCK_ROWS, Level

LISTED = 32  # M
LIST_ROWS = 2**14  # bounds the [rows, M] scores


class Candidates:
    """Points and their lists, for levels of one codebook."""

    def __init__(self, points: np.ndarray, level: Level) -> None:
        """Compare all points, float32 [N, D] on the grid, with all codes of the level."""
        self._points, self._centroids = points, level.codebook.astype(np.float64).T
        listed = min(LISTED, len(level.price))
        self._codes = np.empty((len(points), listed), np.int32)
        self._products = np.empty((len(points), listed))  # r.C of the listed codes
        self._floor = np.empty(len(points))
        self._when = np.empty(len(points), np.int32)  # place in `_biases`
        self._biases = [level.bias]
        self._list(np.arange(len(points)))

    def nearest(self, level: Level) -> np.ndarray:
        """Return codes int32 [N] by a level of the same codebook."""
        bias = level.bias
        fall = np.array([(bias - then).min() for then in self._biases])
        codes, sure = np.empty(len(self._points), np.int32), np.empty(len(self._points), bool)
        for start in range(0, len(codes), LIST_ROWS):
            rows = slice(start, start + LIST_ROWS)
            codes[rows], least = self._best_listed(rows, bias)
            sure[rows] = least < self._floor[rows] + fall[self._when[rows]]
        unsure = np.flatnonzero(~sure)
        self._biases.append(bias)
        self._list(unsure)
        codes[unsure], _ = self._best_listed(unsure, bias)
        return codes

    def _best_listed(self, rows: slice | np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Listed code that scores least, the lowest of equal ones, and its score."""
        score = bias[self._codes[rows]] - self._products[rows]  # [rows, M]
        best = score.argmin(axis=1)[:, None]
        return (
            np.take_along_axis(self._codes[rows], best, axis=1)[:, 0],
            np.take_along_axis(score, best, axis=1)[:, 0],
        )

    def _list(self, rows: np.ndarray) -> None:
        """Compare these points with all codes by the newest biases."""
        bias, listed = self._biases[-1], self._codes.shape[1]
        for start in range(0, len(rows), BLOCK_ROWS):
            some = rows[start : start + BLOCK_ROWS]
            product = self._points[some].astype(np.float64) @ self._centroids  # [rows, K]
            score = bias - product
            if listed < len(bias):
                order = np.argpartition(score, listed, axis=1)
                self._floor[some] = np.take_along_axis(score, order[:, listed:][:, :1], axis=1)[:, 0]
            else:
                order = np.broadcast_to(np.arange(listed), score.shape)
                self._floor[some] = np.inf
            # In order, so that the first of equal scores is the lowest code.
            self._codes[some] = np.sort(order[:, :listed], axis=1)
            self._products[some] = np.take_along_axis(product, self._codes[some], axis=1)
        self._when[rows] = len(self._biases) - 1
