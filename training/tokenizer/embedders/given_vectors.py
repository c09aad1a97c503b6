"""Embeddings that the ads come with, and numbers beside them.

    x = [ v / |v| ; clip((n - mean) / std, -3, 3) / (3 sqrt(F)) ]

Both parts have a length of at most 1, so x is within what residual k-means takes, and a typical ad's numbers
weigh a third of its embedding. A number that is left out is the mean.

Letters: N ads, D dimensions, F numeric columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.cooccurrence.positives import Positives
from training.tokenizer.embedders.base import Arrays

CLIP = 3.0  # standard deviations


@dataclass(frozen=True)
class GivenContent:
    """What N ads come with.

    Attributes:
        vectors: float32 [N, D]; D may be 0.
        numbers: float64 [N, F], NaN where one is left out; F may be 0.
        columns: names of the F numbers.
    """

    vectors: np.ndarray
    numbers: np.ndarray
    columns: tuple[str, ...]


class GivenVectors:
    """Given vectors as they are, of length 1, with standardised numbers behind them."""

    def __init__(self, dim: int, columns: Sequence[str], *, mean: np.ndarray, std: np.ndarray) -> None:
        """Take D, the names of the F numbers, and their mean and standard deviation, float64 [F] each.

        Raises:
            ValueError: the shapes do not agree, or there is nothing to read.
        """
        self.dim, self.columns = dim, tuple(columns)
        if mean.shape != (len(columns),) or std.shape != mean.shape or not dim + len(columns):
            raise ValueError(
                f"expected mean and deviation of the numbers {list(columns)} beside {dim} dimensions, got "
                f"{list(mean.shape)} and {list(std.shape)}"
            )
        self.mean, self.std = mean, std

    @classmethod
    def fit(
        cls, content: GivenContent, config: TokenizerConfig, *, positives: Positives | None = None
    ) -> Self:
        """Learn mean and standard deviation of each number; of one that is constant the deviation is 1.

        The vectors stay as they are given, so `positives` are not looked at.

        Raises:
            ValueError: a column without any number.
        """
        known = np.isfinite(content.numbers)
        for column, name in enumerate(content.columns):
            if not known[:, column].any():
                raise ValueError(f"ads, column {name}: expected at least one number to fit on, got none")
        mean = np.array([n[k].mean() for n, k in zip(content.numbers.T, known.T, strict=True)])
        std = np.array([n[k].std() for n, k in zip(content.numbers.T, known.T, strict=True)])
        return cls(
            content.vectors.shape[1],
            content.columns,
            mean=mean.astype(np.float64),
            std=np.where(std > 0, std, 1.0).astype(np.float64),
        )

    def embed(self, content: GivenContent) -> np.ndarray:
        """Return x, float32 [N, D + F]; an all-zero vector stays zero.

        Raises:
            ValueError: content of another width.
        """
        if content.vectors.shape[1] != self.dim or content.numbers.shape[1] != len(self.columns):
            raise ValueError(
                f"expected embeddings of {self.dim} numbers and {len(self.columns)} numeric columns, got "
                f"{content.vectors.shape[1]} and {content.numbers.shape[1]}"
            )
        vectors = content.vectors.astype(np.float64)
        # A running sum has one order of addition, so the encoder's graph rounds as this does.
        length = (
            np.sqrt(np.cumsum(vectors * vectors, axis=1)[:, -1:]) if self.dim else np.ones((len(vectors), 1))
        )
        unit = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
        standard = (np.where(np.isnan(content.numbers), self.mean, content.numbers) - self.mean) / self.std
        scaled = np.clip(standard, -CLIP, CLIP) * self.scale
        return np.concatenate([unit, scaled], axis=1).astype(np.float32)

    @property
    def scale(self) -> float:
        """Of the standardised numbers: 1 / (3 sqrt(F))."""
        return 1.0 / (CLIP * max(len(self.columns), 1) ** 0.5)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return means and deviations, and what they are of."""
        return {"mean": self.mean, "std": self.std}, {"dim": self.dim, "columns": list(self.columns)}

    @classmethod
    def from_state(cls, arrays: Arrays, metadata: dict[str, Any]) -> Self:
        """Rebuild from `state()`."""
        return cls(metadata["dim"], metadata["columns"], mean=arrays["mean"], std=arrays["std"])
