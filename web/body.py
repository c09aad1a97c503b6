"""Bodies of requests, bounded while they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from web.errors import HttpError


class BodyBudget:
    """Bytes of all bodies that a service holds at once."""

    def __init__(self, limit: int) -> None:
        """Nothing is held."""
        self.limit, self.held = limit, 0

    def take(self, size: int) -> None:
        """Hold more; whoever takes gives back.

        Raises:
            HttpError: 503, too much is held already.
        """
        if self.held + size > self.limit:
            message = f"bodies of {self.held:,} bytes are being read already; come back in a second"
            raise HttpError(503, "unavailable", message, headers={"Retry-After": "1"})
        self.held += size

    def give_back(self, size: int) -> None:
        """Hold less."""
        self.held -= size


async def read_body(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    *,
    length: str,
    limit: int,
    timeout_s: float | None,
    taken: Callable[[int], None] = lambda size: None,
) -> bytes:
    """The body; of one that is too long, not more than the limit is ever held.

    Args:
        receive: of ASGI.
        length: what Content-Length says; empty without it.
        limit: bytes.
        timeout_s: seconds for all of it; None where the server has a limit of its own.
        taken: told the bytes of each piece before it is held; what it raises ends the reading.

    Raises:
        HttpError: 413 too long, 408 too slow, 400 the client left.
    """
    if length.isdigit() and (len(length) > 18 or int(length) > limit):
        raise HttpError(413, "too_long", f"expected at most {limit:,} bytes, got {length[:30]}")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise HttpError(400, "gone", "the client left before its body ended")
                chunk, more = message.get("body", b""), message.get("more_body", False)
                if len(body) + len(chunk) > limit:
                    raise HttpError(413, "too_long", f"expected at most {limit:,} bytes, got more")
                taken(len(chunk))
                body += chunk
    except TimeoutError:
        raise HttpError(408, "too_slow", f"expected the whole body within {timeout_s:g} s") from None
    return bytes(body)
