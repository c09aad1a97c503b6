"""Steps of `make demo` are processes of their own, and end with it."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from launcher.paths import HOME
from tests.waiting import wait_until

CODE = f"""
import signal, sys
sys.path.append({str(HOME)!r})
from examples.demo import step
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs behind ignore it
step('x', 'a_step')
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_step_ends_with_the_demo(tmp_path: Path, end: signal.Signals) -> None:
    (tmp_path / "a_step.py").write_text("import time\ntime.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", CODE], cwd=tmp_path, stderr=subprocess.DEVNULL) as demo:
        wait_until(psutil.Process(demo.pid).children, timeout_s=60, what="the step")
        steps = psutil.Process(demo.pid).children()
        demo.send_signal(end)
        _, alive = psutil.wait_procs(steps, timeout=20)
        for process in alive:
            process.kill()
        assert not alive
        demo.wait(20)


def test_a_step_that_fails_ends_the_demo(tmp_path: Path) -> None:
    (tmp_path / "a_step.py").write_text("raise SystemExit(3)")
    ended = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "demo: step 'x' failed with status 3" in ended.stderr
