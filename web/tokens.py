"""The token that a service asks for: where it comes from, what may be one, and whether a request has it."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from web.errors import HttpError


def read_token(path: Path | None, *, variable: str) -> str | None:
    """The token of a file, or of the environment; None for none.

    Raises:
        OSError: the file cannot be read.
        ValueError: it cannot be a token.
    """
    token = path.read_text().strip() if path else os.environ.get(variable)
    if token == "":
        raise ValueError(f"expected a token in {path or variable}, got nothing")
    if token is not None:
        check_token(token)
    return token


def check_token(token: str) -> None:
    """Refuse what is soon guessed, or what no header can carry.

    Raises:
        ValueError: it cannot be a token.
    """
    if len(token) < 8 or not token.isascii() or not token.isprintable():
        raise ValueError(f"expected a token of at least 8 ASCII characters, got {len(token)} characters")


def check_bearer(authorization: str, token: str) -> None:
    """Compare a header `Authorization` with the token, in a time that tells nothing of it.

    Raises:
        HttpError: 401.
    """
    scheme, _, given = authorization.partition(" ")
    known = hmac.compare_digest(given.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not known:
        raise HttpError(
            401,
            "unauthorized",
            "expected `Authorization: Bearer <token>` with the token of this service",
            headers={"WWW-Authenticate": "Bearer"},
        )
