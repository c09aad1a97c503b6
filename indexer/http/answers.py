"""Shapes of the HTTP API as its OpenAPI page shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

CREATE = {
    "kind": "create",
    "ad_id": 1017,
    "version": 1,
    "account_id": "acme",
    "conversion_type": "purchase",
    "text": "Trail running shoes, size 38 to 46, waterproof",
}
EXAMPLES = {
    "create": {"summary": "a new ad", "value": CREATE},
    "update": {
        "summary": "new text of an ad; fields that are left out stay",
        "value": {"kind": "update", "ad_id": 1017, "version": 2, "text": "Trail running shoes, sale"},
    },
    "pause": {
        "summary": "take an ad out of the answers",
        "value": {"kind": "pause", "ad_id": 1017, "version": 3},
    },
    "resume": {"summary": "bring it back", "value": {"kind": "resume", "ad_id": 1017, "version": 4}},
    "delete": {
        "summary": "take it out; it stays known as history",
        "value": {"kind": "delete", "ad_id": 1017, "version": 5},
    },
}
BULK_EXAMPLES = {"list": {"summary": "two events", "value": [CREATE, EXAMPLES["pause"]["value"]]}}


class Failed(BaseModel):
    """Every answer that is not 2xx."""

    reason: str = Field(description="a word for programs", examples=["unknown_ad"])
    message: str = Field(description="what was expected and what came")


class Applied(BaseModel):
    """Outcome of one event."""

    result: Literal["applied", "stale", "rejected"] = Field(
        description="applied: committed and on disk. stale: a later version of this ad is there already, "
        "nothing to do. rejected: kept as a dead letter"
    )
    sequence: int | None = Field(
        description="index version that holds it; readers with this version or a later one show it"
    )
    reason: str = Field("", description="why it is not applied")
    message: str = ""


class Row(Applied):
    """Outcome of one row of a bulk."""

    index: int = Field(description="position in the list, or number of the line, from 0")


class BulkApplied(BaseModel):
    """Outcomes of a bulk."""

    applied: int
    stale: int
    rejected: int
    sequence: int | None = Field(description="latest index version among the rows")
    rows: list[Row] = Field(description="one an event, in order")


class Ready(BaseModel):
    """Whether events are applied at the moment."""

    ready: bool
    problems: list[str] = Field(description="what keeps it from being ready")
    sources: dict[str, Any]


def request_body(examples: dict[str, Any], *, lines: bool = False) -> dict[str, Any]:
    """OpenAPI of a body that the endpoint reads itself."""
    content: dict[str, Any] = {"application/json": {"schema": {}, "examples": examples}}
    if lines:
        text = '{"kind": "pause", "ad_id": 1, "version": 7}\n{"kind": "delete", "ad_id": 2, "version": 3}\n'
        content["application/x-ndjson"] = {"schema": {"type": "string"}, "example": text}
    return {"requestBody": {"required": True, "content": content}}


FAILURES: dict[int | str, dict[str, Any]] = {
    401: {"model": Failed, "description": "no or a wrong token"},
    413: {"model": Failed, "description": "body or number of rows above the limit"},
    415: {"model": Failed, "description": "content type or encoding that is not taken"},
    422: {"model": Failed, "description": "malformed"},
    429: {"model": Failed, "description": "too many bulks at once; send again after Retry-After seconds"},
    503: {"model": Failed, "description": "not taken or not applied; send again after Retry-After seconds"},
    507: {"model": Failed, "description": "the disk is full; send again once there is space"},
}
