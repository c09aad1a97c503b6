"""uvicorn's HTTP protocol with bounds: what a client sends must come in time and in measure.

Of itself uvicorn bounds only the time between two requests, and its parser takes headers of any length.
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from web.connections import Connections, address_key
from web.errors import HttpError

WHEN_LEFT = "web.when_left"
"""Key in the ASGI scope: takes a function to be called if the client leaves before its answer is complete."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection, entered in the books of `connections`."""

    def __init__(self, *args: Any, connections: Connections, **settings: Any) -> None:
        """As uvicorn's, with the books."""
        super().__init__(*args, **settings)
        self.address, self.spare = "", False
        self._books, self._limits = connections, connections.limits
        self._since = self.loop.time()  # when the present state began
        self._begun = self._fresh = True  # in a message; of it, or of a new connection, no byte yet
        self._header = True  # in the header of that message
        self._header_bytes = self._lines = self._chunks = 0
        self._error: HttpError | None = None
        self._when_left: list[Callable[[], object]] = []
        self._deaf = False  # what comes is thrown away
        self._lingers: float | None = None  # since when the client may read why
        self._stalled: float | None = None  # since when it reads nothing

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Enter it."""
        super().connection_made(transport)
        self.address = address_key(self.client[0] if self.client else "")
        self._books.opened(self)
        self._books.waits(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Strike it out."""
        self._books.closed(self)
        super().connection_lost(exc)
        for call in self._when_left:
            call()

    def data_received(self, data: bytes) -> None:
        """Parse, and count what belongs to the header."""
        if self._deaf:
            return  # the rest of what was refused
        self._fresh = False
        super().data_received(data)
        if self._begun and self._header and not self._deaf:
            self._header_bytes += len(data)  # the parser shows a line only once it is whole
            if self._header_bytes > self._limits.header_bytes:
                self.refuse(self._too_long())

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.scope[WHEN_LEFT] = self._when_left.append  # type: ignore[literal-required]
        self._begun = self._header = True
        self._header_bytes = self._lines = self._chunks = 0
        self._mark()

    def on_url(self, url: bytes) -> None:
        """Part of the request's target."""
        if len(self.url) + len(url) > self._limits.header_bytes:
            self._fail(self._too_long())
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One line of the header."""
        if not self._header:
            self._fail(HttpError(400, "trailers", "expected no header lines behind the body"))
        self._lines += 1
        self._header_bytes += len(name) + len(value)
        if self._lines > self._limits.headers or self._header_bytes > self._limits.header_bytes:
            self._fail(self._too_long())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The application takes the request from here on."""
        self._header = False
        if len(self.pipeline) >= self._limits.pipelined:
            limit = self._limits.pipelined
            self._fail(HttpError(400, "pipelined", f"expected at most {limit} requests ahead of an answer"))
        if self.spare:
            self.app = self._only_health
        super().on_headers_complete()
        if self.spare or self._books.draining_since is not None:
            self.cycle.keep_alive = False
        self._mark()

    def on_chunk_header(self) -> None:
        """A chunk of the body begins."""
        self._chunks += 1
        if self._chunks > self._limits.chunks:
            limit = self._limits.chunks
            self._fail(HttpError(413, "chunks", f"expected a body in at most {limit:,} chunks, got more"))

    def on_message_complete(self) -> None:
        """The request is whole."""
        super().on_message_complete()
        self._begun = False
        self._mark()

    def on_response_complete(self) -> None:
        """The answer is on its way."""
        self._when_left.clear()
        super().on_response_complete()
        self._mark()

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self._stalled = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It has read."""
        self._stalled = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """The way out of a message that uvicorn cannot parse, or that a method above refused."""
        self.refuse(self._error or HttpError(400, "invalid_http", msg))

    def shutdown(self) -> None:
        """The service ends: answer what is in hand, and for a moment what open connections still bring."""
        if self._books.draining_since is None:
            self._books.draining_since = self.loop.time()
        for cycle in [self.cycle, *(cycle for cycle, _ in self.pipeline)]:
            if cycle is not None:
                cycle.keep_alive = False

    def refuse(self, error: HttpError) -> None:
        """Answer an error for what the client is still sending, and end the connection once that is read."""
        if self._deaf or self.transport.is_closing():
            return
        self._books.refused(error.reason)
        self._deaf = True
        cycle = self.cycle
        if self.pipeline or (cycle is not None and cycle.response_started and not cycle.response_complete):
            self.transport.abort()  # no second answer into the middle of the first
            return
        if self._has_request():
            cycle.keep_alive = False  # nonsense behind a good request, which is answered first
            return
        body = self._books.body_of(error)
        head = (
            f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in error.headers.items()),
        )
        self.transport.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        # Closed at once, with bytes unread, the connection would be reset and the answer lost with it.
        self._lingers = self.loop.time()
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def drop(self) -> None:
        """End it at once, with a word to whoever was sending."""
        if self._begun and not self._fresh:
            self.refuse(self._busy())
            self.transport.close()
        else:
            self.transport.abort()

    def check(self, now: float) -> None:
        """End it when it has taken longer than it may."""
        limits, waited = self._limits, now - self._since
        if self._lingers is not None:
            if now - self._lingers > limits.linger_s:
                self.transport.abort()
        elif self._stalled is not None and now - self._stalled > limits.write_s:
            self._books.refused("slow_reader")
            self.transport.abort()
        elif self.transport.is_closing():
            self._stalled = self._stalled or now  # closing waits for the client to read, and may for good
        elif self._has_request():
            return
        elif self._books.draining_since is not None and (not self._begun or self._fresh):
            if now - self._books.draining_since > limits.drain_s:
                self.transport.close()
        elif not self._begun:
            if waited > limits.idle_s:
                self.transport.close()
        elif self.cycle is not None and self.cycle.response_complete and not self._header:
            if waited > limits.linger_s:
                self.transport.abort()
        elif waited > (limits.header_s if self._header else limits.body_s):
            part, allowed = ("header", limits.header_s) if self._header else ("body", limits.body_s)
            if self._fresh:
                self._books.refused("silent")
                self.transport.close()
            else:
                message = f"expected the whole {part} within {allowed:.0f} s"
                self.refuse(HttpError(408, f"slow_{part}", message))

    def _mark(self) -> None:
        """Enter in the books whom this connection waits for."""
        self._since = self.loop.time()
        if self._has_request():
            self._books.has_request(self)
        else:
            self._books.waits(self)

    def _has_request(self) -> bool:
        """Whether a whole request waits for its answer."""
        cycle = self.cycle
        return bool(self.pipeline) or (
            cycle is not None and not cycle.response_complete and not cycle.more_body
        )

    def _fail(self, error: HttpError) -> None:
        """Out of a callback of the parser, which ends in `send_400_response`."""
        self._error = error
        raise error

    def _too_long(self) -> HttpError:
        lines, size = self._limits.headers, self._limits.header_bytes
        return HttpError(431, "header", f"expected a header of at most {size:,} bytes in {lines} lines")

    def _busy(self) -> HttpError:
        return HttpError(
            503, "connections", "too many connections; come back in a second", headers={"Retry-After": "1"}
        )

    async def _only_health(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] in self._books.health:
            await self.config.loaded_app(scope, receive, send)
            return
        self._books.refused("connections")
        body = self._books.body_of(self._busy())
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})
