"""The one form of an answer that is not 2xx: `{"error": text}`, as Triton's own HTTP server has it."""

from __future__ import annotations

import json
from typing import Any

from web.errors import HttpError


def invalid(message: str) -> HttpError:
    """A request that is none."""
    return HttpError(400, "invalid", message)


def error_body(error: HttpError) -> bytes:
    """Its JSON."""
    return json.dumps({"error": error.message}).encode()


def shown(value: Any) -> str:
    """A value of a client in an error, short."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
