"""The HTTP server: uvicorn on a socket of ours, until a signal or the end of the writer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from indexer.sidecar.worker import Worker

_BACKLOG = 128
_CONNECTIONS = 512


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


def serve(app: FastAPI, listener: socket.socket, *, worker: Worker) -> None:
    """Answer until SIGINT, SIGTERM, or until the writer has ended: whoever started us can start us again."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=10,
        )
    )
    with _ended_with(worker, server):
        server.run(sockets=[listener])


@contextlib.contextmanager
def _ended_with(worker: Worker, server: uvicorn.Server) -> Iterator[None]:
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            if worker.crash is not None:
                server.should_exit = True

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
