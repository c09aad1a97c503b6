"""Executor that notes what each call of a tail was about, and how long it took."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from serving.search.executor import Carry, Executor


class TailCall(NamedTuple):
    """One call of a tail graph.

    Attributes:
        rows: beams of each request, padding included.
        requests: of the batch.
        seconds: wall time.
    """

    rows: int
    requests: int
    seconds: float


class MeteredExecutor:
    """`Executor` around another one; beams are those of the inner one."""

    def __init__(self, executor: Executor) -> None:
        """Wrap."""
        self._executor = executor
        self._calls: list[TailCall] = []

    def take(self) -> list[TailCall]:
        """Calls since the last time."""
        calls, self._calls = self._calls, []
        return calls

    def prefix(self, slots: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, Carry]:
        """See `Executor.prefix`."""
        return self._executor.prefix(slots, profile)

    def tail(
        self, level: int, carry: Carry, *, parents: list[np.ndarray], token: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, Carry]:
        """See `Executor.tail`."""
        began = time.perf_counter()
        found = self._executor.tail(level, carry, parents=parents, token=token, allowed=allowed)
        requests, rows = token.shape
        self._calls.append(TailCall(rows, requests, time.perf_counter() - began))
        return found

    def join(self, level: int, first: Carry, second: Carry) -> tuple[Carry, int]:
        """See `Executor.join`."""
        return self._executor.join(level, first, second)
