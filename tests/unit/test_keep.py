"""launcher.keep with real processes: starts again what ends or hangs, hands signals on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from launcher import keep
from launcher.paths import HOME
from launcher.restarts import Restarts

# Notes its start in a file, then does what the second argument says.
CHILD = """
import signal, sys, time
def end(number, frame):
    open(sys.argv[1], "a").write("ended\\n"); sys.exit(7)
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[2] == "deaf" else end)
open(sys.argv[1], "a").write("started\\n")
if sys.argv[2] == "stay" or sys.argv[2] == "deaf":
    time.sleep(60)
sys.exit(3)
"""


def _wait(condition) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "note"


def _keeper(note: Path, what: str, **options) -> keep.Keeper:
    options = {"restarts": Restarts(first_s=0.01), **options}
    return keep.Keeper([sys.executable, "-c", CHILD, str(note), what], interval_s=0.1, **options)


def _started(keeper: keep.Keeper) -> threading.Thread:
    thread = threading.Thread(target=keeper.run, daemon=True)
    thread.start()
    return thread


def test_a_command_that_ends_is_started_again_until_told_to_stop(note: Path) -> None:
    keeper = _keeper(note, "end")
    thread = _started(keeper)
    _wait(lambda: len(_lines(note)) >= 3)
    keeper.stop(signal.SIGTERM)
    thread.join(10)
    assert not thread.is_alive()
    count = len(_lines(note))
    time.sleep(0.3)
    assert len(_lines(note)) == count


def test_pauses_grow_to_a_bound(note: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keeper = _keeper(note, "end", restarts=Restarts(first_s=0.05, most_s=0.2))
    thread = _started(keeper)
    _wait(lambda: len(_lines(note)) >= 5)
    keeper.stop(signal.SIGKILL)
    thread.join(10)
    assert re.findall(r"again in (\S+) s", capfd.readouterr().err)[:4] == ["0.05", "0.1", "0.2", "0.2"]


@pytest.mark.parametrize("what", ["stay", "deaf"])
def test_a_command_that_does_not_answer_is_ended_and_started_again(note: Path, what: str) -> None:
    keeper = _keeper(note, what, url="http://127.0.0.1:9/", failures=10, start_s=0, stop_s=0.3)
    thread = _started(keeper)
    _wait(lambda: _lines(note).count("started") >= 2)
    assert ("ended" in _lines(note)) == (what == "stay")
    keeper.stop(signal.SIGKILL)
    thread.join(10)
    assert not thread.is_alive()


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


@contextmanager
def _server(status: int) -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), _Answer) as server:
        server.asked, server.status = 0, status
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def _keep_asking(note: Path, server: HTTPServer, **options) -> list[str]:
    """What the command did while the keeper asked 20 times."""
    url = f"http://127.0.0.1:{server.server_port}/healthz"
    keeper = _keeper(note, "stay", url=url, failures=5, **options)
    thread = _started(keeper)
    _wait(lambda: server.asked >= 20)
    keeper.stop(signal.SIGTERM)
    thread.join(10)
    assert not thread.is_alive()
    return _lines(note)


def test_an_answer_keeps_the_command(note: Path) -> None:
    with _server(200) as server:
        assert _keep_asking(note, server, start_s=0) == ["started", "ended"]


def test_an_error_is_no_answer(note: Path) -> None:
    with _server(503) as server:
        assert _keep_asking(note, server, start_s=0).count("started") > 1


def test_a_start_may_take_its_time(note: Path) -> None:
    with _server(503) as server:
        assert _keep_asking(note, server, start_s=60) == ["started", "ended"]


def test_a_command_that_answered_once_has_started(note: Path) -> None:
    with _server(200) as server:
        keeper = _keeper(note, "stay", url=f"http://127.0.0.1:{server.server_port}/", failures=5, start_s=60)
        thread = _started(keeper)
        _wait(lambda: server.asked >= 2)
        server.status = 503
        _wait(lambda: _lines(note).count("started") > 1)
        keeper.stop(signal.SIGKILL)
        thread.join(10)
        assert not thread.is_alive()


def test_the_container_ends_as_the_command_does(note: Path) -> None:
    command = [sys.executable, "-m", "launcher.keep", "--", sys.executable, "-c", CHILD, str(note), "stay"]
    process = subprocess.Popen(command, cwd=HOME, env={**os.environ, "PYTHONPATH": str(HOME)})
    try:
        _wait(lambda: _lines(note) == ["started"])
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 7
        assert time.monotonic() - began < 5
        assert _lines(note) == ["started", "ended"]
    finally:
        process.kill()
