"""The bench's neighbour: computes on one core, and is gone when the bench is."""

import os
import signal
import subprocess
import sys
import time

import psutil

from benchmarks.neighbour import neighbour
from tests.waiting import wait_until

CORE = min(os.sched_getaffinity(0))


def test_it_computes_on_its_core_and_ends_with_the_block():
    with neighbour(CORE, at_most_s=30.0) as pid:
        process = psutil.Process(pid)
        wait_until(lambda: process.cpu_times().user > 0.1, timeout_s=20, what="work")
        assert process.cpu_affinity() == [CORE]
    assert not psutil.pid_exists(pid)


def test_it_ends_by_itself():
    with neighbour(CORE, at_most_s=0.2) as pid:
        process = psutil.Process(pid)
        wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE, timeout_s=20, what="the end")


def test_it_ends_with_a_parent_that_is_killed():
    code = (
        "from benchmarks.neighbour import neighbour\n"
        f"with neighbour({CORE}, at_most_s=60.0) as pid:\n"
        "    print(pid, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.1)
        parent.send_signal(signal.SIGKILL)
    wait_until(
        lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE,
        timeout_s=20,
        what="the orphan's end",
    )
