"""What the endpoints answer, as the OpenAPI page shows it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from indexer.sources.source import SourceState
from indexer.store.views import Neighbour


class Failed(BaseModel):
    """Every answer that is not 2xx."""

    reason: str = Field(description="a word for programs", examples=["unknown_ad"])
    message: str = Field(description="what was expected and what came")


class EventOutcome(BaseModel):
    """What became of one event."""

    result: Literal["applied", "stale", "rejected"] = Field(
        description="applied: committed and on disk. stale: a later version of this ad is there already, "
        "nothing to do. rejected: kept as a dead letter"
    )
    sequence: int | None = Field(
        description="index version that holds it; readers with this version or a later one show it"
    )
    reason: str = Field(description="why it is not applied; empty where it is")
    message: str = Field(description="what was expected and what came; empty where it is applied")


class RowOutcome(EventOutcome):
    """What became of one row of a bulk."""

    index: int = Field(description="position in the list, or number of the line, from 0")


class BulkOutcome(BaseModel):
    """What became of a bulk."""

    applied: int
    stale: int
    rejected: int
    sequence: int | None = Field(description="latest index version among the rows")
    rows: list[RowOutcome] = Field(description="one an event, in order")


class Letter(BaseModel):
    """An event that could not be applied."""

    number: int
    source: str
    reason: str = Field(description="why it could not be applied")
    message: str = Field(description="what was expected and what came")
    raw: str = Field(description="its first 64 KiB, bytes that are not UTF-8 as \\xff")
    length: int = Field(description="bytes of the whole")
    sha256: str = Field(description="of the whole")
    time: int = Field(description="unix seconds")
    event: dict[str, Any] | None = Field(description="its fields, where it could be read")
    waiting: bool = Field(description="it is tried again by itself whenever its ad changes")


class DeadLetterPage(BaseModel):
    """Dead letters, oldest first."""

    dead_letters: list[Letter]
    next: int | None = Field(description="`after` of the next page; null at the end")


class GapsOfSource(BaseModel):
    """What one stream lost."""

    source: str = Field(description="its name; of Kafka with the partition")
    gaps: int = Field(description="how often events were gone when they were to be read")
    lost: int = Field(description="events lost in those gaps whose size the broker tells")
    unseen: int = Field(description="gaps that nobody has acknowledged: not ready while there are any")
    acknowledged: int
    time: int = Field(description="unix seconds of the latest")
    latest: str = Field(description="the latest, in words")


class GapList(BaseModel):
    """What streams lost."""

    gaps: list[GapsOfSource]


class Ad(BaseModel):
    """What the index has of one ad."""

    ad_id: int
    key: str | None = Field(description="the ad's key; null where its ids are numbers")
    status: Literal["active", "paused", "deleted"]
    status_version: int = Field(description="version of the event that set it")
    content_version: int = Field(description="version of the event that set the content")
    updated: int = Field(description="unix seconds of the last change")
    content: dict[str, Any] | None = Field(description="null for an ad that came with a given semantic ID")
    sids: dict[str, tuple[int, ...]] = Field(description="semantic ID by tokenizer")
    audience: dict[str, Any] = Field(description="who may see it; {} is everybody")
    sequence: int = Field(description="index version")
    neighbours: dict[str, list[Neighbour]] = Field(
        description="by tokenizer: active ads with the same semantic ID, then with ever shorter prefixes"
    )


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"]


class Ready(BaseModel):
    """Whether events are applied at the moment."""

    ready: bool
    problems: list[str] = Field(description="what keeps it from being ready")
    sources: dict[str, SourceState] = Field(description="streams, by name")


Answers = dict[int | str, dict[str, Any]]
_WRONG_HOST = {"model": Failed, "description": "a name in Host that is not of this machine"}
_INTERNAL = {"model": Failed, "description": "a fault of the service; its log says which"}
_BUSY = {"model": Failed, "description": "not taken or not applied; send again after Retry-After seconds"}

READ_FAILURES: Answers = {
    421: _WRONG_HOST,
    422: {"model": Failed, "description": "a parameter out of its range"},
    500: _INTERNAL,
    503: _BUSY,
}
WRITE_FAILURES: Answers = {
    401: {"model": Failed, "description": "no or a wrong token"},
    415: {"model": Failed, "description": "content type or encoding that is not taken"},
    421: _WRONG_HOST,
    422: {"model": Failed, "description": "malformed"},
    500: _INTERNAL,
    503: _BUSY,
    507: {"model": Failed, "description": "the disk is full; send again once there is space"},
}
BODY_FAILURES: Answers = {
    408: {"model": Failed, "description": "the body took too long"},
    413: {"model": Failed, "description": "body or number of rows above the limit"},
}
TOO_MANY: Answers = {
    429: {"model": Failed, "description": "too many bulks at once; send again after Retry-After seconds"}
}
REJECTED: Answers = {
    409: {"model": EventOutcome, "description": "does not fit the ad; kept as a dead letter"},
    422: {"model": EventOutcome, "description": "malformed; kept as a dead letter"},
    500: {"model": EventOutcome | Failed, "description": "a fault of the service; kept as a dead letter"},
}
