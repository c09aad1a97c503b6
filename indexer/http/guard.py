"""Who may write, and what a request must look like."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from web.answers import error_answer
from web.errors import HttpError
from web.hosts import check_own_host, is_loopback
from web.tokens import check_bearer, check_token

JSON = "application/json"
NDJSON = "application/x-ndjson"


@dataclass(frozen=True)
class Guard:
    """Checks of requests.

    Attributes:
        host: address the service listens on.
        token: what writers have to know; None lets everybody write, which only a loopback address may.
        variable: of the environment that may hold it.
    """

    host: str
    token: str | None = None
    variable: str = "GR4AD_INDEXER_TOKEN"

    def __post_init__(self) -> None:
        """Refuse to be open to a network.

        Raises:
            ValueError: no token on an address that others reach, or a token that cannot be one.
        """
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"--host {self.host} is open to other machines: expected a token for writers in --token-file "
                f"or {self.variable}, got none (127.0.0.1 needs none)"
            )
        if self.token is not None:
            check_token(self.token)

    def check_host(self, headers: Headers) -> None:
        """On loopback without a token, only addresses and `localhost` as Host.

        Raises:
            HttpError: 421.
        """
        if self.token is not None:
            return
        check_own_host(headers.get("host", ""))

    def check_write(self, headers: Headers, *, types: tuple[str, ...] = (JSON,)) -> str:
        """Token, content type and encoding of a write; returns the content type.

        Raises:
            HttpError: 401 or 415.
        """
        if self.token is not None:
            check_bearer(headers.get("authorization", ""), self.token)
        kind, _, parameters = headers.get("content-type", "").partition(";")
        kind, parameters = kind.strip().lower(), parameters.strip().lower()
        # A form of a foreign web page cannot have these types, so no browser sends one here unasked.
        if kind not in types:
            raise HttpError(
                415, "wrong_type", f"expected Content-Type {' or '.join(types)}, got {ascii(kind[:100])}"
            )
        if parameters.replace('"', "") not in ("", "charset=utf-8", "charset=utf8"):
            raise HttpError(415, "wrong_type", f"expected UTF-8, got {ascii(parameters[:100])}")
        if (encoding := headers.get("content-encoding", "identity").lower()) != "identity":
            raise HttpError(
                415, "wrong_encoding", f"expected no Content-Encoding, got {ascii(encoding[:100])}"
            )
        return kind


class HostCheck:
    """Middleware: refuses foreign names in Host on every path, before anything is read."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        """Around an application."""
        self._app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] == "http":
            try:
                self._guard.check_host(Headers(scope=scope))
            except HttpError as error:
                await error_answer(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
