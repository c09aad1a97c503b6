"""Events from JSON; what is wrong with one in words: what was expected, what came, in which field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from indexer.events.content import GIVEN_FIELDS
from indexer.events.error import EventError, shown
from indexer.events.event import CONTENT_FIELDS, EVENT, FIELDS, KINDS, AdEvent
from indexer.events.json_object import load_object


def parse_event(raw: bytes) -> AdEvent:
    """Parse one event: a JSON object in UTF-8.

    Raises:
        EventError: it is not an event; nothing else is raised, whatever `raw` holds.
    """
    return event_of(load_object(raw))


def event_of(values: Mapping[str, Any]) -> AdEvent:
    """An event from its fields.

    Raises:
        EventError: it is none.
    """
    try:
        return EVENT.validate_python(values)
    except ValidationError as error:
        raise _explained(values, error) from None


def _explained(values: Mapping[str, Any], error: ValidationError) -> EventError:
    unknown = next((name for name in values if name not in FIELDS), None)
    if unknown is not None:  # there may be thousands of them, so before a list of all errors is made
        return EventError("unknown_field", f"expected the fields {', '.join(FIELDS)}, got {shown(unknown)}")
    first = error.errors(include_url=False)[0]
    name = next((str(part) for part in reversed(first["loc"]) if part in FIELDS), "kind")
    kind, value, content = values.get("kind"), values.get(name), ", ".join(CONTENT_FIELDS)
    match first["type"]:
        case "missing" if name in CONTENT_FIELDS:
            return EventError("missing_field", f"{kind}: expected {content}; {name} is missing")
        case "missing" | "union_tag_not_found":
            return EventError("missing_field", f"expected the field {name}, got {shown(sorted(values))}")
        case "value_error" if first["loc"][-1:] == ("audience",):
            return EventError("wrong_audience", str(first["ctx"]["error"]))
        case "value_error" if kind == "create":
            given = ", ".join(GIVEN_FIELDS)
            message = f"create: expected {content}; text is missing, and so are {given}"
            return EventError("missing_field", message)
        case "value_error":  # of `UpdateEvent`
            return EventError("missing_field", f"{kind}: expected at least one of {content}, got none")
        case "extra_forbidden":
            return EventError("unknown_field", f"{kind}: expected no content, got {name}")
        case "union_tag_invalid" if isinstance(kind, str):
            return EventError("out_of_range", f"kind: expected {' | '.join(KINDS)}, got {shown(kind)}")
        case "greater_than_equal" | "less_than_equal" | "less_than" | "finite_number" if name in GIVEN_FIELDS:
            legal = "codes 0 .. 2**20 - 1" if name == "sid" else "finite numbers in float32"
            return EventError("out_of_range", f"{name}: expected {legal}, got {shown(first['input'])}")
        case "too_long" | "too_short":
            most = {"embedding": 8192, "numbers": 256, "sid": 8}[name]
            return EventError("too_long", f"{name}: expected 1 .. {most} values, got {len(value or ())}")
        case "greater_than_equal" | "less_than_equal":
            return EventError("out_of_range", f"{name}: expected 0 .. 2**63 - 1, got {shown(value)}")
        case "string_too_short":
            return EventError("out_of_range", f"{name}: expected a key of 1 or more characters, got none")
        case "string_too_long" if name == "numbers":
            return EventError("too_long", "numbers: expected names of at most 256 characters, got more")
        case "string_unicode" if name == "numbers":
            return EventError("invalid_json", "numbers: expected names that are text, got a lone surrogate")
        case "string_too_long":
            longest = first["ctx"]["max_length"]
            got = len(values[name])
            return EventError("too_long", f"{name}: expected at most {longest} characters, got {got}")
        case "string_pattern_mismatch":  # as the tables refuse it: all such ads would share one prefix
            return EventError("missing_field", f"{name}: expected a text, got a blank one, {shown(value)}")
        case "string_unicode":
            at = next(i for i, c in enumerate(values[name]) if "\ud800" <= c <= "\udfff")
            return EventError("invalid_json", f"{name}: expected text, got a lone surrogate at {at}")
    expected = {
        "ad_id": "an integer or a key as text",
        "version": "an integer",
        "embedding": "a list of numbers",
        "numbers": "numbers by name",
        "sid": "a list of integers",
        "audience": "an object",
    }.get(name, "a string")
    got_type = type(value).__name__
    return EventError("wrong_type", f"{name}: expected {expected}, got {got_type} {shown(value)}")
