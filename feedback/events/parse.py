"""Events from bytes; what is wrong with one in words: what was expected, what came, in which field."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, get_args

from pydantic import ValidationError

from feedback.events.event import Behavior, FeedbackEvent
from indexer.events.error import EventError, Reason, shown
from indexer.events.json_object import load_object
from indexer.sources.submission import Item
from serving.served_log.record import RecordError, ServedRecord

SERVED = "served:"  # begins the names of sources of the local log

_FIELDS = ("request_id", "ad_id", "behavior", "timestamp", "value")
_LEGAL = {
    "request_id": "a text of 1 to 268 characters",
    "ad_id": "a number 0 .. 2**63 - 1 or a key of 1 to 256 characters",
    "behavior": " | ".join(get_args(Behavior)),
    "timestamp": "whole unix seconds, 0 .. 2**40",
    "value": "a finite number >= 0, in float32",
}
_REASONS: dict[str, Reason] = {
    "greater_than_equal": "out_of_range",
    "less_than": "out_of_range",
    "less_than_equal": "out_of_range",
    "finite_number": "out_of_range",
    "literal_error": "out_of_range",
    "string_too_short": "out_of_range",
    "string_too_long": "too_long",
    "string_unicode": "invalid_json",
}


def parse_feedback(raw: bytes) -> FeedbackEvent:
    """One event: a JSON object in UTF-8.

    Raises:
        EventError: it is none; nothing else is raised, whatever `raw` holds.
    """
    values = load_object(raw)
    try:
        return FeedbackEvent.model_validate(values)
    except ValidationError as error:
        raise _explained(values, error) from None


def parse_item(item: Item, *, served_streams: Collection[str] = ()) -> FeedbackEvent | ServedRecord:
    """A record, where the item comes from a served log; else feedback.

    Args:
        item: of any source.
        served_streams: names of sources, besides the local log, that hold records.

    Raises:
        EventError: it is neither; nothing else is raised, whatever it holds.
    """
    if not item.source.startswith(SERVED) and item.source not in served_streams:
        return parse_feedback(item.raw)
    try:
        return ServedRecord.decode(item.raw)
    except RecordError as error:
        raise EventError("invalid_json", f"served record: {error}") from None


def _explained(values: Mapping[str, Any], error: ValidationError) -> EventError:
    unknown = next((name for name in values if name not in _FIELDS), None)
    if unknown is not None:
        return EventError("unknown_field", f"expected the fields {', '.join(_FIELDS)}, got {shown(unknown)}")
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "value_error":  # of the whole
        return EventError("missing_field", "conversion: expected a value, got none")
    name = str(first["loc"][0])
    if first["type"] == "missing":
        return EventError("missing_field", f"expected the field {name}, got {shown(sorted(values))}")
    reason = _REASONS.get(first["type"], "wrong_type")
    return EventError(reason, f"{name}: expected {_LEGAL[name]}, got {shown(values[name])}")
