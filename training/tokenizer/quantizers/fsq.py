"""Finite scalar quantization on principal axes: a baseline without codebooks.

A level of K codes is a product of a few scalars, each bounded and rounded to L values, prod L = K (FSQ;
Mentzer et al., arXiv 2309.15505). Where FSQ learns the scalars with an autoencoder, ours are the coordinates
p on the principal axes, the leading ones for the first level:

    q = round( (L - 1) / 2 * tanh((p - mean) / std) )

Only the borders between values are kept, as numbers on the grid: how often p lies above one is exact.

Letters: N points, D dimensions, P axes in use, K codes of a level.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.quantizers.base import Arrays, check_codes
from training.tokenizer.quantizers.grid import GRID, check_points, check_weights, merge_equal, on_grid

MOST_VALUES = 8  # of a scalar, where K has such factors


class Fsq:
    """Axes, and borders on each."""

    def __init__(
        self, axes: np.ndarray, borders: list[list[np.ndarray]], *, values: list[list[np.ndarray]]
    ) -> None:
        """Put fitted parts together.

        Args:
            axes: float32 [D, P], on the grid.
            borders: of each level, of each of its scalars, float64 [L - 1], ascending, on the grid.
            values: what each stands for on its axis, float64 [L].

        Raises:
            ValueError: their numbers do not agree.
        """
        counts = [[len(b) + 1 for b in level] for level in borders]
        if counts != [[len(v) for v in level] for level in values] or axes.shape[1] != sum(map(len, counts)):
            raise ValueError(f"expected values and axes [D, P] for borders of {counts}, got {axes.shape}")
        self.axes, self.borders, self.values = axes, borders, values
        self._counts = counts

    @classmethod
    def fit(
        cls,
        x: np.ndarray,
        config: TokenizerConfig,
        *,
        weights: np.ndarray | None = None,
        start: np.ndarray | None = None,
    ) -> Self:
        """See `Quantizer`; `start` is ignored.

        Raises:
            ValueError: the vectors spread over fewer axes than the levels have scalars.
        """
        check_weights(weights, len(x))
        points, mass = merge_equal(check_points(x), weights)
        wide, share = points.astype(np.float64), mass.astype(np.float64)[:, None] / mass.sum(dtype=np.float64)
        mean = (wide * share).sum(axis=0)
        spread, axes = np.linalg.eigh(((wide - mean) * share).T @ (wide - mean))  # ascending
        spread, axes = spread[::-1], axes[:, ::-1]
        counts = [_factors(size) for size in config.codebook_sizes]
        needed, there = sum(map(len, counts)), int((spread > 1.0 / GRID).sum())
        if there < needed:
            raise ValueError(
                f"expected vectors that spread over {needed} axes for levels of {counts} values, got {there} "
                f"among {len(points)} distinct ones: lower codebook_sizes or give more varied ads"
            )
        axes = axes[:, :needed]
        axes = on_grid(axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(needed)]))
        along = wide @ axes.astype(np.float64)  # [N, P]
        borders: list[list[np.ndarray]] = []
        values: list[list[np.ndarray]] = []
        axis = 0
        for level in counts:
            borders.append([])
            values.append([])
            for count in level:
                centre, deviation = float((along[:, axis] * share[:, 0]).sum()), float(spread[axis]) ** 0.5
                between = (2.0 * np.arange(count - 1) + 2 - count) / (count - 1)
                border = np.rint((centre + deviation * np.arctanh(between)) * GRID) / GRID
                inside = (along[:, axis, None] > border).sum(axis=1)
                total = np.bincount(inside, weights=share[:, 0], minlength=count)
                sums = np.bincount(inside, weights=share[:, 0] * along[:, axis], minlength=count)
                empty = np.append(border, border[-1])  # no point: a border of the value
                borders[-1].append(border)
                values[-1].append(np.where(total > 0, sums / np.maximum(total, 1e-300), empty))
                axis += 1
        return cls(axes, borders, values=values)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """See `Quantizer`."""
        return tuple(int(np.prod(level)) for level in self._counts)

    def encode(self, x: np.ndarray) -> np.ndarray:
        """See `Quantizer`: a level's scalars are the digits of its code, the first the lowest."""
        along = check_points(x, dim=len(self.axes)).astype(np.float64) @ self.axes.astype(np.float64)
        codes = np.zeros((len(along), len(self.borders)), np.int32)
        axis = 0
        for level, borders in enumerate(self.borders):
            place = 1
            for border in borders:
                codes[:, level] += place * (along[:, axis, None] > border).sum(axis=1, dtype=np.int32)
                place, axis = place * (len(border) + 1), axis + 1
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """See `Quantizer`: what the scalars stand for, along their axes."""
        codes = check_codes(codes, self.level_sizes)
        total, axis = np.zeros((len(codes), len(self.axes))), 0
        for level, column in zip(self.values, codes.T, strict=False):
            rest = column.astype(np.int64)
            for value in level:
                rest, digit = np.divmod(rest, len(value))
                total += value[digit][:, None] * self.axes[:, axis]
                axis += 1
        return total.astype(np.float32)

    def state(self) -> Arrays:
        """Return the axes, and border.l.s and value.l.s of scalar s of level l."""
        arrays = {"axes": self.axes}
        for level, (borders, values) in enumerate(zip(self.borders, self.values, strict=True)):
            for scalar, (border, value) in enumerate(zip(borders, values, strict=True)):
                arrays |= {f"border.{level}.{scalar}": border, f"value.{level}.{scalar}": value}
        return arrays

    @classmethod
    def from_state(cls, arrays: Arrays) -> Self:
        """Rebuild from `state()`."""
        axes = arrays["axes"]
        names = sorted(tuple(map(int, n.split(".")[1:])) for n in arrays if n.startswith("border."))
        borders: list[list[np.ndarray]] = [[] for _ in range(1 + max((n[0] for n in names), default=-1))]
        values: list[list[np.ndarray]] = [[] for _ in borders]
        for level, scalar in names:
            borders[level].append(arrays[f"border.{level}.{scalar}"])
            values[level].append(arrays[f"value.{level}.{scalar}"])
        return cls(axes, borders, values=values)


def _factors(size: int) -> list[int]:
    """Numbers of values whose product is `size`, as few and as large as can be up to `MOST_VALUES`."""
    factors: list[int] = []
    rest, divisor = size, 2
    while rest > 1:
        while rest % divisor:
            divisor += 1
        rest //= divisor
        if factors and factors[-1] * divisor <= MOST_VALUES:
            factors[-1] *= divisor
        else:
            factors.append(divisor)
    return factors
