"""Bodies of requests, cut into rows without building what they hold."""

from __future__ import annotations

import json
import re

from web.errors import HttpError

_SPACE = re.compile(r"[ \t\r\n]*")


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
