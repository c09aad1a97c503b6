"""Embeddings that the ads come with, and numbers beside them.

    x = [ v_1 / (sqrt(M) |v_1|) ; .. ; v_M / (sqrt(M) |v_M|) ; clip((n - mean) / std, -3, 3) / (3 sqrt(F)) ]

An embedding may be that of several modalities (image, video, ..), one behind the other; each has the same
weight, and one that is all zero, where an ad has none, has no part in x. Embedding and numbers have a length
of at most 1 each, so x is within what residual k-means takes, and a typical ad's numbers weigh a third of its
embedding. A number that is left out is the mean.

Letters: N ads, D dimensions, M modalities, F numeric columns.
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
        widths: dimensions of each of the M modalities, D in all; empty for a single one.
    """

    vectors: np.ndarray
    numbers: np.ndarray
    columns: tuple[str, ...]
    widths: tuple[int, ...] = ()


class GivenVectors:
    """Given vectors as they are, of length 1, with standardised numbers behind them."""

    def __init__(
        self,
        dim: int,
        columns: Sequence[str],
        *,
        mean: np.ndarray,
        std: np.ndarray,
        widths: Sequence[int] = (),
    ) -> None:
        """Take D, the names of the F numbers, and their mean and standard deviation, float64 [F] each.

        `widths` are the dimensions of each modality; empty for a single one.

        Raises:
            ValueError: the shapes do not agree, or there is nothing to read.
        """
        self.dim, self.columns, self.widths = dim, tuple(columns), tuple(widths) or (dim,)
        if sum(self.widths) != dim:
            raise ValueError(f"expected modalities of {dim} dimensions in all, got {list(widths)}")
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
        # The deviation of equal numbers may be a rounding error instead of 0.
        std = np.where(std > 1e-12 * np.abs(mean), std, 0.0)
        return cls(
            content.vectors.shape[1],
            content.columns,
            mean=mean.astype(np.float64),
            std=np.where(std > 0, std, 1.0).astype(np.float64),
            widths=content.widths,
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
        ends = np.cumsum(self.widths)[:-1]
        unit = [_unit(part) for part in np.split(content.vectors.astype(np.float64), ends, axis=1)]
        if len(unit) > 1:
            unit = [part * self.share for part in unit]
        standard = (np.where(np.isnan(content.numbers), self.mean, content.numbers) - self.mean) / self.std
        scaled = np.clip(standard, -CLIP, CLIP) * self.scale
        return np.concatenate([*unit, scaled], axis=1).astype(np.float32)

    @property
    def width(self) -> int:
        """Dimensions of x, D + F."""
        return self.dim + len(self.columns)

    @property
    def share(self) -> float:
        """Length of one of several modalities: 1 / sqrt(M)."""
        return 1.0 / len(self.widths) ** 0.5

    @property
    def scale(self) -> float:
        """Of the standardised numbers: 1 / (3 sqrt(F))."""
        return 1.0 / (CLIP * max(len(self.columns), 1) ** 0.5)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return means and deviations, and what they are of."""
        metadata: dict[str, Any] = {"dim": self.dim, "columns": list(self.columns)}
        if len(self.widths) > 1:
            metadata["widths"] = list(self.widths)
        return {"mean": self.mean, "std": self.std}, metadata

    @classmethod
    def from_state(cls, arrays: Arrays, metadata: dict[str, Any]) -> Self:
        """Rebuild from `state()`."""
        return cls(
            metadata["dim"],
            metadata["columns"],
            mean=arrays["mean"],
            std=arrays["std"],
            widths=metadata.get("widths", ()),
        )


def _unit(vectors: np.ndarray) -> np.ndarray:
    # A running sum has one order of addition, so the encoder's graph rounds as this does.
    squares = np.cumsum(vectors * vectors, axis=1)[:, -1:] if vectors.shape[1] else np.ones((len(vectors), 1))
    length = np.sqrt(squares)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
