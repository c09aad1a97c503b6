"""Parts of the launcher without a server: pauses, the bounded log, the run file, requests in hand."""

from __future__ import annotations

import mmap
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.claims import Claim, remove_what_the_dead_left
from launcher.drain import in_hand
from launcher.paths import HOME
from launcher.processes import process_stat, raise_file_limit
from launcher.restarts import Restarts
from launcher.run_file import RunFile, start_time
from launcher.server_files import ServerError
from launcher.server_log import ServerLog, rotated, tail
from launcher.stubs import SHM, free_region
from tests.waiting import wait_until


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_pauses_double_to_a_bound_and_begin_anew_after_a_long_run() -> None:
    clock = Clock()
    restarts = Restarts(first_s=1, most_s=4, clock=clock)
    assert [restarts.next_pause() for _ in range(5)] == [1, 2, 4, 4, 4]
    clock.now += 21
    assert restarts.next_pause() == 1


def test_the_sixth_end_within_a_minute_is_one_too_many() -> None:
    clock = Clock()
    restarts = Restarts(limit=5, within_s=60, clock=clock)
    for _ in range(5):
        assert restarts.next_pause() is not None
        clock.now += 10
    assert restarts.next_pause() is None
    clock.now += 55  # only the last two count by now
    assert restarts.next_pause() is not None


def test_the_log_is_bounded_however_fast_a_server_writes(tmp_path: Path) -> None:
    """200 MB of errors, as a server without file descriptors writes in ten seconds."""
    path = tmp_path / "server.log"
    log = ServerLog(path)
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nprint('the cause')\nfor i in range(2_000_000): print('E1129 again ' * 8)",
        ],
        stdout=log.stream.fileno(),
    )
    assert writer.wait(120) == 0
    time.sleep(1.1)
    print("the end", file=log.stream, flush=True)
    log.close()
    assert sum(file.stat().st_size for file in rotated(path) if file.exists()) < 8 << 20
    text = path.read_text()
    assert text.startswith("the cause\n")
    lines = re.findall(r"^E1129.*$", text, re.M)
    left_out = sum(int(n) for n in re.findall(r"^\.\.\. (\d+) lines left out", text, re.M))
    assert left_out > 1_500_000
    assert abs(2_000_000 - len(lines) - left_out) < 100  # lines that were cut at the edges
    assert log.lines()[-1] == "the end"


def test_the_log_rotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.server_log.MAX_BYTES", 1000)
    path = tmp_path / "server.log"
    (tmp_path / "server.log.2").write_text("of another run")
    log = ServerLog(path)
    for number in range(100):
        print(f"line {number:3} " + "x" * 90, file=log.stream)
    log.close()
    files = rotated(path)
    assert len(files) == 3
    assert all(file.stat().st_size <= 1000 for file in files)
    assert path.read_text().splitlines()[-1].startswith("line  99")
    assert "of another run" not in "".join(file.read_text() for file in files)
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_errors_of_the_log_are_told_without_the_noise(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "server.log")
    for line in ("E1129 CudaDriverHelper has not", "I1129 fine", "E1129 no manifest", "| Error | table |"):
        print(line, file=log.stream)
    log.close()
    assert log.errors() == ["E1129 no manifest"]
    assert log.lines() == [
        "E1129 CudaDriverHelper has not",
        "I1129 fine",
        "E1129 no manifest",
        "| Error | table |",
    ]


def test_only_the_tail_of_a_long_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"a" * 1000 + b"b" * 10)
    assert tail(file, max_bytes=10) == "b" * 10
    assert tail(file, max_bytes=100, start=1005) == "b" * 5
    assert tail(tmp_path / "none", max_bytes=10) == ""


