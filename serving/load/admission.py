"""Turns requests away at the entry when the queue is longer than even the narrowest plan can drain in time.

The entry and the scheduler are processes of their own: the scheduler publishes its `QueueLimit` in a small
file, the entry reads it.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from pathlib import Path

from serving.load.policy import QueueLimit
from serving.load.queue_depth import QueueReading

_BODY = struct.Struct("<qdd")  # requests, drain_qps, time of writing
_CHECK = struct.Struct("<I")


class Admission:
    """Admits a request, or says why not. Not thread-safe."""

    def __init__(self) -> None:
        """Start with an empty queue."""
        self._reading: QueueReading | None = None
        self._since = 0  # admitted after the reading

    def admit(self, now: float, *, reading: QueueReading | None, limit: QueueLimit | None) -> str | None:
        """None for come in, else the message for the client.

        A reading is up to some tenths of a second old: what was admitted since is added, what the narrowest
        plan drains is taken off. Without a reading or a limit everything is admitted: the scheduler still
        refuses what is late.

        Args:
            now: seconds, of the clock of the reading.
            reading: see `serving.load.queue_depth`.
            limit: see `LoadController.limit`.
        """
        if reading is None or limit is None:
            return None
        if reading != self._reading:
            self._reading, self._since = reading, 0
        drained = limit.drain_qps * max(now - reading.at, 0.0)
        waiting = max(reading.pending + self._since - drained, 0.0)
        if waiting >= limit.requests:
            return f"overloaded: {waiting:.0f} requests wait, {limit.requests} can be answered in time"
        self._since += 1
        return None


class LimitFile:
    """A `QueueLimit` in a file that processes of one host share, best in memory (/dev/shm).

    Written in place, a few bytes a batch; a checksum tells a half-written state from a whole one.
    """

    def __init__(self, path: str | Path, *, stale_s: float = 5.0) -> None:
        """Open or create.

        Args:
            path: file; several schedulers of one queue may share it, the last one counts.
            stale_s: a limit older than that is nobody's.
        """
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._stale = stale_s

    def write(self, now: float, limit: QueueLimit) -> None:
        """Publish; `now` in seconds of the host's monotonic clock."""
        body = _BODY.pack(limit.requests, limit.drain_qps, now)
        os.pwrite(self._file, body + _CHECK.pack(zlib.crc32(body)), 0)

    def read(self, now: float) -> QueueLimit | None:
        """The last limit; None where there is none, a torn or an old one."""
        data = os.pread(self._file, _BODY.size + _CHECK.size, 0)
        if len(data) != _BODY.size + _CHECK.size:
            return None
        body = data[: _BODY.size]
        if _CHECK.unpack(data[_BODY.size :])[0] != zlib.crc32(body):
            return None
        requests, drain_qps, at = _BODY.unpack(body)
        if not (requests >= 1 and 0 <= drain_qps < math.inf and -1.0 <= now - at <= self._stale):
            return None
        return QueueLimit(requests, drain_qps)

    def close(self) -> None:
        """Close the file; it stays, for the others."""
        os.close(self._file)
