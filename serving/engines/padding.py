"""Calls padded to few shapes, for engines that keep a CUDA graph a shape.

Letters: B requests, n beams, C children.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from serving.ranking.ranker import RankGraph
from serving.search.executor import Carry, Executor
from serving.search.widths import WidthPlan


@dataclass(frozen=True)
class ShapeBuckets:
    """Sizes that a dimension is padded to; a size above the last bucket stays as it is.

    Attributes:
        batch: of B, ascending.
        beams: of n at level 2 .. T + 1 (the value level), ascending each.
        children: of C at level 2 .. T + 1, ascending each.
    """

    batch: tuple[int, ...]
    beams: tuple[tuple[int, ...], ...]
    children: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls, plans: tuple[WidthPlan, ...], *, level_sizes: tuple[int, ...], value_buckets: int, max_batch: int
    ) -> ShapeBuckets:
        """Buckets that hold the rungs of a ladder.

        Batches are padded to powers of two, beams to the width of a rung, children to powers of four (8 at
        least, the codebook at most). The value level has one number of children.

        Args:
            plans: rungs.
            level_sizes: V_1 .. V_T.
            value_buckets: V of the value level.
            max_batch: largest B.
        """
        levels = len(level_sizes)
        # The tail of level t scores the beams that level t - 1 kept; the value level fewer of them.
        beams = [tuple(sorted({p.sid[t - 2] for p in plans})) for t in range(2, levels + 1)]
        beams.append(tuple(sorted({p.value for p in plans})))
        children = [_steps(8, size, factor=4) for size in level_sizes[1:]]
        children.append((value_buckets,))
        return cls(_steps(1, max_batch, factor=2), tuple(beams), tuple(children))


class PaddedExecutor:
    """`Executor` around another one; beams are those of the inner one.

    Rows of padding come last and are cut off the scores. Keys and values keep theirs: no parent points there.
    """

    def __init__(self, inner: Executor, buckets: ShapeBuckets) -> None:
        """Wrap."""
        self._inner, self._buckets = inner, buckets

    def prefix(self, slots: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, Carry]:
        """See `Executor.prefix`."""
        count = len(slots)
        batch = _bucket(count, self._buckets.batch)
        logprob, carry = self._inner.prefix(_pad(slots, (batch,), fill=0), _pad(profile, (batch,), fill=0))
        return logprob[:count], carry

    def tail(
        self, level: int, carry: Carry, *, parents: list[np.ndarray], token: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, Carry]:
        """See `Executor.tail`."""
        count, beams, children = allowed.shape
        batch = _bucket(count, self._buckets.batch)
        n = _bucket(beams, self._buckets.beams[level - 2])
        c = _bucket(children, self._buckets.children[level - 2])
        logprob, carry = self._inner.tail(
            level,
            carry,
            parents=[_pad(p, (batch, n), fill=0) for p in parents],
            token=_pad(token, (batch, n), fill=0),
            allowed=_pad(allowed, (batch, n, c), fill=-1),
        )
        return logprob[:count, :beams, :children], carry

    def join(self, level: int, first: Carry, second: Carry) -> tuple[Carry, int]:
        """See `Executor.join`; rows of padding of the first call stay between the two."""
        return self._inner.join(level, first, second)


class PaddedRankGraph:
    """`RankGraph` around another one; a ranker itself pads the ads of a request."""

    def __init__(self, inner: RankGraph, *, batch: tuple[int, ...]) -> None:
        """Wrap; `batch` are sizes of B, ascending."""
        self._inner, self._batch = inner, batch

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `RankGraph`."""
        count = len(next(iter(inputs.values())))
        shape = (_bucket(count, self._batch),)
        return self._inner({name: _pad(values, shape, fill=0) for name, values in inputs.items()})[:count]


def _steps(first: int, last: int, *, factor: int) -> tuple[int, ...]:
    """first, first * factor, ... and last."""
    steps = []
    while first < last:
        steps.append(first)
        first *= factor
    return (*steps, last)


def _bucket(size: int, buckets: tuple[int, ...]) -> int:
    at = bisect_left(buckets, size)
    return buckets[at] if at < len(buckets) else size


def _pad(array: np.ndarray, shape: tuple[int, ...], *, fill: int) -> np.ndarray:
    """The array with its first dimensions filled up to `shape`."""
    if array.shape[: len(shape)] == shape:
        return array
    padded = np.full((*shape, *array.shape[len(shape) :]), fill, array.dtype)
    padded[tuple(slice(0, s) for s in array.shape)] = array
    return padded
