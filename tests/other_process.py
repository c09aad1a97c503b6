"""A process that has no index open: LMDB opens one once a process, and a fork remembers its parent's."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

T = TypeVar("T")


def in_other_process(function: Callable[..., T], *arguments: object) -> T:
    """Result of a function of a module, or its exception; a crash is a `BrokenProcessPool`."""
    try:
        return _pool().submit(function, *arguments).result()
    except BrokenProcessPool:
        _pool.cache_clear()
        raise


@functools.cache
def _pool() -> ProcessPoolExecutor:
    # One for all tests: each would import NumPy and the rest anew.
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
