"""The console on a port of its own: in this process, or as users start it."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console.app import Console, create_app
from console.board import Board
from console.guard import Guard
from web.answers import error_body
from web.connections import ConnectionLimits, Connections
from web.server import bind, listen, serve

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "open sesame"


@dataclass(frozen=True)
class Running:
    """A console that serves on a port of 127.0.0.1; its board, where that is in this process."""

    port: int
    board: Board | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, body: Any = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            sent = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
            told = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, sent, told | (headers or {}))
            answer = connection.getresponse()
            found = {k.lower(): v for k, v in answer.getheaders()}
            endless = found["content-type"].startswith("text/event-stream")
            return answer.status, found, answer.read1() if endless else answer.read()
        finally:
            connection.close()

    def post(self, path: str, body: Any, *, token: str | None = TOKEN, **headers: str) -> tuple[int, Any]:
        """Status and JSON of a POST."""
        told = headers | ({"Authorization": f"Bearer {token}"} if token else {})
        status, _, answer = self.ask("POST", path, headers=told, body=body)
        return status, json.loads(answer)


@contextmanager
def running(*, guard: Guard | None = None, most_viewers: int = 200, **parts: Any) -> Iterator[Running]:
    """A console whose board the caller writes."""
    over = threading.Event()
    board = Board(most_viewers=most_viewers, stopping=over.is_set)
    console = Console(board=board, guard=guard or Guard("127.0.0.1", token=TOKEN), **parts)
    listener = bind("127.0.0.1", 0)
    listen(listener)
    thread = threading.Thread(
        target=serve,
        args=(create_app(console), listener),
        kwargs={
            "connections": Connections(ConnectionLimits(), body_of=error_body),
            "ended": over.is_set,
            "grace_s": 5,
        },
    )
    thread.start()
    try:
        yield Running(listener.getsockname()[1], board)
    finally:
        over.set()
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


@contextmanager
def started(*options: str, environment: dict[str, str] | None = None) -> Iterator[Running]:
    """`python -m console` as users start it, on a free port; it must end by itself, with status 0."""
    command = [sys.executable, "-m", "console", "--port", "0", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, f"the console said {line!r}, status {process.poll()}"
        yield Running(int(found[1]))
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
