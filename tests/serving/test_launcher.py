"""The launcher against a real `tritonserver` with a tiny repository of two Python models."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc, http

from launcher.command import main
from launcher.paths import HOME
from launcher.run_file import RunFile
from launcher.server_files import ServerError, prepare_server
from launcher.triton_admin import Admin
from launcher.triton_process import TritonProcess
from launcher.triton_server import TritonServer

_CONFIG = """
backend: "python"
max_batch_size: 0
input [ { name: "x" data_type: TYPE_INT32 dims: [ -1 ] } ]
output [ { name: "y" data_type: TYPE_INT32 dims: [ -1 ] } ]
"""

_MODEL = """
import os, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import numpy as np
import triton_python_backend_utils as pb_utils
assert np.__version__.startswith("1."), np.__file__

class TritonPythonModel:
    def initialize(self, args):
        {initialize}

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", {answer})]) for x in inputs]
"""


def _write_model(repository: Path, name: str, *, answer: str = "x", initialize: str = "pass") -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text(_CONFIG)
    site_packages = [path for path in sys.path if path.endswith("site-packages")]
    text = _MODEL.format(paths=site_packages, answer=answer, initialize=initialize)
    (folder / "model.py").write_text(text)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    _write_model(tmp_path / "models", "double", answer="x * 2")
    _write_model(tmp_path / "models", "home", answer="x + len(os.environ['GR4AD_HOME'])")
    return tmp_path / "models"


def _infer(server: TritonServer, model: str, values: list[int]) -> list[int]:
    client = grpc.InferenceServerClient(server.grpc_url)
    tensor = grpc.InferInput("x", [len(values)], "INT32")
    tensor.set_data_from_numpy(np.array(values, np.int32))
    result = client.infer(model, [tensor]).as_numpy("y").tolist()
    client.close()
    return result


def _leftovers(prefix: str) -> list[str]:
    regions = [str(path) for path in Path("/dev/shm").glob(f"{prefix}*")]
    stubs = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if prefix in text:
            stubs.append(text)
    return regions + stubs


def test_serves_the_whole_repository_and_leaves_nothing(repository: Path) -> None:
    with TritonServer(repository) as server:
        assert _infer(server, "double", [1, 2, 3]) == [2, 4, 6]
        assert _infer(server, "home", [0]) == [len(str(HOME))]
        client = http.InferenceServerClient(server.http_url)
        assert client.is_server_ready()
        assert client.is_model_ready("double")
        client.close()
        with urllib.request.urlopen(server.metrics_url, timeout=5) as page:
            assert 'nv_inference_request_success{model="double",version="1"} 1' in page.read().decode()
        assert len([line for line in _leftovers(server.shm_prefix) if line.startswith("/dev/shm")]) == 2
        assert os.getsid(server.pid) == server.pid != os.getsid(0)
        prefix, log_file = server.shm_prefix, server.log_file
        assert "successfully loaded 'double'" in server.log_tail(1000)
    assert _leftovers(prefix) == []
    assert not log_file.exists()


def test_loads_only_the_named_models_and_removes_what_a_crash_left(repository: Path) -> None:
    with TritonServer(repository, models=["double"]) as server:
        assert {v.model for v in server.admin.versions() if v.state == "READY"} == {"double"}
        os.kill(server.pid, signal.SIGKILL)
        while server.poll() is None:
            time.sleep(0.01)
        assert _leftovers(server.shm_prefix) != []
        foreign = Path("/dev/shm") / f"gr4ad_test_foreign_{os.getpid()}"
        foreign.touch()
        try:
            server.stop()
            assert foreign.exists()
        finally:
            foreign.unlink()
        assert _leftovers(server.shm_prefix) == []
        server.log_file.unlink()  # kept, since the server died


@pytest.mark.parametrize("service", ["http", "grpc", "metrics"])
def test_refuses_a_taken_port(repository: Path, service: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {f"{service}_port": port}
        with pytest.raises(ServerError, match=f"{service} port {port} on 127.0.0.1 is not free"):
            TritonServer(repository, **ports).start()


def test_failing_initialize_is_told_with_its_reason(repository: Path) -> None:
    _write_model(repository, "broken", initialize="raise ValueError('no manifest at /nowhere')")
    server = TritonServer(repository)
    with pytest.raises(ServerError, match="no manifest at /nowhere") as caught:
        server.start()
    assert "broken" in str(caught.value)
    assert _leftovers(server.shm_prefix) == []
    server.log_file.unlink()


def test_what_a_signal_ends_while_it_starts_is_started_once_more(repository: Path, monkeypatch) -> None:
    """Once: a server that dies so each time is an error that says how."""
    killed: list[int] = []
    wait, deaths = TritonProcess.wait_until_ready, 1

    def wait_and_kill(self: TritonProcess, *, deadline: float) -> None:
        if len(killed) < deaths:
            os.kill(self.pid, signal.SIGABRT)
            killed.append(self.pid)
        wait(self, deadline=deadline)

    monkeypatch.setattr(TritonProcess, "wait_until_ready", wait_and_kill)
    with TritonServer(repository) as server:
        assert server.pid not in killed
        assert server.poll() is None
    deaths = 9
    killed.clear()
    with pytest.raises(ServerError, match="Triton ended with status -6 before it was ready"):
        TritonServer(repository).start()
    assert len(killed) == 2


def test_a_new_version_that_fails_leaves_the_server_ready(repository: Path) -> None:
    with TritonServer(repository, models=["double"]) as server:
        shutil.copytree(repository / "double" / "1", repository / "double" / "2")
        (repository / "double" / "2" / "model.py").write_text("raise ValueError('half a bundle')")
        with pytest.raises(ServerError, match="half a bundle"):
            server.admin.load("double")
        assert server.admin.is_ready()
        assert _infer(server, "double", [4]) == [8]


def test_an_idle_http_client_does_not_hold_up_the_stop(repository: Path) -> None:
    server = TritonServer(repository, models=["double"], exit_timeout_s=2).start()
    client = http.InferenceServerClient(server.http_url)
    assert client.is_server_ready()  # keeps its connection open
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < 8
    assert _leftovers(server.shm_prefix) == []
    client.close()


def test_too_slow_a_start_is_stopped(repository: Path) -> None:
    _write_model(repository, "slow", initialize="import time; time.sleep(4)")
    server = TritonServer(repository, models=["slow"], startup_timeout_s=1.0)
    with pytest.raises(ServerError, match="not ready in time"):
        server.start()
    assert _leftovers(server.shm_prefix) == []
    server.log_file.unlink()


def test_missing_repository_and_missing_server(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no model repository at .*nowhere"):
        TritonServer(tmp_path / "nowhere").start()
    with pytest.raises(ServerError, match="no executable Triton server at '/no/such/server'"):
        prepare_server(tmp_path, tritonserver="/no/such/server")


def test_no_wheel_and_no_tritonserver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match="installed by `make setup`"):
        prepare_server(tmp_path)
    (tmp_path / "tritonserver").write_text("#!/bin/sh\n")
    (tmp_path / "tritonserver").chmod(0o755)
    assert prepare_server(tmp_path).binary == tmp_path / "tritonserver"


def test_files_are_copied_once(tmp_path: Path) -> None:
    files = prepare_server(tmp_path)
    assert files.backend_directory is not None
    stub = files.backend_directory / "python" / "triton_python_backend_stub"
    assert os.access(stub, os.X_OK)
    assert os.access(files.binary, os.X_OK)
    before = stub.stat().st_ino
    assert prepare_server(tmp_path) == files
    assert stub.stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == [files.version]


def _command(repository: Path, tmp_path: Path, *more: str) -> list[str]:
    free = [f"--{service}-port=0" for service in ("http", "grpc", "metrics")]
    log = ["--log", str(tmp_path / "server.log"), "--run-file", str(tmp_path / "run.json")]
    return [sys.executable, "-m", "launcher", "--repository", str(repository), *free, *log, *more]


def test_command_stops_cleanly_on_sigterm(repository: Path, tmp_path: Path) -> None:
    command = _command(repository, tmp_path)
    with subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline()]
            while lines[-1] and "try:" not in lines[-1]:
                lines.append(process.stdout.readline())
            assert "Triton is ready after" in lines[0]
            assert "make request" in lines[-1]
            assert _leftovers(f"gr4ad_{process.pid}_") != []
        finally:
            process.send_signal(signal.SIGTERM)  # also after a failure: Popen's exit waits without end
        assert process.wait(30) == 0
        assert _leftovers(f"gr4ad_{process.pid}_") == []


def test_command_detaches_and_stops(repository: Path, tmp_path: Path) -> None:
    command = _command(repository, tmp_path, "--detach", "--lame-duck", "0")
    shown = subprocess.run(command, cwd=HOME, check=True, timeout=60, capture_output=True, text=True).stdout
    assert "Triton is ready after" in shown
    file = tmp_path / "run.json"
    assert file.stat().st_mode & 0o777 == 0o600
    run = RunFile.read(file)
    assert run.runs
    with Admin(run.grpc_url, key=run.key) as admin:
        assert {v.model for v in admin.versions()} == {"double", "home"}
    assert run.key not in (tmp_path / "server.log").read_text() + shown
    assert main(["--stop", "--run-file", str(file)]) == 0
    assert not run.runs
    assert not file.exists()
    assert _leftovers(f"gr4ad_{run.pid}_") == []


def test_detaching_tells_why_it_failed(repository: Path, tmp_path: Path) -> None:
    _write_model(repository, "broken", initialize="raise ValueError('no manifest at /nowhere')")
    command = _command(repository, tmp_path, "--detach")
    failed = subprocess.run(command, cwd=HOME, timeout=60, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "no manifest at /nowhere" in failed.stderr


def test_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file = str(tmp_path / "run.json")
    assert main(["--repository", str(tmp_path / "nowhere"), "--run-file", run_file]) == 1
    assert "no model repository at" in capsys.readouterr().err
    assert main(["--stop", "--run-file", run_file]) == 1
    assert "no running server is described by" in capsys.readouterr().err
