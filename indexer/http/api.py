"""HTTP API of the sidecar: events in, ads and dead letters out, health and metrics."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from indexer.events.event import Reason
from indexer.http.answers import (
    BULK_EXAMPLES,
    EXAMPLES,
    FAILURES,
    Applied,
    BulkApplied,
    Failed,
    Ready,
    request_body,
)
from indexer.http.body import read_body, split_lines, split_list
from indexer.http.guard import JSON, NDJSON, Guard, HttpError
from indexer.sidecar.intake import Item, UnavailableError
from indexer.sidecar.metrics import Metrics
from indexer.sidecar.worker import Worker
from indexer.store.index_store import DeadLetter, IndexStore, Outcome
from serving.index.layout import IndexStoreError

log = logging.getLogger("gr4ad.indexer")

SOURCE = "http"
_MALFORMED = get_args(Reason)
_BEFORE_THE_BODY = (401, 404, 405, 408, 413, 415, 421, 429)
_ANSWER_S = 30.0  # longest wait for a commit
_BULKS = 4  # bodies of the largest size in memory at once
_AdId = Path(ge=0, lt=1 << 63, examples=[1017])
_Number = Path(ge=0, lt=1 << 63, description="number of a dead letter")


@dataclass(frozen=True)
class ApiLimits:
    """Bytes of one event and of a bulk, rows of a bulk, seconds a body may take to arrive."""

    event_bytes: int = 1 << 20
    bulk_bytes: int = 32 << 20
    bulk_rows: int = 10_000
    body_s: float = 60.0


@dataclass
class Api:
    """What the endpoints work with.

    Attributes:
        store: the index, for reading.
        worker: all writes go through it.
        metrics: for /metrics.
        guard: who may write.
        ready: problems, and states of the sources.
        limits: of bodies.
    """

    store: IndexStore
    worker: Worker
    metrics: Metrics
    guard: Guard
    ready: Callable[[], tuple[list[str], dict[str, Any]]]
    limits: ApiLimits = field(default_factory=ApiLimits)


def create_app(api: Api) -> FastAPI:
    """The application; it holds no state of its own."""
    app = FastAPI(
        title="gr4ad indexer",
        version="1",
        description="Takes ad events and keeps the semantic-ID index of the ads. An event is answered after "
        "its commit: what was answered survives a crash. Events of an ad carry a version; they may be "
        "repeated and may come in any order.",
    )
    app.add_middleware(_HostCheck, guard=api.guard)
    _add_error_answers(app)
    _add_writes(app, api)
    _add_dead_letters(app, api)
    _add_reads(app, api)
    return app


def _add_writes(app: FastAPI, api: Api) -> None:
    bulks = asyncio.Semaphore(_BULKS)

    @app.post(
        "/events",
        response_model=Applied,
        responses=FAILURES
        | {409: {"model": Failed, "description": "does not fit the ad; kept as a dead letter"}},
        openapi_extra=request_body(EXAMPLES),
        summary="Apply one event",
    )
    async def post_event(request: Request) -> Response:
        api.guard.check_write(request.headers)
        body = await read_body(request, limit=api.limits.event_bytes, timeout_s=api.limits.body_s)
        outcome = (await _submit(api, [body]))[0]
        return JSONResponse(_outcome(outcome), status_code=_status(outcome))

    @app.post(
        "/events/bulk",
        response_model=BulkApplied,
        responses=FAILURES,
        openapi_extra=request_body(BULK_EXAMPLES, lines=True),
        summary="Apply a JSON list, or lines of JSON, of events",
        description="Rows apply in order and by themselves: a bad row is named in the answer and kept "
        "as a dead letter, the others apply. After a 503 or 507 some rows may have been applied; sending "
        "all of them again does no harm.",
    )  # fmt: skip
    async def post_bulk(request: Request) -> Response:
        kind = api.guard.check_write(request.headers, types=(JSON, NDJSON))
        if bulks.locked():
            raise HttpError(
                429, "busy", f"{_BULKS} bulks are being taken already", headers={"Retry-After": "1"}
            )
        async with bulks:
            limits = api.limits
            body = await read_body(request, limit=limits.bulk_bytes, timeout_s=limits.body_s)
            split = split_list if kind == JSON else split_lines
            rows = await asyncio.to_thread(split, body, limit=limits.bulk_rows)
            del body
            outcomes = await _submit(api, [raw for _, raw in rows])
        return JSONResponse(await asyncio.to_thread(_bulk, [i for i, _ in rows], outcomes))


def _add_dead_letters(app: FastAPI, api: Api) -> None:
    @app.get("/dead-letters", summary="Events that could not be applied, oldest first")
    async def list_dead_letters(
        limit: int = Query(100, ge=1, le=1000),
        after: int = Query(-1, ge=-1, lt=1 << 63, description="number of the last one of the page before"),
    ) -> dict[str, Any]:
        letters = await _call(api, lambda: api.store.dead_letters(limit=limit, after=after))
        following = letters[-1].number if len(letters) == limit else None
        return {"dead_letters": [_letter(x) for x in letters], "next": following}

    @app.post(
        "/dead-letters/{number}/replay",
        response_model=Applied,
        responses=FAILURES | {404: {"model": Failed}},
        summary="Try one again, as if it came now",
    )
    async def replay(request: Request, number: int = _Number) -> Response:
        api.guard.check_write(request.headers)
        (outcome,) = await _call(api, lambda: api.store.replay([number]))
        return JSONResponse(_outcome(outcome), status_code=_status(outcome))

    @app.delete(
        "/dead-letters/{number}",
        status_code=204,
        responses=FAILURES | {404: {"model": Failed}},
        summary="Forget one",
    )
    async def discard(request: Request, number: int = _Number) -> Response:
        api.guard.check_write(request.headers)
        await _call(api, lambda: api.store.drop_dead_letters([number]))
        return Response(status_code=204)


def _add_reads(app: FastAPI, api: Api) -> None:
    @app.get(
        "/ads/{ad_id}",
        responses={404: {"model": Failed}},
        summary="One ad: status, content, versions, semantic ID of each generation, neighbours",
    )
    async def get_ad(
        ad_id: int = _AdId,
        neighbours: int = Query(10, ge=0, le=100, description="active ads that share its prefix, at most"),
    ) -> dict[str, Any]:
        ad = await _call(api, lambda: _ad(api.store, ad_id, neighbours))
        if ad is None:
            raise HttpError(404, "unknown_ad", f"ad {ad_id} is not in the index")
        return ad

    @app.get("/healthz", summary="The process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get(
        "/readyz",
        response_model=Ready,
        responses={503: {"model": Ready, "description": "not ready; `problems` says why"}},
        summary="Events are applied at the moment",
    )
    def readyz() -> Response:
        problems, sources = api.ready()
        content = {"ready": not problems, "problems": problems, "sources": sources}
        return JSONResponse(content, status_code=503 if problems else 200)

    @app.get("/metrics", response_class=Response, summary="Prometheus metrics")
    def metrics() -> Response:
        return Response(api.metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def _submit(api: Api, raws: list[bytes]) -> list[Outcome]:
    if not raws:
        return []
    submission = api.worker.submit(Item(raw, SOURCE) for raw in raws)
    assert submission is not None  # without `stop` there is no other way out
    return await _answer(submission.future)


async def _call(api: Api, function: Callable[[], Any]) -> Any:
    """In the writer's thread, between two batches: the store is not for several threads."""
    try:
        return await _answer(api.worker.call(function))
    except ValueError as error:
        raise HttpError(404, "unknown_dead_letter", str(error)) from None
    except IndexStoreError as error:
        raise UnavailableError(str(error)) from None


