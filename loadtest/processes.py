"""The worker processes of a test, and what is said to them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from loadtest.mix import Mix
from loadtest.options import Load

HOME = Path(__file__).resolve().parents[1]
_READY_S = 60.0
_LATE_S = 30.0  # that a worker may take beyond the load, its drain and a deadline
_LEAD_S = 0.3  # from "go" to the start, so that all workers start together


class LoadTestError(RuntimeError):
    """The test could not be run; the text says why."""


class Workers:
    """Processes that make the load, as a context manager; leaving it ends them."""

    def __init__(self, load: Load, mix: Mix, folder: Path) -> None:
        """Describe; `with` starts them and waits until each has had an answer.

        Args:
            load: what to offer.
            mix: requests.
            folder: for their files.
        """
        self._load, self._mix, self._folder = load, mix, folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Workers:
        """Start them.

        Raises:
            LoadTestError: one did not get an answer to its first request, or ended.
        """
        (self._folder / "load.json").write_text(json.dumps(self._load.to_json()))
        self._mix.save(self._folder / "mix.npz")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": self._python_path()}
        try:
            for number in range(self._load.workers):
                with self._errors(number).open("wb") as errors:
                    command = [sys.executable, "-m", "loadtest.worker", str(self._folder), str(number)]
                    pipe = subprocess.PIPE
                    self._processes.append(
                        subprocess.Popen(
                            command,
                            stdin=pipe,
                            stdout=pipe,
                            stderr=errors,
                            env=environment,
                            start_new_session=True,  # Ctrl-C is for us; we say stop
                        )  # fmt: skip
                    )
            deadline = time.monotonic() + _READY_S
            for number in range(self._load.workers):
                self._wait_ready(number, deadline)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what is left of them."""
        self._end()

    def go(self) -> float:
        """Start the test; returns the `time.monotonic()` of its start, which is a moment ahead."""
        start = time.monotonic() + _LEAD_S
        self._say(f"go {start!r}\n")
        return start

    def stop(self) -> None:
        """Let no more requests be sent."""
        self._say("stop\n")

    def wait(self) -> None:
        """Wait until all are done.

        Raises:
            LoadTestError: one failed, or does not end.
        """
        load = self._load
        within = load.shape.duration_s + load.drain_s + load.deadline_s + _LATE_S
        deadline = time.monotonic() + within
        for number, process in enumerate(self._processes):
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired as error:
                raise LoadTestError(f"worker {number}: expected its end within {within:.0f} s") from error
        failed = [number for number, p in enumerate(self._processes) if p.returncode]
        if failed:
            raise LoadTestError(f"worker {failed[0]} failed: {self._error_text(failed[0])}")

    def files(self) -> list[Path]:
        """CSV files with the requests of each."""
        found = (self._folder / f"worker-{number}.csv" for number in range(self._load.workers))
        return [path for path in found if path.is_file()]

    def cpu_s(self) -> float:
        """CPU seconds that all used during the test; NaN when one did not come to its end."""
        paths = [self._folder / f"worker-{number}.json" for number in range(self._load.workers)]
        if not all(path.is_file() for path in paths):
            return float("nan")
        return sum(json.loads(path.read_text())["cpu_s"] for path in paths)

    def _wait_ready(self, number: int, deadline: float) -> None:
        process = self._processes[number]
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise LoadTestError(f"worker {number}: expected it ready within {_READY_S:g} s")
        if process.stdout.readline() != b"ready\n":
            process.wait()
            raise LoadTestError(f"the first request to {self._load.url} failed: {self._error_text(number)}")

    def _say(self, text: str) -> None:
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(text.encode())
                process.stdin.flush()

    def _end(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(0 if process.poll() is not None else 1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def _errors(self, number: int) -> Path:
        return self._folder / f"worker-{number}.log"

    def _error_text(self, number: int) -> str:
        text = self._errors(number).read_text(errors="replace").strip().splitlines()
        return text[-1] if text else "it said nothing"

    @staticmethod
    def _python_path() -> str:
        return os.pathsep.join(filter(None, [str(HOME), os.environ.get("PYTHONPATH")]))
