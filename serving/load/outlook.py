"""What a scheduler process tells the entry: what it has taken, when it is free, what the floor takes.

The entry and the schedulers are processes of their own: each scheduler writes into its slot of a small file,
the entry reads all of them.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple


class Outlook(NamedTuple):
    """State of one scheduler process. Times are seconds of the host's monotonic clock.

    Attributes:
        taken: when the newest request came in that has been taken: who came before it does not wait.
        began: when the search in hand began; without one, since when there is none.
        search_s: how long it takes, as predicted; 0 while there is none.
        batch_s: of a search on the floor, whatever its size.
        request_s: of a search on the floor, for each of its requests.
        spread: standard deviation of a search's time over its mean.
        slo_s: time within which a request must be searched, from its arrival.
        max_batch: most requests of a search.
        overloaded: whether more comes than even the floor answers in time.
    """

    taken: float
    began: float
    search_s: float
    batch_s: float
    request_s: float
    spread: float
    slo_s: float
    max_batch: int
    overloaded: bool

    def usable(self) -> bool:
        """Whether it can be true."""
        times = self.search_s, self.batch_s, self.request_s, self.spread, self.slo_s
        finite = all(map(math.isfinite, (self.taken, self.began, *times)))
        return finite and min(times) >= 0 and self.max_batch >= 1

    def free_in(self, now: float) -> float:
        """Seconds until the search in hand ends.

        One that takes longer than predicted goes on for about the spread: so much is left, on average, of a
        normal time beyond its mean (mean residual life, sqrt(2 / pi) deviations).
        """
        return max(self.began + self.search_s - now, 0.8 * self.spread * self.search_s)


_BODY = struct.Struct("<7dq?7xd")  # an Outlook and the time of writing
_CHECK = struct.Struct("<I")
_SLOT = _BODY.size + _CHECK.size


class OutlookFile:
    """A slot for each scheduler in a file that processes of one host share, best in memory (/dev/shm).

    Written in place, a few bytes a batch; a checksum tells a half-written slot from a whole one.
    """

    def __init__(self, path: str | Path, *, stale_s: float = 5.0) -> None:
        """Open or create.

        Args:
            path: the file.
            stale_s: an outlook older than that is nobody's.
        """
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._stale = stale_s

    def write(self, now: float, outlook: Outlook, *, slot: int) -> None:
        """Publish; `now` in seconds of the host's monotonic clock, `slot` the number of the scheduler."""
        body = _BODY.pack(*outlook, now)
        os.pwrite(self._file, body + _CHECK.pack(zlib.crc32(body)), slot * _SLOT)

    def read(self, now: float) -> list[Outlook]:
        """Of every scheduler that has written lately; torn ones are left out."""
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        found = []
        for at in range(0, len(data) - _SLOT + 1, _SLOT):
            body = data[at : at + _BODY.size]
            if _CHECK.unpack(data[at + _BODY.size : at + _SLOT])[0] != zlib.crc32(body):
                continue
            *values, written = _BODY.unpack(body)
            outlook = Outlook(*values)
            if -1.0 <= now - written <= self._stale and outlook.usable():
                found.append(outlook)
        return found

    def close(self) -> None:
        """Close the file; it stays, for the others."""
        os.close(self._file)
