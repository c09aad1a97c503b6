"""Which cores this process computes on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def pinned(cores: Iterable[int]) -> Iterator[None]:
    """This thread, and what it starts, on these cores; no helper threads of NumPy's matrix products."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        with threadpool_limits(1):
            yield
    finally:
        os.sched_setaffinity(0, before)
