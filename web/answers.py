"""Answers that are not 2xx: a word for programs and a message for people, always in the same form."""

from __future__ import annotations

import json

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from web.errors import HttpError

_BEFORE_THE_BODY = (401, 403, 404, 405, 408, 413, 415, 421, 429)


def error_answer(error: HttpError) -> Response:
    """The answer that says it."""
    # Of a body that nobody wants the rest need not be sent: without this the server would read all of it.
    closing = {"Connection": "close"} if error.status in _BEFORE_THE_BODY else {}
    return Response(
        error_body(error), error.status, headers=error.headers | closing, media_type="application/json"
    )


def error_body(error: HttpError) -> bytes:
    """Its JSON."""
    return json.dumps({"reason": error.reason, "message": error.message}).encode()


def add_error_answers(app: FastAPI) -> None:
    """Answer what endpoints raise, and what the framework finds, in this form."""

    @app.exception_handler(HttpError)
    async def refused(_: Request, error: HttpError) -> Response:
        return error_answer(error)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        reason = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "http")
        headers = dict(error.headers or {})
        return error_answer(HttpError(error.status_code, reason, str(error.detail), headers=headers))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        # The server logs it with its traceback; the client needs neither.
        return error_answer(HttpError(500, "internal", "the request failed; the log of the service says why"))
