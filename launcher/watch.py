"""A thread that looks after a server until it is told to end."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod


class Watch(ABC):
    """`start`, `end` and `join`; what is looked at, and how often, is `_run`."""

    def __init__(self, name: str) -> None:
        """Of a thread with that name; `start` begins."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Begin no more; `join` waits for what is in hand."""
        self._end.set()

    def join(self) -> None:
        """Wait for the thread."""
        if self._thread.is_alive():
            self._thread.join()

    @abstractmethod
    def _run(self) -> None:
        """Until `_end` is set."""
