"""Endpoints that only read: ads, health and metrics."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import FastAPI, Path, Query, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from indexer.events.error import shown
from indexer.http.answers import READ_FAILURES, Ad, Alive, Failed, Ready
from indexer.http.api import Api, WriterApi
from indexer.store.index_store import IndexStore
from serving.keys import MAX_KEY, id_of
from web.errors import HttpError

HEALTH = frozenset({"/healthz", "/readyz", "/metrics"})  # answered also when all connections are taken
_AdId = Path(ge=0, lt=1 << 63, examples=[1017])


def add_reads(app: FastAPI, api: Api) -> None:
    """Add `/ads/{ad_id}` and `/ads?key=`."""

    @app.get(
        "/ads/{ad_id}",
        responses=READ_FAILURES | {404: {"model": Failed, "description": "not in the index"}},
        summary="One ad: status, content, versions, semantic ID of each generation, neighbours",
    )
    async def get_ad(
        ad_id: int = _AdId,
        neighbours: int = Query(10, ge=0, le=100, description="active ads that share its prefix, at most"),
    ) -> Ad:
        ad = await api.call(lambda: _ad(api.store, ad_id, neighbours=neighbours))
        if ad is None:
            raise HttpError(404, "unknown_ad", f"ad {ad_id} is not in the index")
        return ad

    @app.get(
        "/ads",
        responses=READ_FAILURES | {404: {"model": Failed, "description": "not in the index"}},
        summary="One ad by its key, as `/ads/{ad_id}` gives it",
    )
    async def get_ad_by_key(
        key: str = Query(min_length=1, max_length=MAX_KEY, description="ad_id of events that send texts"),
        neighbours: int = Query(10, ge=0, le=100, description="active ads that share its prefix, at most"),
    ) -> Ad:
        ad = await api.call(lambda: _ad(api.store, id_of(key), neighbours=neighbours))
        if ad is None or ad.key != key:
            raise HttpError(404, "unknown_ad", f"ad {shown(key)} is not in the index")
        return ad


def add_health(app: FastAPI, api: WriterApi) -> None:
    """Add `/healthz`, `/readyz` and `/metrics`."""

    # HEAD as GET: FastAPI does not add it by itself, and load balancers ask so. The server drops the body.
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="The process is alive")
    async def healthz() -> Alive:
        return Alive(status="alive")

    @app.head("/readyz", include_in_schema=False)
    @app.get(
        "/readyz",
        response_model=Ready,
        responses={503: {"model": Ready, "description": "not ready; `problems` says why"}},
        summary="Events are applied at the moment",
    )
    async def readyz() -> Response:  # from memory: other endpoints may hold all threads
        problems, sources = api.ready()
        ready = Ready(ready=not problems, problems=problems, sources=sources)
        return JSONResponse(ready.model_dump(), status_code=503 if problems else 200)

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", response_class=Response, summary="Prometheus metrics")
    def metrics() -> Response:
        return Response(api.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _ad(store: IndexStore, ad_id: int, *, neighbours: int) -> Ad | None:
    view = store.ad(ad_id)
    if view is None:
        return None
    near = {name: store.neighbours(ad_id, name, limit=neighbours) for name in view.sids}
    return Ad(**asdict(view), sequence=store.meta.sequence, neighbours=near)
