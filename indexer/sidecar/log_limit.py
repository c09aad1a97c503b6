"""A log that no client and no broken disk can fill."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

_WINDOW_S = 60.0
_MESSAGES = 20


@dataclass
class _Line:
    since: float
    count: int = 0


class LogLimit(logging.Filter):
    """Lets each line of the code speak 20 times a minute; the next time it tells how much was left out."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """For a handler; `clock` gives seconds."""
        super().__init__()
        self._clock, self._lines = clock, dict[tuple[str, int], _Line]()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        now = self._clock()
        line = self._lines.setdefault((record.pathname, record.lineno), _Line(now))
        if now - line.since >= _WINDOW_S:
            left_out = line.count - _MESSAGES
            line.since, line.count = now, 0
            if left_out > 0:
                record.msg, record.args = f"{record.getMessage()} ({left_out} more like it were left out)", ()
        line.count += 1
        return line.count <= _MESSAGES
