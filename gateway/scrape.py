"""Triton's own metrics, handed on: its metrics port takes a body of any length in chunks, and keeps it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from web.pages import read_page

_TIMEOUT_S = 3.0
_KEPT_S = 0.2


class Scrape:
    """Reads one metrics page, once for all who ask at the same time."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read nothing yet."""
        self._url, self._clock, self._page, self._at = url, clock, b"", -float("inf")
        self._lock = asyncio.Lock()

    async def page(self) -> bytes:
        """The page, at most some tenths of a second old; nothing where it cannot be had."""
        async with self._lock:
            if self._clock() - self._at > _KEPT_S:
                try:
                    self._page = await asyncio.to_thread(read_page, self._url, timeout_s=_TIMEOUT_S)
                except (OSError, ValueError):
                    self._page = b""
                self._at = self._clock()
            return self._page
