"""The frames that were made, and the viewers who wait for the next one."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from web.errors import HttpError

_KEPT_S = 300.0
_COMMENT_S = 1.0  # a connection that died is found out while nothing changes, and a stop is noticed


class Board:
    """Written by one thread, read on an event loop by many viewers."""

    def __init__(self, *, most_viewers: int = 200, stopping: Callable[[], bool] = lambda: False) -> None:
        """Empty.

        Args:
            most_viewers: at once.
            stopping: whether streams should end.
        """
        self._stopping = stopping
        self._lock = threading.Lock()
        self._frames: deque[tuple[int, float, bytes]] = deque()  # number, time, JSON
        self._number, self._most = 0, most_viewers
        self._viewers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    @property
    def viewers(self) -> int:
        """Who is looking now."""
        return len(self._viewers)

    @property
    def latest(self) -> int:
        """Frames that were ever published."""
        return self._number

    def publish(self, frame: dict[str, Any]) -> None:
        """Add a frame and wake everybody; frames of the last five minutes are kept."""
        text = json.dumps(frame, allow_nan=False, separators=(",", ":")).encode()
        with self._lock:
            self._number += 1
            self._frames.append((self._number, frame["t"], text))
            while self._frames[0][1] < frame["t"] - _KEPT_S:
                self._frames.popleft()
            self._wake()

    def _wake(self) -> None:
        for event, loop in self._viewers.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    def _after(self, number: int) -> tuple[int, list[bytes]]:
        with self._lock:
            return self._number, [text for n, _, text in self._frames if n > number]

    def check_room(self) -> None:
        """Refuse one viewer more.

        Raises:
            HttpError: 503, too many are looking.
        """
        if self.viewers >= self._most:
            message = f"{self._most} viewers are looking already; come back in a while"
            raise HttpError(503, "viewers", message, headers={"Retry-After": "10"})

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events: `past` with all frames that are kept, then `frame` with each new one.

        A viewer who reads slowly gets several frames at once, and holds nobody up.
        """
        event = asyncio.Event()
        with self._lock:
            self._viewers[event] = asyncio.get_running_loop()
        try:
            number, frames = self._after(0)
            yield _event("past", b"[" + b",".join(frames) + b"]")
            while not self._stopping():
                try:
                    await asyncio.wait_for(event.wait(), _COMMENT_S)
                except TimeoutError:
                    yield b": nothing new\n\n"
                    continue
                event.clear()
                number, frames = self._after(number)
                for frame in frames:
                    yield _event("frame", frame)
        finally:
            with self._lock:
                del self._viewers[event]


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
