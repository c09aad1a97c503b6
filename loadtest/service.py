"""What a simulated server spends its time on: searches, and what comes before and after them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Service:
    """True times; the policies do not see them.

    Attributes:
        batch_s: a search.
        request_s: a request.
        row_s: a beam that a tail sees.
        noise: standard deviation of a search's time over its mean (gamma distributed).
        entry_s: the entry's work on a request, before it waits; one after the other, refused ones too.
        answer_s: work on a request after its search, one after the other.
        shared_core: entry and answers take their time from the searches that run meanwhile.
        stall_every_s: mean time between two stalls (garbage collection, a neighbour that gets the core).
        stall_s: how long a stall holds the search that it meets.
        slow_at: moment from which searches take `slow_by` times as long.
        slow_by: see there.
    """

    batch_s: float
    request_s: float
    row_s: float
    noise: float = 0.1
    entry_s: float = 0.0
    answer_s: float = 0.0
    shared_core: bool = True
    stall_every_s: float = math.inf
    stall_s: float = 0.0
    slow_at: float = math.inf
    slow_by: float = 1.0

    @classmethod
    def of(
        cls, full_batch_s: float, *, rows: int, max_batch: int, fixed: float, once: float, noise: float = 0.1
    ) -> Service:
        """From the time of a full batch of the base plan.

        Args:
            full_batch_s: its seconds.
            rows: of the base plan.
            max_batch: its requests.
            fixed: share of it that does not depend on the rows.
            once: part of that share that is paid once a search, the rest once a request.
            noise: see the attributes.
        """
        still = fixed * full_batch_s
        return cls(
            batch_s=once * still,
            request_s=(1 - once) * still / max_batch,
            row_s=(1 - fixed) * full_batch_s / (max_batch * rows),
            noise=noise,
        )

    def seconds(self, requests: int, rows: float) -> float:
        """Mean time of a search."""
        return self.batch_s + requests * (self.request_s + rows * self.row_s)


class Durations:
    """Times of searches as they come, with noise, stalls and slowness."""

    def __init__(self, service: Service, rng: np.random.Generator) -> None:
        """Of one cluster."""
        self._service, self._rng, self._factors = service, rng, _factors(rng, service.noise)
        self._stalls = math.isfinite(service.stall_every_s) and service.stall_s > 0

    def next(self, now: float, *, requests: int, rows: float) -> float:
        """Seconds of a search that starts now, without what entry and answers take from it."""
        service = self._service
        seconds = service.seconds(requests, rows) * next(self._factors)
        if now >= service.slow_at:
            seconds *= service.slow_by
        if self._stalls:
            seconds += service.stall_s * self._rng.poisson(seconds / service.stall_every_s)
        return seconds


def _factors(rng: np.random.Generator, noise: float) -> Iterator[float]:
    """Endless factors of mean 1, drawn in blocks."""
    while True:
        if noise <= 0:
            yield from [1.0] * 4096
        else:
            yield from rng.gamma(1 / noise**2, noise**2, 4096).tolist()
