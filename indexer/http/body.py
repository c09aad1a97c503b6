"""Bodies of requests: bounded while they arrive, and cut into rows without building what they hold."""

from __future__ import annotations

import asyncio
import json
import re

from starlette.requests import Request

from indexer.http.errors import HttpError

_SPACE = re.compile(r"[ \t\r\n]*")


async def read_body(request: Request, *, limit: int, timeout_s: float) -> bytes:
    """The body; of one that is too long, not more than the limit is ever held.

    Raises:
        HttpError: 413 too long, 408 too slow.
    """
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > limit):
        raise HttpError(413, "too_long", f"expected at most {limit:,} bytes, got {length[:30]}")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise HttpError(413, "too_long", f"expected at most {limit:,} bytes, got more")
                body += chunk
    except TimeoutError:
        raise HttpError(408, "too_slow", f"expected the whole body within {timeout_s:.0f} s") from None
    return bytes(body)


def split_lines(body: bytes, *, limit: int) -> list[tuple[int, bytes]]:
    """Rows of NDJSON with their line numbers from 0; empty lines are left out.

    Raises:
        HttpError: 413, more rows than the limit.
    """
    lines = body.split(b"\n", 2 * limit + 1)  # not millions of empty ones
    if len(lines) > 2 * limit + 1:
        raise HttpError(
            413, "too_many_rows", f"expected at most {limit:,} rows, got {2 * limit:,} lines or more"
        )
    rows = []
    for number, line in enumerate(lines):
        if line.strip():
            rows.append((number, line))
            _check_count(len(rows), limit)
    return rows


def split_list(body: bytes, *, limit: int) -> list[tuple[int, bytes]]:
    """Elements of a JSON list as they were written, with their positions.

    Raises:
        HttpError: 422, not a JSON list; 413, more rows than the limit.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise HttpError(422, "invalid_json", f"expected UTF-8, got {error.reason} at {error.start}") from None
    at = _after_space(text, 0)
    if text[at : at + 1] != "[":
        raise HttpError(422, "wrong_type", f"expected a JSON list of events, got {ascii(text[at : at + 20])}")
    rows: list[tuple[int, bytes]] = []
    # Numbers as text: one with thousands of digits shall fail its own row only, once that is parsed.
    at, decode = _after_space(text, at + 1), json.JSONDecoder(parse_int=str, parse_float=str).raw_decode
    while text[at : at + 1] != "]" or rows:
        try:
            _, end = decode(text, at)
        except (ValueError, RecursionError) as error:
            message = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
            raise HttpError(422, "invalid_json", f"row {len(rows)}: expected JSON: {message}") from None
        rows.append((len(rows), text[at:end].encode()))
        _check_count(len(rows), limit)
        at = _after_space(text, end)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            got = ascii(text[at : at + 20])
            raise HttpError(422, "invalid_json", f"after row {len(rows) - 1}: expected , or ], got {got}")
        at = _after_space(text, at + 1)
    if _after_space(text, at + 1) != len(text):
        raise HttpError(422, "invalid_json", "expected nothing after the list")
    return rows


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _check_count(count: int, limit: int) -> None:
    if count > limit:
        raise HttpError(413, "too_many_rows", f"expected at most {limit:,} rows, got more")
