"""Bodies of requests, bounded while they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from web.errors import HttpError


async def read_body(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    *,
    length: str,
    limit: int,
    timeout_s: float,
) -> bytes:
    """The body; of one that is too long, not more than the limit is ever held.

    Args:
        receive: of ASGI.
        length: what Content-Length says; empty without it.
        limit: bytes.
        timeout_s: seconds for all of it.

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
                body += chunk
    except TimeoutError:
        raise HttpError(408, "too_slow", f"expected the whole body within {timeout_s:.0f} s") from None
    return bytes(body)