async def _answer(future: Future) -> Any:
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await asyncio.shield(asyncio.wrap_future(future))
    except TimeoutError:
        raise HttpError(
            503,
            "slow",
            f"not committed within {_ANSWER_S:.0f} s, and it may still be; sending it again does no harm",
            headers={"Retry-After": "5"},
        ) from None


def _status(outcome: Outcome) -> int:
    if outcome.result != "rejected":
        return 200
    return 500 if outcome.reason == "internal" else 422 if outcome.reason in _MALFORMED else 409


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "result": outcome.result,
        "sequence": outcome.sequence,
        "reason": outcome.reason or "",
        "message": outcome.message or "",
    }


def _bulk(indices: list[int], outcomes: list[Outcome]) -> dict[str, Any]:
    count = Counter(o.result for o in outcomes)
    return {
        "applied": count["applied"],
        "stale": count["stale"],
        "rejected": count["rejected"],
        "sequence": max((o.sequence for o in outcomes if o.sequence is not None), default=None),
        "rows": [{"index": i, **_outcome(o)} for i, o in zip(indices, outcomes, strict=True)],
    }


def _ad(store: IndexStore, ad_id: int, neighbours: int) -> dict[str, Any] | None:
    ad = store.ad(ad_id)
    if ad is None:
        return None
    near = {name: [asdict(n) for n in store.neighbours(ad_id, name, limit=neighbours)] for name in ad.sids}
    return {**asdict(ad), "sequence": store.meta.sequence, "neighbours": near}


def _letter(letter: DeadLetter) -> dict[str, Any]:
    # Bytes that are not UTF-8 as \\xff, since JSON has no other place for them.
    return {**asdict(letter), "raw": letter.raw_bytes.decode(errors="backslashreplace")}


class _HostCheck:
    """Refuses foreign names in Host on every path, before anything is read."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._guard.check_host(Headers(scope=scope))
            except HttpError as error:
                await _answer_error(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _answer_error(error: HttpError) -> JSONResponse:
    content = {"reason": error.reason, "message": error.message}
    # Of a body that nobody wants the rest need not be sent: without this the server would read all of it.
    closing = {"Connection": "close"} if error.status in _BEFORE_THE_BODY else {}
    return JSONResponse(content, status_code=error.status, headers=error.headers | closing)


def _add_error_answers(app: FastAPI) -> None:
    @app.exception_handler(HttpError)
    async def refused(_: Request, error: HttpError) -> Response:
        return _answer_error(error)

    @app.exception_handler(UnavailableError)
    async def unavailable(_: Request, error: UnavailableError) -> Response:
        reason = "no_space" if error.status == 507 else "unavailable"
        after = str(math.ceil(error.retry_after_s))
        return _answer_error(HttpError(error.status, reason, str(error), headers={"Retry-After": after}))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = " ".join(str(part) for part in first["loc"])
        return _answer_error(HttpError(422, "invalid", f"{where}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        reason = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "http")
        headers = dict(error.headers or {})
        return _answer_error(HttpError(error.status_code, reason, str(error.detail), headers=headers))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        # The server logs it with its traceback; the client needs neither.
        return _answer_error(
            HttpError(500, "internal", "the request failed; the log of the service says why")
        )
