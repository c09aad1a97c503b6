"""The trainer's process as the bench sees it, and requests at a steady rate beside it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from benchmarks.faults.variants import Answer


@dataclass(frozen=True)
class Published:
    """One publish; seconds of `time.monotonic`, `cpu_s` of the trainer's process."""

    version: int
    ready: float
    published: float
    cpu_s: float


class Trainer:
    """`benchmarks.loop.trainer`; a context manager."""

    def __init__(self, run: Path, *, preset: tuple[str, ...]) -> None:
        """Describe; `preset` are its words of the command line."""
        self._run, self._preset = run, preset

    def __enter__(self) -> Trainer:
        """Start it, and wait until it has a base to start from."""
        command = [sys.executable, "-m", "benchmarks.loop.trainer", f"--run={self._run}", *self._preset]
        with (self._run / "trainer.log").open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # see `yield_to_servers`
            )
        self._line()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def publish(self) -> Published:
        """One version more.

        Raises:
            RuntimeError: the trainer ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Published(**json.loads(self._line()))

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the trainer ended: {(self._run / 'trainer.log').read_text()[-2000:]}")
        return line


@dataclass(frozen=True)
class Asked:
    """One request: its number, when it was due and when it ended, its answer, or why there is none."""

    number: int
    due: float
    ended: float
    answer: Answer | None
    failure: str = ""

    @property
    def version(self) -> int:
        """Model version that answered; 0 where none did."""
        return 0 if self.answer is None else int(self.answer["model_version"].ravel()[0])


@contextmanager
def steady(ask: Callable[[int], Answer], *, qps: float) -> Iterator[list[Asked]]:
    """Requests at a steady rate while the block runs, whether or not the last one was answered."""
    seen: list[Asked] = []
    over = threading.Event()

    def one(number: int, due: float) -> None:
        try:
            answer = ask(number)
        except Exception as error:  # noqa: BLE001  (whatever it is, the user has no answer)
            seen.append(Asked(number, due, time.monotonic(), answer=None, failure=str(error)[:300]))
        else:
            seen.append(Asked(number, due, time.monotonic(), answer))

    def send(pool: ThreadPoolExecutor) -> None:
        due = time.monotonic()
        for number in itertools.count():
            if over.wait(max(0.0, due - time.monotonic())):
                return
            pool.submit(one, number, due)
            due += 1 / qps

    with ThreadPoolExecutor(32, thread_name_prefix="ask") as pool:
        sender = threading.Thread(target=send, args=(pool,))
        sender.start()
        try:
            yield seen
        finally:
            over.set()
            sender.join()
