"""When something that ended is started again: soon at first, later and later, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable


class Restarts:
    """Pauses between starts; one object for one thing that is kept running."""

    def __init__(
        self,
        *,
        first_s: float = 0.2,
        most_s: float = 60.0,
        limit: int | None = None,
        within_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin.

        Args:
            first_s: the first pause; each is twice the one before.
            most_s: the longest one. What ran for five times as long begins anew with the first.
            limit: ends within `within_s` seconds that are put up with; None for any number.
            within_s: see there.
            clock: seconds.
        """
        self._first_s, self._most_s, self._limit, self._within_s = first_s, most_s, limit, within_s
        self._clock, self._pause_s = clock, first_s
        self._last, self._ends = clock(), list[float]()

    def next_pause(self) -> float | None:
        """Seconds to wait before the next start, after an end now; None to give it up."""
        now = self._clock()
        if now - self._last > 5 * self._most_s:
            self._pause_s = self._first_s
        self._last = now
        self._ends = [end for end in self._ends if end >= now - self._within_s] + [now]
        if self._limit is not None and len(self._ends) > self._limit:
            return None
        pause, self._pause_s = self._pause_s, min(2 * self._pause_s, self._most_s)
        return pause
