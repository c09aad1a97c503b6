"""The bounded queues in front of the writer thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from indexer.sources.submission import Submission, UnavailableError

Queued = tuple[Submission, int]
"""One item of a submission."""


class Intake:
    """Items in order of arrival, bounded by number and bytes.

    A submission is taken whole while there is room at all, so a bulk is never cut in two. Streams may fill
    half of the queue only: one that catches up on millions of events leaves room for HTTP. Single events of
    HTTP have a queue of their own that is emptied first: a pause does not wait for a bulk of ten thousand.
    """

    def __init__(self, *, max_events: int, max_bytes: int) -> None:
        """Start empty; both limits are of each of the two queues."""
        self._single, self._queue = _Queue(), _Queue()
        self._changed = threading.Condition()
        self._max_events, self._max_bytes = max_events, max_bytes
        self._closed = False

    def __len__(self) -> int:
        """Items waiting."""
        return len(self._single.items) + len(self._queue.items)

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
                    raise UnavailableError(f"{len(self)} events are waiting already; try again later")
                self._changed.wait(0.1)
                if stop.is_set():
                    return False
            if self._closed:
                raise UnavailableError("the indexer is stopping")
            self._queue_of(submission).extend((submission, i) for i in range(len(submission.items)))
            self._changed.notify_all()
        return True

    def take(self, count: int, *, max_bytes: int, first_s: float, more_s: float) -> list[Queued]:
        """Up to `count` items, no more once they have `max_bytes`.

        Waits `first_s` for the first and from then on `more_s` for the others.
        """
        with self._changed:
            if not len(self) and not self._closed:
                self._changed.wait(first_s)
            deadline = time.monotonic() + more_s
            while 0 < len(self) < count and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            queued: list[Queued] = []
            taken = 0
            while len(self) and len(queued) < count and taken < max_bytes:
                queued.append((self._single if self._single.items else self._queue).popleft())
                taken += _size(queued[-1])
            self._changed.notify_all()
        return [(s, i) for s, i in queued if not s.future.done()]

    def put_back(self, queued: list[Queued]) -> None:
        """Return what was taken last to the front."""
        with self._changed:
            for one in reversed(queued):
                self._queue_of(one[0]).appendleft(one)

    def drop(self, wanted: Callable[[Submission], bool], error: Exception) -> None:
        """Fail the waiting submissions that are wanted."""
        with self._changed:
            everything = [*self._single.items, *self._queue.items]
            dropped = {id(s): s for s, _ in everything if wanted(s)}
            self._single, self._queue = _Queue(), _Queue()
            for one in everything:
                if id(one[0]) not in dropped:
                    self._queue_of(one[0]).extend([one])
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

    def _queue_of(self, submission: Submission) -> _Queue:
        return self._single if len(submission.items) == 1 and not submission.kept else self._queue

    def _has_room(self, submission: Submission) -> bool:
        queue, share = self._queue_of(submission), 2 if submission.kept else 1
        return len(queue.items) * share < self._max_events and queue.bytes * share < self._max_bytes


class _Queue:
    """Items and their bytes."""

    def __init__(self) -> None:
        self.items: deque[Queued] = deque()
        self.bytes = 0

    def extend(self, items: Iterable[Queued]) -> None:
        for one in items:
            self.items.append(one)
            self.bytes += _size(one)

    def appendleft(self, one: Queued) -> None:
        self.items.appendleft(one)
        self.bytes += _size(one)

    def popleft(self) -> Queued:
        one = self.items.popleft()
        self.bytes -= _size(one)
        return one


def _size(one: Queued) -> int:
    submission, i = one
    return len(submission.items[i].raw)
