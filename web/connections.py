"""Which connections a service keeps: bounds in all and by address, and who goes first when one is reached.

A connection either waits for its client (silent, or in the middle of a header or body) or has a request in
hand. One that waits costs its client nothing, so it has no right to its place: over a bound the one that has
waited longest is dropped for the new one. Where all have requests in hand, the new connection gets one of a
few spare places, on which only health is answered and everything else is told to come back.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from web.errors import HttpError

_SWEEP_S = 0.25


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds of connections and of how they may be used.

    Attributes:
        connections: open ones in all.
        per_address: open ones of one client address (IPv6: of one /64 network).
        spare: further ones that only health is answered on.
        header_s: seconds to send a request's header, from the connection or its first byte.
        body_s: seconds to send a request's body.
        idle_s: seconds between two requests.
        linger_s: seconds for the rest of a body that was answered early, so that the answer is read.
        write_s: seconds in which a client reads nothing of its answer.
        drain_s: seconds, once the service ends, in which open connections may still bring a request.
        header_bytes: bytes of a header.
        headers: lines of a header.
        chunks: chunks of one body, the empty one at its end among them.
        pipelined: requests sent ahead of the answer to the first.
    """

    connections: int = 1000
    per_address: int = 800
    spare: int = 32
    header_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 75.0
    linger_s: float = 2.0
    write_s: float = 30.0
    drain_s: float = 0.3
    header_bytes: int = 16 << 10
    headers: int = 100
    chunks: int = 10_000
    pipelined: int = 16


class Connection(Protocol):
    """What the books need of a connection."""

    address: str
    spare: bool

    def drop(self) -> None:
        """End it at once, with a word to whoever was sending."""

    def check(self, now: float) -> None:
        """End it when it has taken longer than it may."""


class Connections:
    """The books of one server's connections.

    Args:
        limits: of them.
        body_of: an error's body in the service's form.
        health: paths that are answered on spare places.
        refused: told the reason of every refusal, for metrics.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        *,
        body_of: Callable[[HttpError], bytes],
        health: frozenset[str] = frozenset(),
        refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """No connection yet."""
        self.limits, self.body_of, self.health, self.refused = limits, body_of, health, refused
        self.draining_since: float | None = None
        self.open: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}  # in the order in which they began to wait
        self._by_address: Counter[str] = Counter()
        self._spare = 0
        self._sweeping = False

    def opened(self, connection: Connection) -> None:
        """Enter a connection, and make room where a bound is reached."""
        self.open.add(connection)
        self._by_address[connection.address] += 1
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)
        if self._by_address[connection.address] > self.limits.per_address:
            self._make_room(connection, address=connection.address)
        if len(self.open) - self._spare > self.limits.connections and not connection.spare:
            self._make_room(connection, address=None)

    def waits(self, connection: Connection) -> None:
        """It waits for its client from now on."""
        self._waiting.pop(connection, None)
        if connection in self.open:
            self._waiting[connection] = None

    def has_request(self, connection: Connection) -> None:
        """It has a request in hand, which nobody takes from it."""
        self._waiting.pop(connection, None)

    def closed(self, connection: Connection) -> None:
        """Strike it out; safe to repeat."""
        if connection not in self.open:
            return
        self.open.discard(connection)
        self._waiting.pop(connection, None)
        self._spare -= connection.spare
        self._by_address[connection.address] -= 1
        if not self._by_address[connection.address]:
            del self._by_address[connection.address]

    def _make_room(self, connection: Connection, *, address: str | None) -> None:
        for other in self._waiting:
            if not other.spare and other is not connection and address in (None, other.address):
                return self._drop(other)
        connection.spare = True
        self._spare += 1
        if self._spare > self.limits.spare:
            self._drop(next((c for c in self._waiting if c.spare and c is not connection), connection))

    def _drop(self, connection: Connection) -> None:
        self.refused("connections")
        self.closed(connection)
        connection.drop()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.open):
            connection.check(now)
        self._sweeping = bool(self.open)
        if self._sweeping:
            loop.call_later(_SWEEP_S, self._sweep)


def address_key(host: str) -> str:
    """What one client can hardly have many of: an IPv4 address, or an IPv6 network of 64 bits."""
    if ":" not in host:
        return host
    try:
        return str(ipaddress.IPv6Network((host.partition("%")[0], 64), strict=False))
    except ValueError:
        return host
