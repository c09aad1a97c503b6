"""What a scheduler process sees of its load, and how many requests wait behind a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from serving.load.queue_depth import QueueReading


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
        reading: what the server says of the queue, None where it does not say; see
            `serving.load.queue_depth`.
    """

    requests: Sequence[Waiting]
    reading: QueueReading | None = None


def newest(load: LoadView, now: float) -> float | None:
    """When the newest request in hand came in; None where no request has a usable stamp."""
    stamps = [r.arrived for r in load.requests if r.arrived is not None and -math.inf < r.arrived <= now]
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
        at, reading = newest(load, now), load.reading
        if reading is None and at is None:
            return min((self._full - 1) * self._max_batch, self._most) if full else 0.0
        # Those of the batch that came before the reading are among those that waited then.
        said = 0.0 if reading is None else reading.pending - _before(load, reading.at)
        age = now - at if full and at is not None else 0.0
        return min(max(said, rate * age, 0.0), self._most)


def _before(load: LoadView, at: float) -> int:
    return sum(r.arrived is not None and r.arrived < at for r in load.requests)
