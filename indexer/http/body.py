"""Bodies of requests, cut into rows without building what they hold."""

from __future__ import annotations

import re

from indexer.events.json_object import MAX_EVENT_BYTES
from web.errors import HttpError

_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN, _TEXT = r'[^"{}\[\]]*+', r'"(?:[^"\\]++|\\.)*+"'
_LIST = rf"\[{_PLAIN}\]"  # an embedding, a SID
_NUMBERS = rf"\{{{_PLAIN}(?:{_TEXT}{_PLAIN})*+\}}"  # by name
_FLAT = re.compile(rf"\{{{_PLAIN}(?:(?:{_TEXT}|{_LIST}|{_NUMBERS}){_PLAIN})*+\}}[ \t\r\n]*+", re.DOTALL)
_MARK = re.compile(r'["\[\]{},]')
_INSIDE = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)  # of a string
_MAX_PARTS = 200  # strings, brackets and commas of a row that is not written as every event is


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

    Only the structure is read. What an element is worth shows when it is parsed, so a bad one fails alone.

    Raises:
        HttpError: 422, not a JSON list, or an element far from any event; 413, more rows than the limit.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise HttpError(422, "invalid_json", f"expected UTF-8, got {error.reason} at {error.start}") from None
    at = _after_space(text, 0)
    if text[at : at + 1] != "[":
        raise HttpError(422, "wrong_type", f"expected a JSON list of events, got {ascii(text[at : at + 20])}")
    rows: list[tuple[int, bytes]] = []
    at = _after_space(text, at + 1)
    while text[at : at + 1] != "]" or rows:
        end = _row_end(text, at, number=len(rows))
        row = text[at:end].rstrip()
        if not row:
            raise HttpError(422, "invalid_json", f"row {len(rows)}: expected JSON, got nothing")
        rows.append((len(rows), row.encode()))
        _check_count(len(rows), limit)
        if text[end] == "]":
            at = end
            break
        at = _after_space(text, end + 1)
    if _after_space(text, at + 1) != len(text):
        raise HttpError(422, "invalid_json", "expected nothing after the list")
    return rows


def _row_end(text: str, at: int, *, number: int) -> int:
    """Where the comma or bracket behind an element stands."""
    flat = _FLAT.match(text, at, at + MAX_EVENT_BYTES)
    if flat and text[flat.end() : flat.end() + 1] in (",", "]"):  # as every event is
        return flat.end()
    depth = 0
    for _ in range(_MAX_PARTS):
        mark = _MARK.search(text, at)
        if mark is None:
            raise HttpError(422, "invalid_json", f"row {number}: expected JSON, got no end of it")
        at = mark.end()
        if mark[0] == '"':
            at = _string_end(text, at, number=number)
        elif mark[0] in "[{":
            depth += 1
        elif depth and mark[0] in "]}":
            depth -= 1
        elif depth == 0:
            if mark[0] == "}":
                raise HttpError(422, "invalid_json", f"row {number}: expected , or ], got '}}'")
            return mark.start()
    message = f"row {number}: expected a flat object, got one of more than {_MAX_PARTS:,} parts"
    raise HttpError(422, "invalid_json", message)


def _string_end(text: str, at: int, *, number: int) -> int:
    """Behind the quote that ends a string. In pieces: a match holds up every other thread."""
    while True:
        at = _INSIDE.match(text, at, at + MAX_EVENT_BYTES).end()  # type: ignore[union-attr]  # it may be empty
        if text[at : at + 1] == '"':
            return at + 1
        if at + 1 >= len(text):
            raise HttpError(422, "invalid_json", f"row {number}: expected JSON, got a string without an end")
        if text[at] == "\\":  # its escape was cut in two
            at += 2


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _check_count(count: int, limit: int) -> None:
    if count > limit:
        raise HttpError(413, "too_many_rows", f"expected at most {limit:,} rows, got more")
