"""A server as a context manager, Triton and its gateway: starts both, waits until they answer, stops them."""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from launcher.claims import Claim, remove_what_the_dead_left
from launcher.drain import drain_file
from launcher.gateway_process import GatewayProcess
from launcher.paths import DEFAULT_CACHE
from launcher.ports import choose_ports, reachable
from launcher.server_files import ServerError, ServerFiles, prepare_server
from launcher.server_log import ServerLog, rotated
from launcher.triton_admin import Admin, new_key
from launcher.triton_command import TritonOptions
from launcher.triton_process import TritonProcess

logger = logging.getLogger(__name__)

_LOG_LINES_IN_ERROR = 25
_NUMBERS = itertools.count()


class TritonServer:
    """One `tritonserver` process with its Python stubs and its gateway, as a context manager.

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
        self._triton: TritonProcess | None = None
        self._gateway: GatewayProcess | None = None
        self._claim: Claim | None = None

    @property
    def http_url(self) -> str:
        """`host:port` of the gateway, as tritonclient wants it (no scheme)."""
        return self._url("http")

    @property
    def grpc_url(self) -> str:
        """`host:port` of Triton, as tritonclient wants it (no scheme)."""
        return self._url("grpc")

    @property
    def metrics_url(self) -> str:
        """Full URL of the Prometheus page: the gateway's metrics and Triton's."""
        return f"http://{self._url('metrics')}/metrics"

    @property
    def pid(self) -> int:
        """Process id of `tritonserver`, which is also the id of its session and process group."""
        return self._running().pid

    @property
    def admin(self) -> Admin:
        """What an operator may ask it."""
        return self._running().admin

    @property
    def gateway(self) -> GatewayProcess:
        """Its HTTP."""
        if self._gateway is None:
            raise ServerError("the Triton server is not started")
        return self._gateway

    @property
    def log(self) -> ServerLog:
        """Its log, that of its last run."""
        if self._log is None:
            raise ServerError("the Triton server is not started")
        return self._log

    def start(self) -> TritonServer:
        """Starts the server and returns when it answers requests.

        Raises:
            ServerError: No server files, no repository, a taken port, an exit before ready (a model that does
                not load, for instance) or a timeout; with the last lines of the log.
        """
        if self._triton is not None:
            raise ServerError(f"the Triton server is already started, pid {self.pid}")
        if not self.options.repository.is_dir():
            raise ServerError(f"no model repository at {self.options.repository} (filled by `make export`)")
        self._files = self._files or prepare_server(DEFAULT_CACHE)
        hosts = dict.fromkeys(self._wanted_ports, self.options.host) | {"triton_metrics": "127.0.0.1"}
        self.ports = choose_ports({**self._wanted_ports, "triton_metrics": None}, hosts=hosts)
        remove_what_the_dead_left()
        self._claim = Claim(self.shm_prefix)
        self._log = ServerLog(self.log_file)
        atexit.register(self.stop)
        try:
            self._begin_first()
        except BaseException:  # also Ctrl-C while it starts
            self._keeps_log = True
            self.stop()
            raise
        return self

    def restart(self) -> None:
        """Starts Triton again, after it died or hangs, on the same ports; nothing of the old one stays.

        The gateway goes on: whoever asks is told that there is no server.

        Raises:
            ServerError: as `start`.
        """
        self._running().stop(at_once=True)
        self._begin()

    def stop(self) -> None:
        """Stops the server: drains it, SIGTERM, then SIGKILL to its own group; removes its leftovers.

        Safe to repeat.
        """
        atexit.unregister(self.stop)
        triton, self._triton = self._triton, None
        gateway, self._gateway = self._gateway, None
        claim, self._claim = self._claim, None
        with ExitStack() as last:
            if claim is not None:
                last.callback(claim.release)
            if self._log is not None:
                last.callback(self._end_log, failed=triton is None or triton.poll() is not None)
            if triton is not None:
                last.callback(triton.stop)
            if gateway is not None:
                last.callback(gateway.stop)
            if triton is not None and self._grace_s > 0:  # a second Ctrl-C ends the waiting, not the order
                triton.drain(lame_duck_s=self._lame_duck_s, grace_s=self._grace_s)

    def poll(self) -> int | None:
        """Exit status of Triton, None while it runs."""
        return None if self._triton is None else self._triton.poll()

    def log_tail(self, lines: int = _LOG_LINES_IN_ERROR) -> str:
        """The last lines of the server's log."""
        return "" if self._log is None else "\n".join(self._log.lines()[-lines:])

    def __enter__(self) -> TritonServer:
        """Starts the server."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the server."""
        self.stop()

    def _running(self) -> TritonProcess:
        if self._triton is None:
            raise ServerError("the Triton server is not started")
        return self._triton

    def _url(self, service: str) -> str:
        if service not in self.ports:
            raise ServerError("the Triton server is not started")
        return f"{reachable(self.options.host)}:{self.ports[service]}"

    def _command(self, files: ServerFiles) -> list[str]:
        return self.options.command(files, ports=self.ports, shm_prefix=self.shm_prefix, key=self.key)

    def _begin_first(self) -> None:
        """As `_begin`, once more where a signal ended Triton before it was ready.

        It was seen to abort while processes of models started (`boost::interprocess::lock_exception`). What
        a model is refused for ends it with a status instead.
        """
        try:
            self._begin()
        except ServerError as error:
            status = self.poll()
            if status is None or status >= 0:
                raise
            logger.warning("%s; starting it once more", str(error).partition("\n")[0])
            self.restart()

    def _begin(self) -> None:
        """Starts Triton, and the gateway if there is none yet."""
        assert self._files is not None
        deadline = time.monotonic() + self._startup_timeout_s
        triton = self._triton = TritonProcess(
            self.options,
            self._files,
            command=self._command(self._files),
            ports=self.ports,
            shm_prefix=self.shm_prefix,
            key=self.key,
            log=self.log,
        )
        try:
            triton.wait_until_ready(deadline=deadline)
            if self._gateway is None:
                self._gateway = GatewayProcess(
                    host=self.options.host,
                    ports=self.ports,
                    models=triton.admin.public(),
                    draining=drain_file(self.shm_prefix),
                    output=self.log.stream.fileno(),
                )
            triton.watch()
            self._gateway.wait_until_ready(deadline=deadline)
        except ServerError as error:
            time.sleep(0.2)  # the thread of the log may be a moment behind
            errors = "\n".join(self.log.errors())
            end = f"last lines of {self.log_file or 'the log'}:\n{self.log_tail()}"
            raise ServerError(f"{error}\n{errors}\n{end}") from error

    def _end_log(self, *, failed: bool) -> None:
        self.log.close()
        if self.log_file is not None and not (self._keeps_log or failed):
            for path in rotated(self.log_file):
                path.unlink(missing_ok=True)
