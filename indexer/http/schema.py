"""What the OpenAPI page says of bodies, which the endpoints read themselves, row by row."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from indexer.events.event import EVENT

_EVENT = {"$ref": "#/components/schemas/AdEvent"}
_CREATE = {
    "kind": "create",
    "ad_id": 1017,
    "version": 1,
    "account_id": "acme",
    "conversion_type": "purchase",
    "text": "Trail running shoes, size 38 to 46, waterproof",
}
_PAUSE = {"kind": "pause", "ad_id": 1017, "version": 3}
_EXAMPLES = {
    "create": {"summary": "a new ad", "value": _CREATE},
    "update": {
        "summary": "new text of an ad; fields that are left out stay",
        "value": {"kind": "update", "ad_id": 1017, "version": 2, "text": "Trail running shoes, sale"},
    },
    "pause": {"summary": "take an ad out of the answers", "value": _PAUSE},
    "resume": {"summary": "bring it back", "value": {"kind": "resume", "ad_id": 1017, "version": 4}},
    "delete": {
        "summary": "take it out; it stays known as history",
        "value": {"kind": "delete", "ad_id": 1017, "version": 5},
    },
}
_LINES = '{"kind": "pause", "ad_id": 1, "version": 7}\n{"kind": "delete", "ad_id": 2, "version": 3}\n'


def event_body() -> dict[str, Any]:
    """One event."""
    return _body({"application/json": {"schema": _EVENT, "examples": _EXAMPLES}})


def bulk_body(*, rows: int) -> dict[str, Any]:
    """A list of events, or lines of them, at most `rows`."""
    events = {"type": "array", "items": _EVENT, "maxItems": rows}
    lines = {
        "type": "string",
        "description": f"one AdEvent a line, at most {rows:,}; empty lines are left out",
    }
    return _body(
        {
            "application/json": {
                "schema": events,
                "examples": {"list": {"summary": "two events", "value": [_CREATE, _PAUSE]}},
            },
            "application/x-ndjson": {"schema": lines, "example": _LINES},
        }
    )


def add_event_schemas(app: FastAPI) -> None:
    """Put the models of the events among the components, where the bodies refer to them."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        union = EVENT.json_schema(ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] |= union.pop("$defs") | {"AdEvent": union}
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}
