"""Endpoints of what streams lost."""

from __future__ import annotations

from fastapi import FastAPI, Query, Request

from indexer.http.answers import READ_FAILURES, WRITE_FAILURES, Failed, GapList, GapsOfSource
from indexer.http.api import Api
from indexer.store.gaps import SourceGaps
from web.errors import HttpError


def add_gaps(app: FastAPI, api: Api) -> None:
    """Add the list and the acknowledgement."""

    @app.get("/gaps", responses=READ_FAILURES, summary="Events that streams lost before they were applied")
    async def list_gaps() -> GapList:
        return GapList(gaps=[_answer(gaps) for gaps in api.gaps.known.values()])

    @app.post(
        "/gaps/acknowledge",
        responses=WRITE_FAILURES | {404: {"model": Failed, "description": "this source has lost nothing"}},
        summary="Somebody has seen to what a source lost: the sidecar is ready again",
    )
    async def acknowledge(
        request: Request, source: str = Query(max_length=500, examples=["redis:gr4ad:ads"])
    ) -> GapsOfSource:
        api.guard.check_write(request.headers)
        if source not in api.gaps.known:
            raise HttpError(404, "unknown_gap", f"{ascii(source[:100])} has lost nothing")
        return _answer(await api.call(lambda: api.gaps.acknowledge(source)))


def _answer(gaps: SourceGaps) -> GapsOfSource:
    return GapsOfSource(**vars(gaps) | {"latest": str(gaps.latest), "unseen": gaps.unseen})
