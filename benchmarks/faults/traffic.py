"""Steady requests to a server, and what became of each: the measure of a fault."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Sent(NamedTuple):
    """One request: when it was sent and answered (seconds since the start), and what was wrong with it."""

    at: float
    until: float
    problem: str | None


@dataclass(frozen=True)
class Outcome:
    """What a fault did to the requests around it.

    Attributes:
        sent: requests in all.
        failed: those that failed.
        recovery_s: seconds from the fault to the end of the last failed request; 0 when none failed.
        problems: what they said, each text once.
    """

    sent: int
    failed: int
    recovery_s: float
    problems: tuple[str, ...]


class Traffic:
    """Threads that send one request after another until the end of the block."""

    def __init__(self, send: Callable[[], str | None], *, clients: int = 4, pause_s: float = 0.02) -> None:
        """Describe.

        Args:
            send: sends one request; what is wrong with its answer, None for nothing. May raise.
            clients: how many at once.
            pause_s: between an answer and the next request of a client.
        """
        self._send, self._pause_s = send, pause_s
        self._began, self._end = time.monotonic(), threading.Event()
        self.sent: list[Sent] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def outcome(self, fault_at: float) -> Outcome:
        """What became of the requests that were answered after a fault."""
        after = [s for s in self.sent if s.until >= fault_at]
        failed = [s for s in after if s.problem is not None]
        last = max((s.until for s in failed), default=fault_at)
        texts = tuple(sorted({s.problem or "" for s in failed}))
        return Outcome(len(after), len(failed), recovery_s=last - fault_at, problems=texts)

    def __enter__(self) -> Traffic:
        """Start."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let every request come to its end."""
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._end.is_set():
            at = self.now
            try:
                problem = self._send()
            except Exception as error:  # noqa: BLE001 (whatever a client raises is a failed request)
                problem = str(error) or type(error).__name__
            self.sent.append(Sent(at, self.now, problem))
            self._end.wait(self._pause_s)
