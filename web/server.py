"""The HTTP server: uvicorn on a socket of ours with a guard for connections, until a signal."""

from __future__ import annotations

import contextlib
import functools
import logging
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from web.connections import Connections
from web.protocol import GuardedProtocol

_BACKLOG = 1024
_OTHER_FILES = 100  # of a service beside its connections


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound, but not listening yet; port 0 for any free one.

    Raises:
        OSError: the address is taken, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off; without, every answer takes 40 ms more.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise OSError(f"cannot listen on {_bracketed(host)}:{port}: {error}") from error
    return listener


def listen(listener: socket.socket) -> str:
    """Let clients connect, who wait until `serve`; returns the URL."""
    listener.listen(_BACKLOG)
    host, port = listener.getsockname()[:2]
    return f"http://{_bracketed(host)}:{port}"


def serve(
    app: Any,
    *listeners: socket.socket,
    connections: Connections,
    grace_s: float = 10.0,
    ended: Callable[[], bool] = lambda: False,
) -> None:
    """Answer until SIGINT, SIGTERM, or until `ended`: whoever started us can start us again.

    Args:
        app: an ASGI application.
        listeners: from `bind`, listening.
        connections: the books; their limits hold.
        grace_s: seconds for requests in hand once it ends.
        ended: asked twice a second.

    Raises:
        OSError: the limits allow more connections than the process may open files.
    """
    _raise_open_files(connections.limits.connections + connections.limits.spare + _OTHER_FILES)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # not a line for each malformed request
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=functools.partial(GuardedProtocol, connections=connections),  # type: ignore[arg-type]
            ws="none",
            interface="asgi3",
            proxy_headers=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=int(connections.limits.idle_s) + 1,  # ours comes first
            timeout_graceful_shutdown=grace_s,  # type: ignore[arg-type]
        )
    )
    with _watched(ended, server):
        server.run(sockets=list(listeners))


def _raise_open_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise OSError(f"expected a limit of at least {wanted} open files (ulimit -n), got {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def _watched(ended: Callable[[], bool], server: uvicorn.Server) -> Iterator[None]:
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            if ended():
                server.should_exit = True

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
