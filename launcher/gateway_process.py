"""Starts and ends the gateway, the process that speaks HTTP for a Triton server."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.paths import HOME
from launcher.ports import reachable
from launcher.processes import end_process, start_process
from launcher.server_files import ServerError

_KILL_AFTER_S = 25.0  # above its --grace-s


class GatewayProcess:
    """`python -m gateway` for one server. It outlives Triton: its health says no until there is one again."""

    def __init__(
        self, *, host: str, ports: Mapping[str, int], models: Sequence[str], draining: Path, output: int
    ) -> None:
        """Starts it.

        Args:
            host: The address to listen on.
            ports: http and metrics are its own, grpc and triton_metrics are Triton's.
            models: Names that may be asked for.
            draining: File that exists while the server is about to stop.
            output: File descriptor for what it prints.
        """
        self._host, self._ports, self._output = host, ports, output
        command = [sys.executable, "-m", "gateway", f"--host={host}", f"--port={ports['http']}"]
        command += [f"--metrics-port={ports['metrics']}", f"--triton={reachable(host)}:{ports['grpc']}"]
        command.append(f"--triton-metrics=http://127.0.0.1:{ports['triton_metrics']}/metrics")
        command.append(f"--draining={draining}")
        self._command = [*command, *(f"--model={model}" for model in models)]
        self._process = self._start()

    def poll(self) -> int | None:
        """Exit status, None while it runs."""
        return self._process.poll()

    def restart(self) -> None:
        """Starts it again."""
        self.stop()
        self._process = self._start()

    def stop(self) -> None:
        """Ends it once it has answered what it has in hand."""
        end_process(self._process, kill_after_s=_KILL_AFTER_S)

    def wait_until_ready(self, *, deadline: float) -> None:
        """Until it says that a request would be answered now.

        Args:
            deadline: of the monotonic clock.

        Raises:
            ServerError: it ended, or does not say so; with what it says instead.
        """
        while True:
            status, reason = self._ask()
            if status == 200:
                return
            if self.poll() is not None:
                raise ServerError(f"the gateway ended with status {self.poll()}")
            if time.monotonic() > deadline:
                raise ServerError(f"the server is up, but not ready: {reason}")
            time.sleep(0.05)

    def _start(self) -> subprocess.Popen[bytes]:
        return start_process(self._command, output=self._output, cwd=HOME)

    def _ask(self) -> tuple[int | None, str]:
        connection = http.client.HTTPConnection(reachable(self._host), self._ports["http"], timeout=5.0)
        try:
            connection.request("GET", "/v2/health/ready")
            response = connection.getresponse()
            content = json.loads(response.read() or b"{}")
            return response.status, str(content.get("reason", content))
        except (OSError, http.client.HTTPException, ValueError) as error:
            return None, str(error)
        finally:
            connection.close()
