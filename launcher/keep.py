"""Keeps a command running: `python -m launcher.keep --url http://127.0.0.1:8010/healthz -- COMMAND ...`.

For the index sidecar in the server's pod. Kubernetes takes a pod out of its services while any of its
containers is stopped, and waits up to five minutes before it starts one again that ends often. The sidecar
must not do that to the server, which goes on with the index as it is: so its container stays, and the command
is started again here.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

from launcher.restarts import Restarts


class Keeper:
    """Starts a command, again and again until it is told to stop; `run` does the work, in the main thread."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        url: str | None = None,
        interval_s: float = 10.0,
        failures: int = 6,
        start_s: float = 300.0,
        stop_s: float = 30.0,
        restarts: Restarts | None = None,
    ) -> None:
        """Prepare.

        Args:
            command: what to run.
            url: answers with 200 while the command works; None watches for its end only.
            interval_s: seconds between two looks at `url`, and the longest wait for its answer.
            failures: looks without an answer in a row after which the command is ended and started again.
            start_s: seconds that a start may take, until the first answer; looks do not count before.
            stop_s: from SIGTERM to SIGKILL then.
            restarts: pauses between two starts; None for a second at first, a minute at most.
        """
        self._command, self._url = list(command), url
        self._interval_s, self._failures = interval_s, failures
        self._start_s, self._stop_s = start_s, stop_s
        self._restarts = restarts or Restarts(first_s=1.0, most_s=60.0)
        self._stopping = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None

    def stop(self, number: int, _: Any = None) -> None:
        """Hand a signal on and start nothing more; a signal handler."""
        self._stopping.set()
        if self._child is not None:
            self._child.send_signal(number)

    def run(self) -> int:
        """Until `stop`; returns the exit status of the last run."""
        while True:
            self._child = subprocess.Popen(self._command)
            if self._stopping.is_set():  # told while it was being started
                self._child.terminate()
            status = self._watch(self._child)
            if self._stopping.is_set():
                return status
            pause = self._restarts.next_pause() or 0.0
            print(f"keep: the command ended with {status}; again in {pause:g} s", file=sys.stderr, flush=True)
            if self._stopping.wait(pause):
                return status

    def _watch(self, child: subprocess.Popen[bytes]) -> int:
        failed, counts_from = 0, time.monotonic() + self._start_s
        while True:
            try:
                return child.wait(self._interval_s)
            except subprocess.TimeoutExpired:
                pass
            if self._stopping.is_set():
                continue
            if self._answers():
                failed, counts_from = 0, 0.0
            elif time.monotonic() >= counts_from:
                failed += 1
            if failed >= self._failures:
                print(f"keep: no answer from {self._url}: ending the command", file=sys.stderr, flush=True)
                child.terminate()
                try:
                    return child.wait(self._stop_s)
                except subprocess.TimeoutExpired:
                    child.kill()
                    return child.wait()

    def _answers(self) -> bool:
        if self._url is None:
            return True
        try:
            with urllib.request.urlopen(self._url, timeout=self._interval_s) as answer:
                return answer.status == 200
        except (OSError, ValueError):  # OSError: no connection, a timeout, or an error status
            return False


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m launcher.keep", description=__doc__)
    add = parser.add_argument
    add("--url", help="answers with 200 while the command works")
    add("--interval", type=float, default=10.0, help="seconds between two looks at it [10]")
    add("--failures", type=int, default=6, help="looks without an answer before a new start [6]")
    add("command", nargs="+", metavar="COMMAND", help="what to run, after --")
    options = parser.parse_args()
    keeper = Keeper(options.command, url=options.url, interval_s=options.interval, failures=options.failures)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, keeper.stop)
    status = keeper.run()
    return status if status >= 0 else 128 - status  # ended by a signal


if __name__ == "__main__":
    sys.exit(main())
