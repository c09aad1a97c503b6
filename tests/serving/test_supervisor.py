"""`python -m launcher` with a real server: what dies is started again, and a stop loses nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from examples.client import send
from launcher.paths import HOME
from launcher.run_file import RunFile
from launcher.stubs import SHM, stubs
from launcher.triton_server import TritonServer
from tests.pipeline import Pipeline
from tests.serving.ask import Reference, request
from tests.waiting import wait_until

RECOVERS_S = 10.0

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # what dies is timed


class Launched:
    """The command, its run file, and what it prints."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process, self._folder = process, folder

    @property
    def run(self) -> RunFile:
        return RunFile.read(self._folder / "run.json")

    @property
    def printed(self) -> str:
        return (self._folder / "printed").read_text()

    @property
    def log(self) -> str:
        return (self._folder / "server.log").read_text()

    @property
    def http_url(self) -> str:
        return next(line.split()[1] for line in self.printed.splitlines() if line.startswith("  HTTP"))

    def children(self, name: str) -> list[int]:
        """Processes of the launcher whose command line has that word."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for task in tasks for pid in task.read_text().split()]
        return [pid for pid in pids if name in _words(pid)]

    def is_ready(self) -> bool:
        try:
            url = f"http://{self.http_url}/v2/health/ready"
            return bool(urllib.request.urlopen(url, timeout=5).status == 200)
        except OSError:
            return False

    def leftovers(self) -> list[str]:
        prefix = f"gr4ad_{self.process.pid}_"
        return [*map(str, SHM.glob(f"{prefix}*")), *map(str, stubs(prefix))]


@contextmanager
def launched(pipeline: Pipeline, folder: Path, *options: str) -> Iterator[Launched]:
    """The command, started; ready once its run file is there."""
    command = [sys.executable, "-m", "launcher", f"--repository={pipeline.repository}"]
    command += [f"--{service}-port=0" for service in ("http", "grpc", "metrics")]
    command += [f"--log={folder / 'server.log'}", f"--run-file={folder / 'run.json'}", *options]
    with (
        (folder / "printed").open("w") as out,
        subprocess.Popen(command, cwd=HOME, stdout=out, stderr=out) as process,
    ):
        found = Launched(process, folder)
        try:
            yield found
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def _is_up(found: Launched) -> bool:
    assert found.process.poll() is None, found.printed
    return "try: " in found.printed


@pytest.fixture
def up(pipeline, tmp_path) -> Iterator[Launched]:
    with launched(pipeline, tmp_path, "--lame-duck=0.5") as found:
        wait_until(lambda: _is_up(found), timeout_s=60, every_s=0.1, what="a launcher that is ready")
        yield found


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:  # it has ended meanwhile
        return ""


@pytest.mark.parametrize("victim", ["tritonserver", "gateway"])
def test_what_dies_is_started_again(up, pipeline, victim):
    (pid,) = up.children(victim)
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    wait_until(lambda: not up.is_ready(), timeout_s=5, what="health says no")
    wait_until(up.is_ready, timeout_s=RECOVERS_S, what="health says yes")
    assert time.monotonic() - began < RECOVERS_S
    tensors = request()
    expected = Reference.of(pipeline).answer(tensors)["ad_ids"].tolist()
    assert send(up.run.grpc_url, tensors)["ad_ids"][0].tolist() == expected
    assert send(up.http_url, tensors, protocol="http")["ad_ids"][0].tolist() == expected
    assert up.children(victim) != [pid]
    up.process.terminate()
    assert up.process.wait(60) == 0
    assert up.leftovers() == []


def test_a_server_that_hangs_is_started_again(up):
    (pid,) = up.children("tritonserver")
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: "Triton does not answer" in up.log, timeout_s=8, what="a word about it")
    # SIGTERM would be heard when it goes on, which is never.
    wait_until(lambda: up.children("tritonserver") not in ([], [pid]), timeout_s=8, what="another one")
    wait_until(up.is_ready, timeout_s=30, what="health says yes")


def test_it_gives_up_what_dies_again_and_again(up):
    deadline = time.monotonic() + 90
    killed: set[int] = set()
    while up.process.poll() is None and time.monotonic() < deadline:
        for pid in set(up.children("gateway")) - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.1)
    assert up.process.wait(60) == 1
    assert "given up after 5 new starts within a minute" in up.printed.splitlines()[-1]
    assert len(killed) == 6
    assert up.leftovers() == []


def test_a_launcher_that_is_killed_takes_all_along(up):
    pids = up.children("tritonserver") + up.children("gateway")
    up.process.kill()
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), timeout_s=30, what="both ended"
    )


def test_what_a_killed_server_left_in_memory_the_next_one_removes(up, pipeline):
    """Killed with its launcher, as for want of memory: nobody is there to remove its regions."""
    (triton,) = up.children("tritonserver")
    up.process.kill()
    os.kill(triton, signal.SIGKILL)
    up.process.wait(10)
    assert any(name.startswith(f"{SHM}/") for name in up.leftovers())
    with TritonServer(pipeline.repository):
        assert up.leftovers() == []
        assert not list(SHM.glob(f"gr4ad-launcher-gr4ad_{up.process.pid}_*"))


def test_a_stop_fails_none_of_48_requests_in_hand(up):
    url, outcomes = up.run.grpc_url, list[str]()

    def ask(seed: int) -> None:
        tensors = request(num_ads=30, history=20, seed=seed)
        for _ in range(1000):  # until it is turned away
            try:
                send(url, tensors, timeout_s=60)
            except InferenceServerException as error:
                outcomes.append(error.message() or "")
                return

    with ThreadPoolExecutor(48) as pool:
        for seed in range(48):
            pool.submit(ask, seed)
        time.sleep(2)
        assert outcomes == []
        up.process.terminate()
        assert up.process.wait(60) == 0
    assert len(outcomes) == 48
    turned_away = "the server is stopping and takes no new requests"
    not_there = "failed to connect to all addresses"
    assert [o for o in outcomes if turned_away not in o and not_there not in o] == []
    assert sum(turned_away in o for o in outcomes) > 40  # the others had just had an answer
    assert up.leftovers() == []


def _minds(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    caught = re.search(r"^SigCgt:\t(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("after_s", [0.0, 0.2, 0.5, 1.0, 2.0])
def test_ctrl_c_while_it_starts_ends_in_order(pipeline, tmp_path, after_s):
    with launched(pipeline, tmp_path) as found:
        wait_until(lambda: _minds(found.process.pid, signal.SIGTERM), what="the interpreter is up")
        time.sleep(after_s)
        found.process.send_signal(signal.SIGINT)
        assert found.process.wait(60) == 0
        assert "Traceback" not in found.printed
        assert found.printed.splitlines()[-1:] == ["stopped"]
        assert found.leftovers() == []
