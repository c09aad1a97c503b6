"""A real Triton server as a context manager: starts it, waits until it is ready, stops what it started."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from launcher.server_files import ServerError, ServerFiles, prepare_server
from launcher.server_process import choose_ports, error_lines, is_ready, remove_leftovers
from launcher.stub_watch import StubWatch

HOME = Path(__file__).resolve().parents[1]
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
            log_file: Where the server writes; None makes a file that stays only if the server failed or died.
            startup_timeout_s: Seconds from start to ready before `start` gives up.
            exit_timeout_s: Seconds Triton gives, after SIGTERM, requests in flight and clients that keep an
                idle HTTP connection open. Unloading comes on top, so SIGKILL follows 10 s later.
            shm_default_bytes: First size of a Python model instance's shared memory, which grows as needed.
            extra_args: More options of `tritonserver`.
        """
        self.repository = Path(repository).resolve()
        self.models = None if models is None else list(models)
        self.host = host
        self.shm_prefix = f"gr4ad_{os.getpid()}_{next(_NUMBERS)}_{uuid.uuid4().hex[:8]}_"
        self.ports: dict[str, int] = {}
        self._wanted_ports = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        self._files = files
        self._env = dict(env or {})
        self._keeps_log = log_file is not None
        self.log_file = Path(log_file or f"{tempfile.gettempdir()}/{self.shm_prefix}triton.log").resolve()
        self._startup_timeout_s = startup_timeout_s
        self._exit_timeout_s = exit_timeout_s
        self._shm_default_bytes = shm_default_bytes
        self._extra_args = list(extra_args)
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: StubWatch | None = None

    @property
    def http_url(self) -> str:
        """`host:port` as tritonclient wants it (no scheme)."""
        return f"{self.host}:{self._port('http')}"

    @property
    def grpc_url(self) -> str:
        """`host:port` as tritonclient wants it (no scheme)."""
        return f"{self.host}:{self._port('grpc')}"

    @property
    def metrics_url(self) -> str:
        """Full URL of the Prometheus page."""
        return f"http://{self.host}:{self._port('metrics')}/metrics"

    @property
    def pid(self) -> int:
        """Process id of `tritonserver`, which is also the id of its session and process group."""
        if self._process is None:
            raise ServerError("the Triton server is not started")
        return self._process.pid

    def start(self) -> TritonServer:
        """Starts the server and returns when it is ready.

        Raises:
            ServerError: No server files, no repository, a taken port, an exit before ready (a model that does
                not load, for instance) or a timeout; with the last lines of the log.
        """
        if self._process is not None:
            raise ServerError(f"the Triton server is already started, pid {self.pid}")
        if not self.repository.is_dir():
            raise ServerError(f"no model repository at {self.repository} (filled by `make export`)")
        files = self._files or prepare_server(DEFAULT_CACHE)
        self.ports = choose_ports(self._wanted_ports, host=self.host)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(files),
                env=self._environment(files),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        atexit.register(self.stop)
        try:
            self._wait_until_ready()
            self._watch = StubWatch(self.shm_prefix, host=self.host, http_port=self.ports["http"])
            self._watch.start()
        except BaseException:  # also Ctrl-C while it starts
            self._keeps_log = True
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stops the server: SIGTERM, then SIGKILL to its own group; removes its leftovers. Safe to repeat."""
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is None:
            return
        if self._watch is not None:
            self._watch.stop()
        died_by_itself = process.poll() is not None
        if not died_by_itself:
            process.terminate()
            try:
                process.wait(self._exit_timeout_s + _KILL_AFTER_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        remove_leftovers(self.shm_prefix)
        if not (self._keeps_log or died_by_itself):
            self.log_file.unlink(missing_ok=True)

    def detach(self) -> int:
        """Lets the server outlive this Python process; returns its pid, to be stopped by `stop_pid`."""
        atexit.unregister(self.stop)
        pid, self._process = self.pid, None
        if self._watch is not None:
            self._watch.stop()  # a detached server is on its own: a probe should send it real requests
        self._keeps_log = True
        return pid

    def poll(self) -> int | None:
        """Exit status of the server, None while it runs."""
        return None if self._process is None else self._process.poll()

    def log_tail(self, lines: int = _LOG_LINES_IN_ERROR) -> str:
        """The last lines of the server's log."""
        if not self.log_file.is_file():
            return ""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> TritonServer:
        """Starts the server."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the server."""
        self.stop()

    def _port(self, service: str) -> int:
        if service not in self.ports:
            raise ServerError("the Triton server is not started")
        return self.ports[service]

    def _command(self, files: ServerFiles) -> list[str]:
        command = [str(files.binary), f"--model-repository={self.repository}"]
        command += ["--model-control-mode=explicit", f"--exit-timeout-secs={self._exit_timeout_s}"]
        # With strict readiness one new version that fails to load makes a server that serves well "not
        # ready", for good. The start does not need it: HTTP opens once all models are loaded.
        command.append("--strict-readiness=false")
        # Our configs are complete. Completing them would start one more stub for each model first.
        command.append("--disable-auto-complete-config")
        command += [f"--load-model={name}" for name in (["*"] if self.models is None else self.models)]
        for service, port in self.ports.items():
            command += [f"--{service}-address={self.host}", f"--{service}-port={port}"]
        if files.backend_directory is not None:
            command.append(f"--backend-directory={files.backend_directory}")
        if files.cache_directory is not None:
            command.append(f"--cache-directory={files.cache_directory}")
        if not files.has_gpu_metrics:
            command.append("--allow-gpu-metrics=false")
        command.append(f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}")
        command.append(f"--backend-config=python,shm-default-byte-size={self._shm_default_bytes}")
        return command + self._extra_args

    def _environment(self, files: ServerFiles) -> dict[str, str]:
        env = dict(os.environ)  # OMP_NUM_THREADS and the like pass through
        # The stub runs Python isolated, but finds its prefix by the first `python3` in PATH: let it be ours.
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
        libraries = [str(path) for path in files.library_path]
        if env.get("LD_LIBRARY_PATH"):
            libraries.append(env["LD_LIBRARY_PATH"])
        if libraries:
            env["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        env["GR4AD_HOME"] = str(HOME)
        if self.ports:
            env["GR4AD_METRICS_URL"] = self.metrics_url  # load control reads the queue there
        return env | self._env

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._startup_timeout_s
        while True:
            exit_code = self._process.poll()
            if exit_code is not None:
                raise ServerError(f"Triton ended with status {exit_code} before it was ready{self._ending()}")
            if is_ready(self.host, self.ports["http"]):
                return
            if time.monotonic() > deadline:
                raise ServerError(f"Triton was not ready after {self._startup_timeout_s} s{self._ending()}")
            time.sleep(0.05)

    def _ending(self) -> str:
        errors = error_lines(self.log_file)
        return f"\n{errors}\nlast lines of {self.log_file}:\n{self.log_tail()}"
