"""A real `python -m gateway` in front of a server."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class GatewayProcess:
    """A running gateway.

    Attributes:
        http_url: host:port for inference.
        metrics_url: host:port for metrics.
        process: to be stopped.
    """

    http_url: str
    metrics_url: str
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, number: int = signal.SIGTERM, *, timeout_s: float = 30.0) -> int:
        """Status after a signal."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def running_gateway(triton: str, *options: str) -> Iterator[GatewayProcess]:
    """Gateway on free ports; it must end by itself, with status 0."""
    command = [sys.executable, "-m", "gateway", "--port", "0", "--metrics-port", "0", "--triton", triton]
    process = subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    urls = re.findall(r"http://([\d.]+:\d+)", line)
    try:
        assert len(urls) >= 2, f"the gateway said {line!r}, status {process.poll()}"
        running = GatewayProcess(urls[0], urls[1], process)
        yield running
        if process.poll() is None:
            assert running.stop() == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
