"""The exception of an answer that is not 2xx; each service has a form of its own for it."""

from __future__ import annotations


class HttpError(Exception):
    """An answer that is not 2xx.

    Attributes:
        status: HTTP status.
        reason: a word for programs.
        message: what was expected and what came.
        headers: further headers of the answer.
    """

    def __init__(
        self, status: int, reason: str, message: str, *, headers: dict[str, str] | None = None
    ) -> None:
        """Keep all."""
        super().__init__(message)
        self.status, self.reason, self.message, self.headers = status, reason, message, headers or {}
