"""Kills a Python model's process that stands still, before Triton takes it for dead and it goes on after all.

Triton 24.10 gives up on a stub that shows no sign of life for about a second. When such a stub goes on later,
tritonserver aborts (measured in docs/decisions.md). A dead one is harmless: `launcher.stub_watch` brings it
back.
"""

from __future__ import annotations

import logging
import os
import signal
import time

from launcher.stubs import stopped_after, stubs
from launcher.watch import Watch

logger = logging.getLogger(__name__)

LIMIT_S = 0.7
"""A stop of 0.9 s does no harm, one of 1.3 s ends the server; looks come on top."""

_EVERY_S = 0.05
_SCAN_EVERY_S = 0.5  # for new processes: reading all of /proc costs a hundred times a look


class StandstillWatch(Watch):
    """A thread that looks at the state of every stub of a server."""

    def __init__(self, shm_prefix: str, *, limit_s: float = LIMIT_S) -> None:
        """Watch the stubs with this prefix; `start` begins."""
        self._prefix, self._limit_s = shm_prefix, limit_s
        super().__init__("standstill-watch")

    def _run(self) -> None:
        since: dict[tuple[int, str], float] = {}  # process and how often it had run -> first seen stopped so
        known, scanned = {}, 0.0
        while not self._end.wait(_EVERY_S):
            now = time.monotonic()
            if now - scanned > _SCAN_EVERY_S:
                known, scanned = {stub.pid: stub for stub in stubs(self._prefix)}, now
            stopped = {(pid, ran) for pid in known if (ran := stopped_after(pid)) is not None}
            since = {key: since.get(key, now) for key in stopped}
            for (pid, _), first in since.items():
                if now - first >= self._limit_s:
                    logger.error(
                        "process %d of model %s stands still since %.1f s; killing it",
                        pid,
                        known[pid].model,
                        now - first,
                    )
                    self._kill(pid)

    def _kill(self, pid: int) -> None:
        # The number may be another's by now: only what is still a stub of this server.
        if any(stub.pid == pid for stub in stubs(self._prefix)):
            os.kill(pid, signal.SIGKILL)
