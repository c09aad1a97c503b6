"""Endpoints that take events."""

from __future__ import annotations

import asyncio
import functools
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from indexer.events.error import MALFORMED
from indexer.http.answers import BODY_FAILURES, REJECTED, TOO_MANY, WRITE_FAILURES, BulkOutcome, EventOutcome
from indexer.http.api import WriterApi
from indexer.http.body import split_lines, split_list
from indexer.http.guard import JSON, NDJSON
from indexer.store.incoming import Outcome
from web.body import read_body
from web.errors import HttpError

_BULKS = 4  # bodies of the largest size in memory at once


def add_events(
    app: FastAPI, api: WriterApi, *, path: str, event_body: dict[str, Any], bulk_body: dict[str, Any]
) -> None:
    """Add `POST <path>` and `POST <path>/bulk`; the bodies are what the OpenAPI page says of them."""
    bulks = asyncio.Semaphore(_BULKS)

    @app.post(
        path,
        response_model=EventOutcome,
        responses=WRITE_FAILURES | BODY_FAILURES | REJECTED,
        openapi_extra=event_body,
        summary="Apply one event",
    )
    async def post_event(request: Request) -> Response:
        api.guard.check_write(request.headers)
        body = await _body(request, limit=api.limits.event_bytes, timeout_s=api.limits.body_s)
        (outcome,) = await api.submit([body])
        return outcome_answer(outcome)

    @app.post(
        f"{path}/bulk",
        response_model=BulkOutcome,
        responses=WRITE_FAILURES | BODY_FAILURES | TOO_MANY,
        openapi_extra=bulk_body,
        summary="Apply a JSON list, or lines of JSON, of events",
        description="Rows apply in order and by themselves: a bad row is named in the answer and kept "
        "as a dead letter, the others apply. After a 503 or 507 some rows may have been applied; sending "
        "all of them again does no harm.",
    )
    async def post_bulk(request: Request) -> Response:
        kind = api.guard.check_write(request.headers, types=(JSON, NDJSON))
        if bulks.locked():
            message = f"{_BULKS} bulks are being taken already"
            raise HttpError(429, "busy", message, headers={"Retry-After": "1"})
        async with bulks:
            limits = api.limits
            body = await _body(request, limit=limits.bulk_bytes, timeout_s=limits.body_s)
            split = split_list if kind == JSON else split_lines
            rows = await api.aside(functools.partial(split, body, limit=limits.bulk_rows))
            del body
            outcomes = await api.submit([raw for _, raw in rows])
            indices = [i for i, _ in rows]
            return Response(await api.aside(lambda: _bulk(indices, outcomes)), media_type=JSON)


def outcome_answer(outcome: Outcome) -> JSONResponse:
    """The answer to one event."""
    status = 200
    if outcome.result == "rejected":
        status = 500 if outcome.reason == "internal" else 422 if outcome.reason in MALFORMED else 409
    return JSONResponse(_fields(outcome), status_code=status)


async def _body(request: Request, *, limit: int, timeout_s: float) -> bytes:
    length = request.headers.get("content-length", "")
    return await read_body(request.receive, length=length, limit=limit, timeout_s=timeout_s)


def _fields(outcome: Outcome) -> dict[str, Any]:
    """Those of `EventOutcome`."""
    return {
        "result": outcome.result,
        "sequence": outcome.sequence,
        "reason": outcome.reason,
        "message": outcome.message,
    }


def _bulk(indices: Sequence[int], outcomes: Sequence[Outcome]) -> bytes:
    """`BulkOutcome`, row by row: ten thousand at once would hold the interpreter for too long."""
    count = Counter(outcome.result for outcome in outcomes)
    head = {name: count[name] for name in ("applied", "stale", "rejected")} | {
        "sequence": max((outcome.sequence for outcome in outcomes), default=None)
    }
    rows = (json.dumps({"index": i, **_fields(o)}) for i, o in zip(indices, outcomes, strict=True))
    return f'{json.dumps(head)[:-1]}, "rows": [{", ".join(rows)}]}}'.encode()
