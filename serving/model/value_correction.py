"""What is added to an expected value, so that it is on average what ads of that prediction were worth.

Buckets of the value level stand for their mean. In the last one, which has no upper end, that mean is too
much for ads that seldom fall into it and too little for those that often do (docs/value-learning.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_ROUNDING = 1e-9  # relative: equal values, stored as what is added to unequal ones, come back not quite equal


@dataclass(frozen=True)
class ValueCorrection:
    """A monotone function of the expected value: a higher prediction never comes out lower, but for rounding.

    Attributes:
        points: (expected value, what is added there), ascending; linear between them, constant beyond. None
            at all leaves values as they are.

    Raises:
        ValueError: points that do not ascend, or would turn two values around; says which.
    """

    points: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        """Check that it is a monotone function."""
        for (low, add_low), (high, add_high) in pairwise(self.points):
            first, second = low + add_low, high + add_high
            slack = _ROUNDING * max(abs(low), abs(high))
            in_order = first <= second or math.isclose(first, second, rel_tol=_ROUNDING, abs_tol=slack)
            if not (low < high and in_order):
                raise ValueError(
                    "value_correction: expected ascending values that stay in their order, got "
                    f"{low} + {add_low} before {high} + {add_high}"
                )

    def of(self, values: np.ndarray) -> np.ndarray:
        """Corrected expected values float32, any shape; NaN stays NaN."""
        if not self.points:
            return values.astype(np.float32)
        at, add = np.array(self.points, np.float64).T
        return (values + np.interp(values, at, add)).astype(np.float32)


UNCORRECTED = ValueCorrection()
