"""What an event is worth, in buckets.

Letters: V value buckets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ValueBuckets:
    """Equal-frequency buckets of the value of an event.

    Attributes:
        edges: float32 [V - 1], upper edges; a value equal to an edge lies below it.
        means: float32 [V], mean value of each bucket, what expected eCPM is computed from.
    """

    edges: np.ndarray
    means: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, *, buckets: int) -> ValueBuckets:
        """Cut at quantiles; many equal values (prices) can leave fewer buckets than asked for.

        Raises:
            ValueError: no values.
        """
        if not len(values):
            raise ValueError("value buckets: expected at least one training target with a value, got none")
        # Edges are values that occur, so that no bucket is empty.
        quantiles = np.quantile(values, np.linspace(0, 1, buckets + 1)[1:-1], method="lower")
        edges = np.unique(quantiles.astype(np.float32))
        edges = edges[edges < values.max()]
        bucket = np.searchsorted(edges, values)
        sums = np.bincount(bucket, weights=values, minlength=len(edges) + 1)
        counts = np.bincount(bucket, minlength=len(edges) + 1)
        return cls(edges, (sums / np.maximum(counts, 1)).astype(np.float32))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Bucket of each value, int64, any shape."""
        return np.searchsorted(self.edges, values)
