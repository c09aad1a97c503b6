"""The console's endpoints: the page, the stream of frames, one request, actions."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from console.actions import Actions
from console.ask import Asker
from console.board import Board
from console.guard import Guard, Guarded
from web.answers import add_error_answers
from web.body import read_body
from web.errors import HttpError

HEALTH = frozenset({"/healthz"})
STATIC = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_BODY_BYTES, _BODY_S = 64 << 10, 10.0


@dataclass(frozen=True)
class Console:
    """What the endpoints work with.

    Attributes:
        board: frames.
        guard: who may look and act.
        actions: what may be done.
        asker: sends the one request; None where there is no run folder.
        replay: whether the frames are a recording's.
    """

    board: Board
    guard: Guard
    actions: Actions = field(default_factory=Actions)
    asker: Asker | None = None
    replay: bool = False


class AskBody(BaseModel):
    """One request to the server."""

    model_config = ConfigDict(extra="forbid")

    user: Annotated[str, Field(max_length=256)] = ""
    num_ads: Annotated[int, Field(ge=1, le=50)] = 10


def create_app(console: Console) -> FastAPI:
    """The application."""
    app = FastAPI(title="gr4ad console", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guarded, guard=console.guard)
    add_error_answers(app)
    _add_page(app)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/api/about")
    async def about() -> dict[str, Any]:
        acts = console.actions.describe() if console.guard.token is not None else []
        return {"can_ask": console.asker is not None, "actions": acts, "replay": console.replay}

    @app.get("/api/frames")
    async def frames() -> Response:
        console.board.check_room()
        return StreamingResponse(console.board.stream(), media_type="text/event-stream")

    @app.post("/api/request")
    async def ask(request: Request) -> dict[str, Any]:
        console.guard.check_user(request.headers)
        body = await _body(request)
        if console.asker is None:
            raise HttpError(404, "no_run", "this console has no run folder: start it with --run")
        try:
            asked = AskBody.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "body"
            raise HttpError(
                422, "invalid", f"{where}: {first['msg']}, got {first['input']!r:.100}"
            ) from error
        return await asyncio.to_thread(console.asker.ask, asked.user, num_ads=asked.num_ads)

    @app.post("/api/actions/{name}")
    async def act(name: str, request: Request) -> dict[str, str]:
        console.guard.check_action(request.headers)
        body = await _body(request)
        return {"done": await asyncio.to_thread(console.actions.perform, name, body)}

    return app


def _add_page(app: FastAPI) -> None:
    """The page and its files, from memory: what the folder does not hold now, nobody gets."""
    files = {path.name: path for path in STATIC.iterdir() if path.suffix in _TYPES}
    content = {name: path.read_bytes() for name, path in files.items()}

    @app.get("/")
    async def page() -> Response:
        return Response(content["index.html"], media_type=_TYPES[".html"])

    @app.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in content:
            raise HttpError(
                404, "not_found", f"expected one of {', '.join(sorted(content))}, got {name[:60]!a}"
            )
        return Response(content[name], media_type=_TYPES[files[name].suffix])


async def _body(request: Request) -> bytes:
    """Of a request with JSON; a form of a foreign page cannot say that it has any.

    Raises:
        HttpError: 408, 413 or 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpError(415, "wrong_type", f"expected Content-Type application/json, got {kind[:100]!a}")
    length = request.headers.get("content-length", "")
    return await read_body(request.receive, length=length, limit=_BODY_BYTES, timeout_s=_BODY_S)
