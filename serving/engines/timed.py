"""Executor that tells how long each call of another one took."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from serving.search.executor import Carry, Executor


class TimedExecutor:
    """`Executor` around another one; beams are those of the inner one."""

    def __init__(self, executor: Executor, *, last_level: int, report: Callable[[str, float], None]) -> None:
        """Wrap; `report` gets "prefix", "2" .. "T" or "value", and seconds."""
        self._executor, self._last, self._report = executor, last_level, report

    def prefix(self, slots: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, Carry]:
        """See `Executor.prefix`."""
        began = time.perf_counter()
        found = self._executor.prefix(slots, profile)
        self._report("prefix", time.perf_counter() - began)
        return found

    def tail(
        self, level: int, carry: Carry, *, parents: list[np.ndarray], token: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, Carry]:
        """See `Executor.tail`."""
        began = time.perf_counter()
        found = self._executor.tail(level, carry, parents=parents, token=token, allowed=allowed)
        name = "value" if level == self._last else str(level)
        self._report(name, time.perf_counter() - began)
        return found

    def join(self, level: int, first: Carry, second: Carry) -> tuple[Carry, int]:
        """See `Executor.join`."""
        return self._executor.join(level, first, second)
