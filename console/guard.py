"""Who may look and who may act: any page in the same browser reaches a loopback address, too."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.answers import error_answer
from web.errors import HttpError
from web.hosts import check_own_host, is_loopback
from web.tokens import check_bearer

_SITES = (None, "none", "same-origin")  # of Sec-Fetch-Site: no browser, typed by hand, our own page
_HEADERS = {
    # Nothing but what this server has; no script or style inside the page, no frame around it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Guard:
    """Checks of requests.

    Attributes:
        host: address the service listens on.
        token: what who acts has to know, on loopback too; None: nobody may act.
        names: names in Host that are this service's, besides addresses and localhost.
    """

    host: str
    token: str | None = None
    names: frozenset[str] = frozenset()

    def check_page(self, headers: Headers) -> None:
        """Refuse a foreign name in Host, and what another site's page sends.

        Raises:
            HttpError: 403 or 421.
        """
        host = headers.get("host", "")
        if host.rpartition(":")[0] not in self.names and host not in self.names:
            check_own_host(host)
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise HttpError(
                403, "origin", f"expected requests of this page alone, got Origin {ascii(origin[:100])}"
            )
        if headers.get("sec-fetch-site") not in _SITES and headers.get("sec-fetch-mode") != "navigate":
            raise HttpError(403, "origin", "expected requests of this page alone, got one of another site")

    def check_user(self, headers: Headers) -> None:
        """Histories of users are shown on loopback to everybody, elsewhere to who has the token.

        Raises:
            HttpError: 401 or 403.
        """
        if not is_loopback(self.host):
            self.check_action(headers)

    def check_action(self, headers: Headers) -> None:
        """The token.

        Raises:
            HttpError: 401, or 403 where the service has none.
        """
        if self.token is None:
            raise HttpError(403, "read_only", "this console only reads: start it with --token-file to act")
        check_bearer(headers.get("authorization", ""), self.token)


class Guarded:
    """Middleware: checks every request before anything is read, and tells browsers what the page may do."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        """Around an application."""
        self._app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if scope["type"] == "http":
            try:
                self._guard.check_page(Headers(scope=scope))
            except HttpError as error:
                await error_answer(error)(scope, receive, with_headers)
                return
        await self._app(scope, receive, with_headers)