def test_a_run_file_is_its_users_alone_and_knows_its_launcher(tmp_path: Path) -> None:
    path = tmp_path / "run" / "server.json"
    own = start_time(os.getpid())
    assert own is not None
    run = RunFile(pid=os.getpid(), started=own, grpc_url="127.0.0.1:1", key="secret")
    run.write(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert RunFile.read(path) == run
    assert run.runs
    assert not RunFile(
        pid=os.getpid(), started=own + 1, grpc_url="", key=""
    ).runs  # its number is another's now
    path.write_text('{"pid": 1}')
    with pytest.raises(ServerError, match="no running server is described by"):
        RunFile.read(path)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, 0),
        ({"first": (10, 0), "inner": (9, 0), "all": (7, 0)}, 3),
        ({"first": (10, 5), "all": (8, 7)}, 0),  # five failed at the entry, two behind it
        ({"first": (10, 5), "all": (8, 5)}, 2),
        ({"first": (3, 0), "all": (4, 0)}, 0),  # read a moment apart
    ],
)
def test_requests_in_hand_are_those_that_passed_the_entry(counts, expected) -> None:
    assert in_hand(counts, {"all": "first"}) == expected


def test_too_few_files_are_refused_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(
        ServerError, match=r"open files \(ulimit -n\): expected a limit of at least 1024, got 64"
    ):
        raise_file_limit()
    changed = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: changed.append(limits))
    assert raise_file_limit() == 4096
    assert changed == [(4096, 4096)]


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import time\nfrom launcher.processes import start_process\n"
        f"p = start_process(['sleep', '60'])\nopen({str(note)!r}, 'w').write(str(p.pid))\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=HOME) as parent:
        wait_until(lambda: note.exists() and note.read_text(), timeout_s=20, what="a child")
        pid = int(note.read_text())
        wait_until(
            lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()[:6], what="the command itself"
        )
        parent.kill()
        parent.wait()
    wait_until(lambda: (process_stat(pid) or "Z")[0] == "Z", timeout_s=10, what="the child ended")


def test_the_command_refuses_too_few_files(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "launcher",
        f"--run-file={tmp_path}/run.json",
        f"--repository={tmp_path}/none",
    ]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    result = subprocess.run(
        command,
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, min(64, hard))),
    )
    assert result.returncode == 1
    assert "expected a limit of at least 1024, got 64" in result.stderr


def test_what_a_killed_launcher_left_is_removed_by_the_next_one() -> None:
    prefix, alive = (f"gr4ad_test_{os.getpid()}_{name}_" for name in ("dead", "alive"))
    code = (
        "import time\nfrom launcher.claims import Claim\nfrom launcher.stubs import SHM\n"
        f"claim = Claim({prefix!r})\n(SHM / '{prefix}region').touch()\n"
        "print('claimed', flush=True)\ntime.sleep(60)"
    )
    regions = [SHM / f"{prefix}region", SHM / f"{alive}region"]
    claim = Claim(alive)
    try:
        regions[1].touch()
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=HOME, stdout=subprocess.PIPE, text=True
        ) as owner:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "claimed\n"
            remove_what_the_dead_left()
            assert all(region.exists() for region in regions)
            owner.kill()
        remove_what_the_dead_left()
        assert [region.exists() for region in regions] == [False, True]
        assert [path.name for path in SHM.glob(f"gr4ad-launcher-gr4ad_test_{os.getpid()}*")] == [
            f"gr4ad-launcher-{alive}"
        ]
    finally:
        claim.release()
        for region in regions:
            region.unlink(missing_ok=True)


def test_a_region_of_a_dead_process_gives_its_memory_back() -> None:
    """Also while somebody has it mapped, as Triton has, and without killing him."""
    path = SHM / f"gr4ad_test_{os.getpid()}_freed"
    path.write_bytes(b"x" * (1 << 20))
    try:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            assert os.fstat(file.fileno()).st_blocks > 0
            free_region(path.name)
            assert os.fstat(file.fileno()).st_blocks == 0
            assert mapped[:4] == bytes(4)
        assert not path.exists()
    finally:
        path.unlink(missing_ok=True)
    free_region(path.name)  # nothing there: nothing to do
