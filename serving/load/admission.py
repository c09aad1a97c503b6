"""Turns requests away at the entry that even the narrowest plan would answer too late."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from serving.load.outlook import Outlook

LOST_S = 0.25  # nothing waits that long for a scheduler that has nothing to do
SILENT_S = 5.0  # nor that long for one that says nothing
MARGIN = 0.88  # of the SLO that the prediction may fill: the answer's way back to the client is not in it
FLOOD = 2.0  # times the SLO
DEVIATIONS = 2.0  # by which a search may take longer than predicted


class Admission:
    """Admits a request, or says why not. Not thread-safe.

    Counts itself who waits: those that it has let in and that came after the newest request that a scheduler
    has taken. One that gets lost between the two leaves the count with the next one that is taken, or soon
    after a scheduler has nothing to do.
    """

    def __init__(self, *, max_queue: int) -> None:
        """Start with an empty queue, which holds `max_queue` requests, or one of more rows than that."""
        self._max_queue = max_queue
        self._waiting: deque[float] = deque()  # when each came in

    def admit(self, now: float, outlooks: Sequence[Outlook], *, rows: int = 1) -> str | None:
        """None for come in, else the message for the client.

        While a scheduler has width left to give up, or the floor keeps up with what comes, nobody is turned
        away for what is being searched: it would spare nobody else a wait. But a flood is one before the
        schedulers know it: those that wait alone take the floor much longer than the SLO. Without an outlook
        everybody comes in: the scheduler still refuses what is late. However that is, no more wait than may.

        Args:
            now: seconds, of the clock of the outlooks.
            outlooks: of the schedulers that share the queue.
            rows: searches that the request asks for.
        """
        self._forget(now, outlooks)
        waiting = len(self._waiting)
        if waiting and waiting + rows > self._max_queue:
            return f"queue: it is full, {waiting} requests wait and at most {self._max_queue} may"
        if outlooks:
            known = all(o.overloaded for o in outlooks)
            reason = self._late(now, outlooks, rows) if known else self._flooded(outlooks)
            if reason is not None:
                return reason
        self._waiting.extend([now] * rows)
        return None

    def _forget(self, now: float, outlooks: Sequence[Outlook]) -> None:
        taken = max((o.taken for o in outlooks), default=now - SILENT_S)
        if any(not o.search_s and now - o.began > LOST_S for o in outlooks):
            taken = max(taken, now - LOST_S)
        while self._waiting and self._waiting[0] <= taken:
            self._waiting.popleft()

    def _flooded(self, outlooks: Sequence[Outlook]) -> str | None:
        """Whether those that wait take the floor much longer than the SLO."""
        first, waiting = outlooks[0], len(self._waiting)
        batches = waiting / first.max_batch
        takes = batches * _search(first, first.max_batch) / len(outlooks)
        if batches <= 1 or takes <= FLOOD * first.slo_s:  # a batch may always wait
            return None
        return f"overloaded: {waiting} requests wait, which takes at least {1e3 * takes:.0f} ms"

    def _late(self, now: float, outlooks: Sequence[Outlook], rows: int) -> str | None:
        """Whether the batch that the request would be part of ends too late for the oldest in it."""
        first = min(outlooks, key=lambda o: o.free_in(now))
        ahead, waiting = divmod(len(self._waiting), first.max_batch)
        if not self._waiting and not first.search_s:
            return None  # who does not wait is not turned away
        free_in = first.free_in(now) + ahead * _search(first, first.max_batch) / len(outlooks)
        mates = min(waiting + rows, first.max_batch)
        own = _search(first, mates)
        # What is left of the search in hand and the own one are off independently of each other.
        takes = free_in + own + DEVIATIONS * first.spread * math.hypot(free_in, own)
        if _search(first, 1) > MARGIN * first.slo_s:
            # Too slow a machine for the SLO, whatever waits: then a batch may, so that it works at its best.
            late = ahead > 0
        else:
            oldest = self._waiting[ahead * first.max_batch] if waiting else now
            late = now + takes > oldest + MARGIN * first.slo_s
        if not late:
            return None
        return (
            f"overloaded: {len(self._waiting)} requests wait, the narrowest answer takes {1e3 * takes:.0f} ms"
        )


def _search(outlook: Outlook, requests: int) -> float:
    return outlook.batch_s + requests * outlook.request_s
