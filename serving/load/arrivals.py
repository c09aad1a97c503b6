"""How many requests a second come, and how many wait, from what a scheduler process sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Waiting(NamedTuple):
    """One request in hand. Times are of the clock that `now` is of; None where nobody took them.

    Attributes:
        arrived: when it came in.
        deadline: when its answer must be there; None: `arrived` plus the SLO.
    """

    arrived: float | None = None
    deadline: float | None = None


class LoadView(NamedTuple):
    """What a scheduler process sees when it has taken a batch.

    Attributes:
        requests: the batch.
        pending: requests still waiting for any instance of the scheduler, None where nobody knows; see
            `serving.load.queue_depth`.
        total: requests that ever came to any instance, a counter that only a restart sets back; None where
            nobody knows.
    """

    requests: Sequence[Waiting]
    pending: float | None = None
    total: float | None = None


class ArrivalRate:
    """Requests a second, exponentially weighted over about a second.

    With a counter of all arrivals it is exact; without, a process counts its own and takes them for its share
    of `instances`. Stamps of the requests themselves place them where they arrived: a process that is late
    with its work still sees the true rate.
    """

    def __init__(self, *, instances: int, memory_s: float) -> None:
        """Start without a rate."""
        self._instances, self._memory = instances, memory_s
        self._sum, self._at, self._since = 0.0, -math.inf, math.inf
        self._total: float | None = None

    def update(self, now: float, load: LoadView) -> None:
        """Count the requests of a batch."""
        total, count = load.total, float(len(load.requests) * self._instances)
        at = now
        if total is not None and math.isfinite(total):
            # The first reading, or a restarted server's, has no difference yet.
            count = total - self._total if self._total is not None and total >= self._total else 0.0
            self._total = total
        else:
            self._total = None  # what came meanwhile is counted here, not again when the counter is back
            stamp = newest(load, now)
            at = now if stamp is None else stamp
        if self._at == -math.inf:
            self._at = self._since = at
            return
        if at > self._at:
            self._sum *= math.exp((self._at - at) / self._memory)
            self._at = at
        self._sum += count / self._memory

    def shift(self, seconds: float) -> None:
        """The clock was set by that much."""
        self._at, self._since = self._at + seconds, self._since + seconds

    def value(self, now: float) -> float:
        """Requests a second; 0 before a fifth of the memory has passed."""
        age = self._at - self._since
        if not age >= 0.2 * self._memory:
            return 0.0
        # `now` may be ahead of the newest stamp by what requests wait, which is no lull in arrivals.
        lull = max(now - self._at - self._memory, 0.0)
        return self._sum * math.exp(-lull / self._memory) / -math.expm1(-age / self._memory)


def newest(load: LoadView, now: float) -> float | None:
    """When the newest request in hand came in; None where no request has a usable stamp."""
    stamps = [r.arrived for r in load.requests if r.arrived is not None and r.arrived <= now]
    return max(stamps, default=None)


class QueueLength:
    """Requests that wait behind a batch: the largest of what the server says and what the batch itself says.

    A batch that is not full has emptied the queue. Behind a full one waits what has come since its newest
    request came: age times rate. Where neither the server nor stamps say anything, every full batch in a row
    is taken for another one waiting.
    """

    def __init__(self, *, max_batch: int, most: int) -> None:
        """Start with an empty queue that holds `most`."""
        self._max_batch, self._most = max_batch, most
        self._full = 0  # full batches in a row

    def update(self, now: float, load: LoadView, *, rate: float) -> float:
        """Requests that wait now, never more than the queue holds."""
        full = len(load.requests) >= self._max_batch
        self._full = self._full + 1 if full else 0
        said = load.pending
        if said is not None and not 0 <= said < math.inf:
            said = None
        at = newest(load, now)
        if said is None and at is None:
            return min((self._full - 1) * self._max_batch, self._most) if full else 0.0
        age = now - at if full and at is not None else 0.0
        return min(max(said or 0.0, rate * age), self._most)
