"""Endpoints of the dead letters."""

from __future__ import annotations

import json

from fastapi import FastAPI, Path, Query, Request, Response

from indexer.http.answers import (
    READ_FAILURES,
    REJECTED,
    WRITE_FAILURES,
    Answers,
    DeadLetterPage,
    EventOutcome,
    Failed,
)
from indexer.http.api import Api
from indexer.http.events import outcome_answer
from indexer.http.guard import JSON
from indexer.store.dead_letters import DeadLetter

_Number = Path(ge=0, lt=1 << 63, description="number of a dead letter")
_MALFORMED: Answers = {
    422: {"model": EventOutcome | Failed, "description": "malformed still, or a number out of its range"}
}
_UNKNOWN: Answers = {404: {"model": Failed, "description": "no such dead letter"}}


def add_dead_letters(app: FastAPI, api: Api) -> None:
    """Add the list, replay and delete."""

    @app.get(
        "/dead-letters",
        response_model=DeadLetterPage,
        responses=READ_FAILURES,
        summary="Events that could not be applied, oldest first",
        description=f"A page ends at `limit` letters, or with {api.limits.page_bytes:,} bytes of them.",
    )
    async def list_dead_letters(
        limit: int = Query(100, ge=1, le=1000),
        after: int = Query(-1, ge=-1, lt=1 << 63, description="number of the last one of the page before"),
    ) -> Response:
        size = api.limits.page_bytes
        records, more = await api.call(
            lambda: api.store.dead_letter_records(after=after, limit=limit, max_bytes=size)
        )
        return Response(await api.aside(lambda: _page(records, more=more)), media_type=JSON)

    @app.post(
        "/dead-letters/{number}/replay",
        response_model=EventOutcome,
        responses=WRITE_FAILURES | REJECTED | _UNKNOWN | _MALFORMED,
        summary="Try one again, as if it came now",
    )
    async def replay(request: Request, number: int = _Number) -> Response:
        api.guard.check_write(request.headers)
        (outcome,) = await api.call(lambda: api.store.replay([number]))
        return outcome_answer(outcome)

    @app.delete(
        "/dead-letters/{number}",
        status_code=204,
        responses=WRITE_FAILURES | _UNKNOWN,
        summary="Forget one",
    )
    async def discard(request: Request, number: int = _Number) -> None:
        api.guard.check_write(request.headers)
        await api.call(lambda: api.store.drop_dead_letters([number]))


def _page(records: list[tuple[int, bytes]], *, more: bool) -> bytes:
    """`DeadLetterPage`, letter by letter: each holds the interpreter for a few milliseconds."""
    shown = (DeadLetter.decode(number, record).shown() for number, record in records)
    letters = b",".join(json.dumps(letter).encode() for letter in shown)
    following = records[-1][0] if more else None
    return b'{"dead_letters":[%b],"next":%b}' % (letters, json.dumps(following).encode())
