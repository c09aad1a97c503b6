"""What the sidecar's endpoints raise besides `web.errors.HttpError`, in the same form."""

from __future__ import annotations

import math

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError

from indexer.events.error import shown
from indexer.sources.submission import UnavailableError
from web import answers
from web.answers import error_answer
from web.errors import HttpError


def add_error_answers(app: FastAPI) -> None:
    """Answer every exception of the endpoints, and of the framework, in this form."""
    answers.add_error_answers(app)

    @app.exception_handler(UnavailableError)
    async def unavailable(_: Request, error: UnavailableError) -> Response:
        reason = "no_space" if error.status == 507 else "unavailable"
        after = str(math.ceil(error.retry_after_s))
        return error_answer(HttpError(error.status, reason, str(error), headers={"Retry-After": after}))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = " ".join(str(part) for part in first["loc"])
        message = f"{where}: {first['msg']}, got {shown(first['input'])}"
        return error_answer(HttpError(422, "invalid", message))
