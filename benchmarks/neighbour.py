"""A neighbour that wants a core for itself: the same machine at half the speed.

python -m benchmarks.neighbour CORE SECONDS PARENT
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def neighbour(core: int, *, at_most_s: float) -> Iterator[int]:
    """The pid of a process that computes on a core until the block ends.

    It ends by itself after `at_most_s` and when its parent is gone.
    """
    command = [sys.executable, "-m", "benchmarks.neighbour", str(core), str(at_most_s), str(os.getpid())]
    with subprocess.Popen(command) as process:
        try:
            yield process.pid
        finally:
            process.terminate()


def main() -> None:
    """Compute."""
    core, seconds, parent = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    os.sched_setaffinity(0, {core})
    end = time.monotonic() + seconds
    while time.monotonic() < end and os.getppid() == parent:
        sum(range(20_000))


if __name__ == "__main__":
    main()
