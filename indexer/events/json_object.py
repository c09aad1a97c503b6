"""One flat JSON object from bytes that nobody has checked before: what a schema cannot say of JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, NoReturn

from indexer.events.error import EventError, shown

MAX_EVENT_BYTES = 1 << 20
_MAX_BRACKETS = 64  # opening ones; an event has one, an audience up to 50
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def load_object(raw: bytes) -> dict[str, Any]:
    """The object: UTF-8, at most `MAX_EVENT_BYTES`, every name once, no NaN, not nested too deeply.

    Raises:
        EventError: it is none; nothing else is raised, whatever `raw` holds.
    """
    if len(raw) > MAX_EVENT_BYTES:
        raise EventError("too_long", f"expected at most {MAX_EVENT_BYTES} bytes, got {len(raw)}")
    if raw.count(b"[") + raw.count(b"{") > _MAX_BRACKETS:  # some may stand in texts
        outside = _STRING.sub(b"", raw)
        if (brackets := outside.count(b"[") + outside.count(b"{")) > _MAX_BRACKETS:
            # Decoding it, and saying in which field it is, costs a hundred times as much.
            message = f"expected one flat object, got one nested too deeply: {brackets:,} lists or objects"
            raise EventError("invalid_json", message)
    try:
        values = _DECODER.decode(raw.decode())
    except EventError:
        raise
    except UnicodeDecodeError as error:
        raise EventError("invalid_json", f"expected UTF-8: {shown(str(error))}") from None
    except ValueError as error:
        raise EventError("invalid_json", f"expected JSON: {shown(str(error))}") from None
    if type(values) is not dict:
        raise EventError("wrong_type", f"expected a JSON object, got {type(values).__name__}")
    return values


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise EventError("invalid_json", f"expected every field once, got {shown(twice)} twice")
    return values


def _no_constant(name: str) -> NoReturn:
    raise EventError("invalid_json", f"expected JSON, got {name}")


# Made once: `json.loads` with hooks makes one a call, which costs as much as decoding an event.
_DECODER = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_no_constant)
