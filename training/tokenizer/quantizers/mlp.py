"""A residual layer whose output has the same bits everywhere.

    f(x) = clip(x + W_2 ReLU(W_1 x + b_1) + b_2, -1, 1)

x, weights and, rounded, the hidden layer are on the grid of 2^-20, so every product is a multiple of 2^-40;
as long as no sum reaches 2^12, float64 adds them exactly in any order (see `grid.py`), here as in the
encoder's graph. That is why it is ReLU and no other activation: it does not round.

Letters: N points, D dimensions, H hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from training.tokenizer.quantizers.base import Arrays
from training.tokenizer.quantizers.grid import GRID, MAX_NORM, on_grid

LARGEST_SUM = 2.0**12
LIMIT = 1.0  # of a coordinate of the output


@dataclass(frozen=True)
class ResidualMlp:
    """The layer.

    Attributes:
        w1: float32 [D, H], on the grid as all of them.
        b1: float32 [H].
        w2: float32 [H, D].
        b2: float32 [D].
    """

    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray

    def __post_init__(self) -> None:
        """Check the parts.

        Raises:
            ValueError: the shapes do not agree, a number is not finite, or a sum might not be exact.
        """
        hidden, dim = self.w2.shape
        shapes = [list(a.shape) for a in (self.w1, self.b1, self.w2, self.b2)]
        if shapes != [[dim, hidden], [hidden], [hidden, dim], [dim]]:
            raise ValueError(f"expected weights [D, H], [H], [H, D], [D], got {shapes}")
        most = MAX_NORM * np.abs(self.w1, dtype=np.float64).sum(axis=0) + np.abs(self.b1)  # [H]
        sums = MAX_NORM + most @ np.abs(self.w2, dtype=np.float64) + np.abs(self.b2)  # [D]
        largest = float(np.concatenate([most, sums]).max())
        if not largest < LARGEST_SUM:
            raise ValueError(f"expected sums below {LARGEST_SUM:.0f}, so that they are exact, got {largest}")

    @classmethod
    def of(cls, w1: np.ndarray, b1: np.ndarray, *, w2: np.ndarray, b2: np.ndarray) -> Self:
        """Put the weights on the grid.

        Raises:
            ValueError: see the class.
        """
        return cls(on_grid(w1), on_grid(b1), on_grid(w2), on_grid(b2))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return f float32 [N, D], on the grid, of points float32 [N, D] on the grid, |x| <= 2."""
        x = points.astype(np.float64)
        hidden = np.maximum(x @ self.w1.astype(np.float64) + self.b1, 0.0)  # [N, H]
        hidden = np.rint(hidden * GRID) / GRID
        output = x + (hidden @ self.w2.astype(np.float64) + self.b2)
        return on_grid(np.clip(output, -LIMIT, LIMIT))

    def state(self, prefix: str) -> Arrays:
        """The weights, by names that begin with `prefix`."""
        return {prefix + name: getattr(self, name) for name in ("w1", "b1", "w2", "b2")}

    @classmethod
    def from_state(cls, arrays: Arrays, prefix: str) -> Self:
        """Rebuild from `state()`."""
        w1, b1, w2, b2 = (arrays[prefix + name] for name in ("w1", "b1", "w2", "b2"))
        return cls.of(w1, b1, w2=w2, b2=b2)
