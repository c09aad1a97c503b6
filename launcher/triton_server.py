"""A real Triton server as a context manager: starts it, waits until it is ready, stops what it started."""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TextIO

from launcher.drain import drain
from launcher.ports import choose_ports, reachable
from launcher.processes import end_process, start_process
from launcher.server_files import ServerError, ServerFiles, prepare_server
from launcher.server_log import ServerLog, rotated
from launcher.standstill import StandstillWatch
from launcher.stub_watch import StubWatch
from launcher.stubs import remove_leftovers
from launcher.triton_admin import Admin, new_key
from launcher.triton_command import HOME, TritonOptions

logger = logging.getLogger(__name__)

DEFAULT_CACHE = HOME / "build" / "triton"
_LOG_LINES_IN_ERROR = 25
_KILL_AFTER_S = 10.0
_NUMBERS = itertools.count()


class TritonServer:
    """One `tritonserver` process with its Python stubs, as a context manager.

    Every server gets its own process session and its own prefix of shared-memory regions, so that stopping it
    never touches another server on the same machine.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        models: Sequence[str] | None = None,
        http_port: int | None = None,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        host: str = "127.0.0.1",
        files: ServerFiles | None = None,
        env: Mapping[str, str] | None = None,
        log_file: str | Path | None = None,
        startup_timeout_s: float = 120.0,
        exit_timeout_s: int = 5,
        lame_duck_s: float = 0.0,
        grace_s: float = 0.0,
        shm_default_bytes: int = 16 << 20,
        extra_args: Sequence[str] = (),
    ) -> None:
        """Describes a server; `start` (or `with`) starts it.

        Args:
            repository: The model repository.
            models: Names to load; None loads every model of the repository. Both use explicit model control,
                so that models can be loaded, reloaded and unloaded while the server runs.
            http_port: A port that must be free, or None for any free one.
            grpc_port: As above.
            metrics_port: As above.
            host: The address to listen on.
            files: From `prepare_server`; None prepares the wheel's server under `build/triton`.
            env: Added to the environment of the server and of every `model.py`.
            log_file: Where the server's log goes (`launcher.server_log`), "-" for standard output; None
            makes a
                file that stays only if the server failed or died.
            startup_timeout_s: Seconds from start to ready before `start` gives up.
            exit_timeout_s: Seconds Triton gives, after SIGTERM, requests that are still in flight. Unloading
                comes on top, so SIGKILL follows 10 s later.
            lame_duck_s: Seconds at the start of a stop during which health says no and requests are taken.
            grace_s: Seconds after that for the requests in hand, before Triton is told; 0 for no such care.
            shm_default_bytes: First size of a Python model instance's shared memory, which grows as needed.
            extra_args: More options of `tritonserver`.
        """
        self.options = TritonOptions(
            Path(repository).resolve(),
            models=None if models is None else tuple(models),
            host=host,
            exit_timeout_s=exit_timeout_s,
            shm_default_bytes=shm_default_bytes,
            extra=tuple(extra_args),
            env=dict(env or {}),
        )
        self.shm_prefix = f"gr4ad_{os.getpid()}_{next(_NUMBERS)}_{uuid.uuid4().hex[:8]}_"
        self.key = new_key()
        self.ports: dict[str, int] = {}
        self._wanted_ports = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        self._files = files
        self._keeps_log = log_file is not None
        self.log_file: Path | None = None
        if log_file != "-":
            self.log_file = Path(log_file or f"{tempfile.gettempdir()}/{self.shm_prefix}triton.log").resolve()
        self._startup_timeout_s = startup_timeout_s
        self._lame_duck_s, self._grace_s = lame_duck_s, grace_s
        self._log: ServerLog | None = None
        self._running = False
        self._process: subprocess.Popen[bytes] | None = None
        self._admin: Admin | None = None
        self._watches: list[StubWatch | StandstillWatch] = []

    @property
    def http_url(self) -> str:
        """`host:port` as tritonclient wants it (no scheme)."""
        return self._url("http")

    @property
    def grpc_url(self) -> str:
        """`host:port` as tritonclient wants it (no scheme)."""
        return self._url("grpc")

    @property
    def metrics_url(self) -> str:
        """Full URL of the Prometheus page."""
        return f"http://{self._url('metrics')}/metrics"

    @property
    def pid(self) -> int:
        """Process id of `tritonserver`, which is also the id of its session and process group."""
        if self._process is None:
            raise ServerError("the Triton server is not started")
        return self._process.pid

    @property
    def admin(self) -> Admin:
        """What an operator may ask it."""
        if self._admin is None:
            raise ServerError("the Triton server is not started")
        return self._admin

    def start(self) -> TritonServer:
        """Starts the server and returns when it is ready.

        Raises:
            ServerError: No server files, no repository, a taken port, an exit before ready (a model that does
                not load, for instance) or a timeout; with the last lines of the log.
        """
        if self._running:
            raise ServerError("the Triton server is already started")
        if not self.options.repository.is_dir():
            raise ServerError(f"no model repository at {self.options.repository} (filled by `make export`)")
        self._files = self._files or prepare_server(DEFAULT_CACHE)
        self.ports = choose_ports(
            self._wanted_ports, hosts=dict.fromkeys(self._wanted_ports, self.options.host)
        )
        self._log = ServerLog(self.log_file)
        self._running = True
        atexit.register(self.stop)
        try:
            self._start_triton(self._files)
        except BaseException:  # also Ctrl-C while it starts
            self._keeps_log = True
            self.stop()
            raise
        return self

    def restart(self) -> None:
        """Starts Triton again, after it died or hangs, on the same ports; nothing of the old one stays.

        Raises:
            ServerError: as `start`.
        """
        if self._files is None or not self._running:
            raise ServerError("the Triton server is not started")
        self._stop_triton(grace_s=0.0)
        self._start_triton(self._files)

    def stop(self) -> None:
        """Stops the server: drains it, SIGTERM, then SIGKILL to its own group; removes its leftovers.

        Safe to repeat.
        """
        atexit.unregister(self.stop)
        if not self._running:
            return
        self._running = False
        died_by_itself = self._process is not None and self._process.poll() is not None
        self._stop_triton(grace_s=self._grace_s)
        if self._log is not None:
            self._log.close()
        if self.log_file is not None and not (self._keeps_log or died_by_itself):
            for path in rotated(self.log_file):
                path.unlink(missing_ok=True)

    def poll(self) -> int | None:
        """Exit status of the server, None while it runs."""
        return None if self._process is None else self._process.poll()

    def log_tail(self, lines: int = _LOG_LINES_IN_ERROR) -> str:
        """The last lines of the server's log."""
        return "" if self._log is None else "\n".join(self._log.lines()[-lines:])

    @property
    def log_stream(self) -> TextIO:
        """A file that adds lines to the server's log."""
        if self._log is None:
            raise ServerError("the Triton server is not started")
        return self._log.stream

    def __enter__(self) -> TritonServer:
        """Starts the server."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the server."""
        self.stop()

    def _url(self, service: str) -> str:
        if service not in self.ports:
            raise ServerError("the Triton server is not started")
        return f"{reachable(self.options.host)}:{self.ports[service]}"

    def _command(self, files: ServerFiles) -> list[str]:
        return self.options.command(files, ports=self.ports, shm_prefix=self.shm_prefix, key=self.key)

    def _start_triton(self, files: ServerFiles) -> None:
        assert self._log is not None
        env = self.options.environment(files, metrics_url=self.metrics_url, shm_prefix=self.shm_prefix)
        self._process = start_process(self._command(files), output=self._log.stream.fileno(), env=env)
        self._admin = Admin(self.grpc_url, key=self.key)
        self._wait_until_ready(self._process)
        self._watches = [StubWatch(self._admin, shm_prefix=self.shm_prefix), StandstillWatch(self.shm_prefix)]
        for watch in self._watches:
            watch.start()

    def _stop_triton(self, *, grace_s: float) -> None:
        watches, self._watches = self._watches, []
        for watch in watches:
            watch.stop()
        process, self._process = self._process, None
        admin, self._admin = self._admin, None
        try:
            if grace_s > 0 and admin is not None and process is not None and process.poll() is None:
                left = drain(
                    admin, shm_prefix=self.shm_prefix, lame_duck_s=self._lame_duck_s, grace_s=grace_s
                )
                if left:
                    logger.warning("%d requests in hand have no answer after %.0f s; ending", left, grace_s)
        finally:  # also after a second Ctrl-C
            if process is not None:
                end_process(process, kill_after_s=self.options.exit_timeout_s + _KILL_AFTER_S)
            if admin is not None:
                admin.close()
            remove_leftovers(self.shm_prefix)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._startup_timeout_s
        while True:
            exit_code = process.poll()
            if exit_code is not None:
                raise ServerError(f"Triton ended with status {exit_code} before it was ready{self._ending()}")
            if self.admin.is_ready():
                return
            if time.monotonic() > deadline:
                raise ServerError(f"Triton was not ready after {self._startup_timeout_s} s{self._ending()}")
            time.sleep(0.05)

    def _ending(self) -> str:
        time.sleep(0.2)  # the thread of the log may be a moment behind
        errors = "" if self._log is None else "\n".join(self._log.errors())
        return f"\n{errors}\nlast lines of {self.log_file}:\n{self.log_tail()}"
