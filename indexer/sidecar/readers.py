"""A chore: lets go of what dead readers hold, and looks how far living ones are behind.

LMDB uses a page again once no transaction of a reader may see it. A process that is killed inside of one
leaves its mark in the table of readers, and from then on the file only grows.
"""

from __future__ import annotations

import logging
import time

import lmdb

log = logging.getLogger("gr4ad.indexer")

_LOOK_S = 5.0


class Readers:
    """Of one environment, that of the writer.

    Attributes:
        open: slots in the table of readers; a process takes one and keeps it.
        lag: transactions that the oldest open read transaction is behind; 0 where none is open.
        cleared: slots of dead processes that were cleared.
    """

    def __init__(self, environment: lmdb.Environment, *, look_s: float = _LOOK_S) -> None:
        """Nothing is looked at yet."""
        self._environment, self._look_s, self._look_at = environment, look_s, 0.0
        self.open = self.lag = self.cleared = 0

    def __call__(self) -> None:
        """Look, every few seconds."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + self._look_s
        dead = self._environment.reader_check()
        if dead:
            log.warning("%d readers died inside a transaction; their pages are free again", dead)
        self.cleared += dead
        # After a heading, a line a slot: process, thread, transaction or "-".
        slots = [line.split() for line in self._environment.readers().splitlines()[1:]]
        self.open = len(slots)
        seen = [int(slot[2]) for slot in slots if slot[2] != "-"]
        self.lag = self._environment.info()["last_txnid"] - min(seen) if seen else 0
