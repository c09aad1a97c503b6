"""What the OpenAPI page says of bodies, which the endpoints read themselves, row by row."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from feedback.events.event import FeedbackEvent

_EVENT = {"$ref": "#/components/schemas/FeedbackEvent"}
_CLICK = {"request_id": "8f3a", "ad_id": 1017, "behavior": "click", "timestamp": 1764500000}
_BOUGHT = {**_CLICK, "behavior": "conversion", "timestamp": 1764500420, "value": 12.5}
_LINES = (
    '{"request_id": "8f3a", "ad_id": 1017, "behavior": "impression", "timestamp": 1764499999}\n'
    '{"request_id": "8f3a", "ad_id": 1017, "behavior": "click", "timestamp": 1764500000}\n'
)


def event_body() -> dict[str, Any]:
    """One event."""
    examples = {
        "click": {"summary": "an ad was clicked", "value": _CLICK},
        "conversion": {"summary": "and bought", "value": _BOUGHT},
    }
    content = {"application/json": {"schema": _EVENT, "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}


def bulk_body(*, rows: int) -> dict[str, Any]:
    """A list of events, or lines of them, at most `rows`."""
    events = {"type": "array", "items": _EVENT, "maxItems": rows}
    text = f"one FeedbackEvent a line, at most {rows:,}; empty lines are left out"
    content = {
        "application/json": {
            "schema": events,
            "examples": {"list": {"summary": "two events", "value": [_CLICK, _BOUGHT]}},
        },
        "application/x-ndjson": {"schema": {"type": "string", "description": text}, "example": _LINES},
    }
    return {"requestBody": {"required": True, "content": content}}


def add_event_schema(app: FastAPI) -> None:
    """Put the model of an event among the components, where the bodies refer to it."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        document["components"]["schemas"]["FeedbackEvent"] = FeedbackEvent.model_json_schema(by_alias=True)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
