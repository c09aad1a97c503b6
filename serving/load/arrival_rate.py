"""How many requests a second come, how bursty they are, and since when it has been so."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from serving.load.arrivals import LoadView, newest


class ArrivalRate:
    """Requests a second, over a window that is as long as the rate has stayed the same.

    ADWIN (A. Bifet and R. Gavalda, "Learning from time-changing data with adaptive windowing", SDM 2007) for
    counts: where the last part of the window has another rate than what is before it, by `SURE` deviations or
    more, only the part that differs most is kept. A steady load is known to a few per cent, a step at once.

    With a counter of all arrivals it is exact; without, a process counts its own and takes them for its share
    of `instances`. Stamps of the requests themselves place them where they arrived: a process that is late
    with its work still sees the true rate.
    """

    SURE = 4.0
    LONGEST = 16.0  # shortest windows
    BINS = 10  # in the shortest window
    BURST_BINS = 3
    RISE_BINS, FALL_BINS = 2, 6  # least that show a change: what rises must be seen at once

    def __init__(self, *, instances: int, shortest_s: float) -> None:
        """Start without a rate; a window is at least `shortest_s` long, unless it began with a change."""
        self._instances, self._shortest, self._bin_s = instances, shortest_s, shortest_s / self.BINS
        self._ends: deque[tuple[float, float]] = deque()  # of bins: time, requests so far; the last one grows
        self._total: int | None = None
        self.burst = 0.0
        """Standard deviation of the rate from bin to bin over its mean, beyond a Poisson process's."""

    def update(self, now: float, load: LoadView) -> None:
        """Count the requests of a batch."""
        at, count = self._counted(now, load)
        ends = self._ends
        if not ends:
            ends.append((at, 0.0))
            return
        last, so_far = ends[-1][0], ends[-1][1] + count
        at = max(at, last)
        if at == last or (len(ends) > 1 and at - ends[-2][0] < self._bin_s):
            ends[-1] = (at, so_far)
            return
        ends.append((at, so_far))
        while len(ends) > 2 and at - ends[1][0] >= self.LONGEST * self._shortest:
            ends.popleft()
        if len(ends) > self.RISE_BINS + 1:
            self._look()

    def _counted(self, now: float, load: LoadView) -> tuple[float, float]:
        """A time, and the requests that came until then since the last one."""
        reading = load.reading
        if reading is not None and reading.total is not None and math.isfinite(reading.at):
            before, self._total = self._total, reading.total
            # The first reading, or a restarted server's, has no difference yet.
            new = 0 if before is None or reading.total < before else reading.total - before
            return min(reading.at, now), float(new)
        self._total = None  # what comes meanwhile is not counted again when the counter is back
        stamp = newest(load, now)
        return now if stamp is None else stamp, float(len(load.requests) * self._instances)

    def _look(self) -> None:
        """How bursty the window is, and whether it has seen a change."""
        times, counts = np.array(self._ends).T
        mean = max((counts[-1] - counts[0]) / (times[-1] - times[0]), 1e-9)
        self.burst = _burst(np.diff(times), np.diff(counts), mean)
        # What is before each bin's end, and what came since.
        old_s, new_s = np.clip([times[1:-1] - times[0], times[-1] - times[1:-1]], 1e-9, 1e9)
        old, new = counts[1:-1] - counts[0], counts[-1] - counts[1:-1]
        gap = new / new_s - old / old_s
        # One more on either side: a count of none or one says little. A burst is taken for BURST_BINS long.
        noise = (new + 1) / new_s**2 + (old + 1) / old_s**2
        noise += (self.burst * mean) ** 2 * self.BURST_BINS * self._bin_s * (1 / new_s + 1 / old_s)
        left = np.arange(len(gap), 0, -1)  # whole bins since
        sure = np.where(left >= np.where(gap < 0, self.FALL_BINS, self.RISE_BINS), np.abs(gap), 0.0)
        surest = int(np.argmax(sure / np.sqrt(noise)))
        if sure[surest] > self.SURE * math.sqrt(noise[surest]):
            for _ in range(surest + 1):
                self._ends.popleft()

    @property
    def age(self) -> float:
        """Seconds since the rate last changed, as far as that is known."""
        return self._ends[-1][0] - self._ends[0][0] if self._ends else 0.0

    def shift(self, seconds: float) -> None:
        """The clock was set by that much."""
        self._ends = deque((at + seconds, count) for at, count in self._ends)

    def value(self, now: float) -> float:
        """Requests a second; 0 before a fifth of the shortest window has passed."""
        if self.age < 0.2 * self._shortest:
            return 0.0
        (first, before), (last, count) = self._ends[0], self._ends[-1]
        # `now` may be ahead of the newest stamp by what requests wait, which is no lull in arrivals.
        lull = max(now - last - self._shortest, 0.0)
        return (count - before) / (last - first + lull)


_LAG, _CLIP = 2, 25.0


def _burst(seconds: np.ndarray, counts: np.ndarray, mean: float) -> float:
    """Deviation of the rate between bins over its mean, beyond what Poisson counts have.

    From differences of bins a short way apart (von Neumann's estimate of a variance), so that a step of the
    load is none.
    """
    if len(counts) <= 2 * _LAG:
        return 0.0
    seconds = np.clip(seconds, 1e-9, 1e9)
    rates, poisson = counts / seconds, mean / seconds
    gaps = (rates[_LAG:] - rates[:-_LAG]) ** 2 / (poisson[_LAG:] + poisson[:-_LAG])
    beyond = float(np.minimum(gaps, _CLIP).mean()) - 1.0 - math.sqrt(3.0 / len(gaps))  # by more than chance
    return math.sqrt(max(beyond, 0.0) / (mean * float(seconds.mean())))
