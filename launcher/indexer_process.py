"""Starts the sidecar, or the feedback service, as users start it: for the demo, benchmarks and tests."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from launcher.paths import HOME
from launcher.server_log import tail


class IndexerError(RuntimeError):
    """The sidecar ended, or does not become ready."""


class IndexerProcess:
    """`python -m indexer` on any free port of the loopback; a context manager. May be started again."""

    module = "indexer"

    def __init__(self, *options: str, log_file: Path, environment: Mapping[str, str] | None = None) -> None:
        """Describe; `start` starts it.

        Args:
            options: of the command, e.g. --index=build/demo/index.
            log_file: what it prints is added to it.
            environment: None for this process's.
        """
        self._options, self.log_file, self._environment = options, log_file, environment
        self.process: subprocess.Popen[bytes] | None = None
        self._from, self.url = 0, ""

    @property
    def log(self) -> str:
        """What it has printed since its last start, at most the last mebibyte."""
        return tail(self.log_file, max_bytes=1 << 20, start=self._from)

    def start(self, *, ready: bool = True, timeout_s: float = 60.0) -> IndexerProcess:
        """Start it and wait until it applies events, or with `ready` False until it listens.

        Raises:
            IndexerError: it ended, or it takes longer; with what it printed last.
        """
        self._from = self.log_file.stat().st_size if self.log_file.exists() else 0
        self.url = ""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, "serve", "--port=0", *self._options],
                cwd=HOME,
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + timeout_s
        while not self._answers("/readyz" if ready else "/healthz"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise IndexerError(f"the {self.module} does not become ready: {self.log[-2000:]}")
            time.sleep(0.02)
        return self

    def stop(self, number: int = signal.SIGTERM, *, timeout_s: float = 60.0) -> int | None:
        """Send a signal, if it still runs, and wait; its exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self.stop(signal.SIGKILL)

    def __enter__(self) -> IndexerProcess:
        """Start it."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    def _answers(self, path: str) -> bool:
        if not self.url:
            found = re.search(r"http://127\.0\.0\.1:\d+", self.log)
            if not found:
                return False
            self.url = found[0]
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:  # not there yet, or HTTP says no
            return False


class FeedbackProcess(IndexerProcess):
    """`python -m feedback`, likewise."""

    module = "feedback"
