"""The bounded queue in front of the writer thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from indexer.sources.submission import Submission, UnavailableError

Queued = tuple[Submission, int]
"""One item of a submission."""


class Intake:
    """Items in order of arrival, bounded by number and bytes.

    A submission is taken whole while there is room at all, so a bulk is never cut in two. Streams may fill
    half of the queue only: one that catches up on millions of events leaves room for HTTP.
    """

    def __init__(self, *, max_events: int, max_bytes: int) -> None:
        """Start empty."""
        self._queue: deque[Queued] = deque()
        self._changed = threading.Condition()
        self._max_events, self._max_bytes = max_events, max_bytes
        self._bytes = 0
        self._closed = False

    def __len__(self) -> int:
        """Items waiting."""
        return len(self._queue)

    def put(self, submission: Submission, *, stop: threading.Event | None = None) -> bool:
        """Append all items.

        Args:
            submission: what to append.
            stop: wait for room until this is set; None does not wait.

        Returns:
            False when `stop` was set before there was room.

        Raises:
            UnavailableError: no room and not to wait, or the writer stops.
        """
        with self._changed:
            while not self._has_room(submission) and not self._closed:
                if stop is None:
                    raise UnavailableError(f"{len(self._queue)} events are waiting already; try again later")
                self._changed.wait(0.1)
                if stop.is_set():
                    return False
            if self._closed:
                raise UnavailableError("the indexer is stopping")
            self._queue.extend((submission, i) for i in range(len(submission.items)))
            self._bytes += sum(len(i.raw) for i in submission.items)
            self._changed.notify_all()
        return True

    def take(self, count: int, *, first_s: float, more_s: float) -> list[Queued]:
        """Up to `count` items: waits `first_s` for the first and from then on `more_s` for the others."""
        with self._changed:
            if not self._queue and not self._closed:
                self._changed.wait(first_s)
            deadline = time.monotonic() + more_s
            while 0 < len(self._queue) < count and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            queued = [self._queue.popleft() for _ in range(min(count, len(self._queue)))]
            self._bytes -= sum(len(s.items[i].raw) for s, i in queued)
            self._changed.notify_all()
        return [(s, i) for s, i in queued if not s.future.done()]

    def put_back(self, queued: list[Queued]) -> None:
        """Return what was taken last to the front."""
        with self._changed:
            self._queue.extendleft(reversed(queued))
            self._bytes += sum(len(s.items[i].raw) for s, i in queued)

    def drop(self, wanted: Callable[[Submission], bool], error: Exception) -> None:
        """Fail the waiting submissions that are wanted."""
        with self._changed:
            dropped = {id(s): s for s, _ in self._queue if wanted(s)}
            self._queue = deque(one for one in self._queue if id(one[0]) not in dropped)
            self._bytes = sum(len(s.items[i].raw) for s, i in self._queue)
            self._changed.notify_all()
        for submission in dropped.values():
            submission.fail(error)

    def wake(self) -> None:
        """End a wait in `take` early."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Take nothing more; what is there can still be taken out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _has_room(self, submission: Submission) -> bool:
        share = 2 if submission.kept else 1
        return len(self._queue) * share < self._max_events and self._bytes * share < self._max_bytes
