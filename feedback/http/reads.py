"""Endpoints that only read: a request, a user's history, what was not taken."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Path, Query
from pydantic import BaseModel, Field

from feedback.join.joiner import Joiner
from feedback.store.requests import RequestState
from indexer.events.error import shown
from indexer.http.answers import READ_FAILURES, Failed
from indexer.http.api import WriterApi
from serving.keys import MAX_KEY, id_of
from serving.model.features import BEHAVIORS
from web.errors import HttpError

_NAMES = {code: name for name, code in BEHAVIORS.items()}


class Fed(BaseModel):
    """One thing that came of one ad."""

    ad_id: int
    behavior: str
    timestamp: int
    value: float


class Known(BaseModel):
    """What is known of one request."""

    served: bool = Field(description="its record came; false while feedback waits for it")
    samples: int = Field(description="made of it; one is made when its window is over, more correct it")
    ad_ids: list[int]
    feedback: list[Fed]


class Event(BaseModel):
    """One event of a history."""

    ad_id: int
    behavior: str
    timestamp: int


def add_reads(app: FastAPI, api: WriterApi, joiner: Joiner) -> None:
    """Add `/requests?request_id=`, `/users/{user_id}/history`, `/users/history?key=` and `/rejected`."""

    @app.get(
        "/requests",
        responses=READ_FAILURES | {404: {"model": Failed, "description": "not known, or no longer"}},
        summary="What is known of one request",
    )
    async def get_request(request_id: str = Query(min_length=1, max_length=300)) -> Known:
        state = await api.call(lambda: joiner.request(request_id))
        if state is None:
            message = f"request {shown(request_id)} is not known, or no longer"
            raise HttpError(404, "unknown_request", message)
        return _known(state)

    @app.get("/users/{user_id}/history", responses=READ_FAILURES, summary="What a user did, oldest first")
    async def get_history(user_id: int = Path(ge=0, lt=1 << 63)) -> list[Event]:
        return await _history(user_id)

    @app.get("/users/history", responses=READ_FAILURES, summary="The same of a user with a key")
    async def get_history_by_key(key: str = Query(min_length=1, max_length=MAX_KEY)) -> list[Event]:
        return await _history(id_of(key))

    @app.get("/rejected", responses=READ_FAILURES, summary="What was not taken and why, newest first")
    async def get_rejected(limit: int = Query(100, ge=1, le=1000)) -> list[dict[str, Any]]:
        return await api.call(lambda: joiner.rejected(limit=limit))

    async def _history(user: int) -> list[Event]:
        rows = await api.call(lambda: joiner.history(user))
        return [
            Event(ad_id=ad, behavior=_NAMES[code], timestamp=when)
            for when, ad, code in rows[["timestamp", "ad_id", "behavior"]].tolist()
        ]


def _known(state: RequestState) -> Known:
    fed = [
        Fed(ad_id=ad, behavior=_NAMES[code], timestamp=when, value=value)
        for (ad, code), (when, value) in state.fed.items()
    ]
    return Known(served=state.is_served, samples=state.revision, ad_ids=state.ad_ids, feedback=fed)
