"""Steps of a benchmark end with it, and nothing is begun after Ctrl-C or a failure."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.steps import all_of, run_step, status_of
from launcher.paths import HOME
from tests.waiting import wait_until

STEP = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""
CODE = f"""
import signal, sys
from functools import partial
sys.path.append({str(HOME)!r})
from benchmarks.steps import all_of, run_step
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs behind ignore it
all_of([partial(run_step, 'a_step', name) for name in 'abcd'], at_once=2)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_steps_end_with_the_benchmark_and_no_other_begins(tmp_path: Path, end: signal.Signals) -> None:
    (tmp_path / "a_step.py").write_text(STEP)
    with subprocess.Popen([sys.executable, "-c", CODE], cwd=tmp_path, stderr=subprocess.DEVNULL) as bench:
        wait_until(
            lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists(), timeout_s=60, what="steps"
        )
        steps = psutil.Process(bench.pid).children()
        assert len(steps) == 2
        bench.send_signal(end)
        _, alive = psutil.wait_procs(steps, timeout=20)
        for process in alive:
            process.kill()
        assert not alive
        assert bench.wait(20) != 0
    assert not (tmp_path / "c").exists()


def test_a_step_that_fails_says_so_and_stops_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_step.py").write_text(STEP)
    (tmp_path / "bad.py").write_text("print('why', flush=True)\nraise SystemExit(3)")
    log = tmp_path / "log.txt"

    def job(module: str, name: str) -> None:
        run_step(module, name, of="seed 0", log=log)

    jobs = [("a_step", "a"), ("bad", "b"), ("a_step", "c"), ("a_step", "d")]
    with pytest.raises(SystemExit, match=r"error: seed 0, bad: status 3; see .*log\.txt"):
        all_of([lambda j=j: job(*j) for j in jobs], at_once=2)
    assert log.read_text() == "why\n"
    assert not (tmp_path / "d").exists()
    assert not [p for p in psutil.Process().children() if "a_step" in p.cmdline()]


def test_results_come_in_the_order_of_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(int(sys.argv[1]))")
    assert all_of([lambda n=n: status_of("ends", n) for n in (0, 4, 2)], at_once=3) == [0, 4, 2]
