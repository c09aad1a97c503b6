"""One life of one `tritonserver`: started, watched, drained, ended, and nothing of it left."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack

from launcher.drain import drain
from launcher.ports import reachable
from launcher.processes import end_process, start_process
from launcher.server_files import ServerError, ServerFiles
from launcher.server_log import ServerLog
from launcher.signals import signals_held
from launcher.standstill import StandstillWatch
from launcher.stub_watch import StubWatch
from launcher.stubs import remove_leftovers
from launcher.triton_admin import Admin
from launcher.triton_command import TritonOptions
from launcher.watch import Watch

logger = logging.getLogger(__name__)

_KILL_AFTER_S = 10.0


class TritonProcess:
    """A running server with the watches over its Python models."""

    def __init__(
        self,
        options: TritonOptions,
        files: ServerFiles,
        *,
        command: list[str],
        ports: Mapping[str, int],
        shm_prefix: str,
        key: str,
        log: ServerLog,
    ) -> None:
        """Starts it; `wait_until_ready` and then `watch` follow.

        Args:
            options: How it is run.
            files: Which server.
            command: Its command line.
            ports: grpc and triton_metrics are its own.
            shm_prefix: Of its regions of shared memory: no other server's.
            key: Of `launcher.triton_admin`.
            log: Where it writes.
        """
        self._options, self._prefix, self._log = options, shm_prefix, log
        metrics_url = f"http://127.0.0.1:{ports['triton_metrics']}/metrics"
        env = options.environment(files, metrics_url=metrics_url, shm_prefix=shm_prefix)
        self._process = start_process(command, output=log.stream.fileno(), env=env)
        self.pid = self._process.pid
        with signals_held():
            self.admin = Admin(f"{reachable(options.host)}:{ports['grpc']}", key=key)
        self._watches: list[Watch] = []

    def poll(self) -> int | None:
        """Exit status, None while it runs."""
        return self._process.poll()

    def wait_until_ready(self, *, deadline: float) -> None:
        """Until all models are loaded.

        Args:
            deadline: of the monotonic clock.

        Raises:
            ServerError: it ended before, or takes longer.
        """
        while not self.admin.is_ready():
            exit_code = self.poll()
            if exit_code is not None:
                raise ServerError(f"Triton ended with status {exit_code} before it was ready")
            if time.monotonic() > deadline:
                raise ServerError("Triton was not ready in time")
            time.sleep(0.05)

    def watch(self) -> None:
        """From now on what dies of it comes back."""
        self._watches = [StubWatch(self.admin, shm_prefix=self._prefix), StandstillWatch(self._prefix)]
        for watch in self._watches:
            watch.start()

    def drain(self, *, lame_duck_s: float, grace_s: float) -> None:
        """Takes no new requests, and waits for those in hand; see `launcher.drain`."""
        if self.poll() is None:
            left = drain(self.admin, shm_prefix=self._prefix, lame_duck_s=lame_duck_s, grace_s=grace_s)
            if left:
                logger.warning("%d requests in hand have no answer after %.0f s; ending", left, grace_s)

    def stop(self, *, at_once: bool = False) -> None:
        """Ends it: SIGTERM, then SIGKILL to its own group; removes its leftovers.

        `at_once` for one that hangs: it would not hear SIGTERM.
        """
        with ExitStack() as last:
            last.callback(remove_leftovers, self._prefix)
            last.callback(self.admin.close)
            for watch in self._watches:
                watch.end()
            patience_s = 0.0 if at_once else self._options.exit_timeout_s + _KILL_AFTER_S
            end_process(self._process, kill_after_s=patience_s)
            for watch in self._watches:
                watch.join()
