"""Ctrl-C and SIGTERM, which end a run after the step in hand."""

from __future__ import annotations

import signal
from types import TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Takes note of signals instead of being interrupted by them, inside its block."""

    def __init__(self) -> None:
        """Nothing was received."""
        self.received = False

    def __enter__(self) -> StopSignals:
        """Catch signals; only the main thread can."""
        self._previous = [signal.signal(number, self._receive) for number in _SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put back what caught them before."""
        for number, handler in zip(_SIGNALS, self._previous, strict=True):
            signal.signal(number, handler)

    def _receive(self, *_: object) -> None:
        self.received = True
