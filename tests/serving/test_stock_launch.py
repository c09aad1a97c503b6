"""The rendered repository with Triton's plain command line: none of the launcher's options, no GR4AD_HOME."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import tritonclient.http

from examples.client import send
from export.render import render
from launcher.paths import DEFAULT_CACHE, HOME
from launcher.ports import choose_ports
from launcher.server_files import prepare_server
from launcher.stubs import remove_leftovers
from tests.pipeline import Pipeline, serving_config
from tests.serving.ask import Reference, assert_same, request
from tests.waiting import wait_until


def _checkout(folder: Path) -> Path:
    """A checkout as the adapters find it by themselves: model_repository beside serving and .venv."""
    folder.mkdir()
    (folder / "serving").symlink_to(HOME / "serving")
    (folder / ".venv").symlink_to(sys.prefix)
    return folder / "model_repository"


def _environment(library_path: tuple[Path, ...]) -> dict[str, str]:
    """Only what a container has anyway: the interpreter in PATH and the libraries of the wheel."""
    python = Path(os.path.realpath(sys.executable)).parent
    return {
        "PATH": f"{python}{os.pathsep}{os.defpath}",
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, library_path)),
    }


def test_a_stock_tritonserver_serves_the_repository(pipeline: Pipeline, tmp_path: Path) -> None:
    repository = _checkout(tmp_path / "checkout")
    render(pipeline.bundles, repository, index=pipeline.index, config=serving_config())
    files = prepare_server(DEFAULT_CACHE)
    services = ("http", "grpc", "metrics")
    ports = choose_ports(dict.fromkeys(services), hosts=dict.fromkeys(services, "127.0.0.1"))
    shm_prefix = f"gr4ad_stock_{uuid.uuid4().hex[:8]}_"
    command = [str(files.binary), f"--model-repository={repository}"]
    # The rest says where things are without Triton's container, and how to clean up; not how to serve.
    command += [f"--{service}-port={port}" for service, port in ports.items()]
    command += [f"--backend-directory={files.backend_directory}", "--allow-gpu-metrics=false"]
    command += [f"--backend-config=python,shm-region-prefix-name={shm_prefix}"]
    log = tmp_path / "server.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            env=_environment(files.library_path),
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        try:
            _wait(process, f"127.0.0.1:{ports['http']}", log)
            tensors = request(num_ads=9, history=12)
            expected = Reference.of(pipeline).answer(tensors)
            assert_same(send(f"127.0.0.1:{ports['grpc']}", tensors), expected)
            assert_same(send(f"127.0.0.1:{ports['http']}", tensors, protocol="http"), expected)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
            remove_leftovers(shm_prefix)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    client = tritonclient.http.InferenceServerClient(url)

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(OSError):
            return bool(client.is_server_ready())
        return False

    wait_until(is_ready, timeout_s=90, every_s=0.1, what="a ready server")
    client.close()


def test_the_onnxruntime_target_on_its_own_backend(pipeline: Pipeline, tmp_path: Path) -> None:
    """Runs where a Triton with that backend is installed."""
    files = prepare_server(DEFAULT_CACHE)
    backends = files.backend_directory or Path("/opt/tritonserver/backends")
    if not (backends / "onnxruntime").is_dir():
        pytest.skip(f"no onnxruntime backend in {backends}: the Triton of the wheel has none")
    from launcher.triton_server import TritonServer

    repository = tmp_path / "model_repository"
    render(pipeline.bundles, repository, index=pipeline.index, config=serving_config(), target="onnxruntime")
    tensors = request(num_ads=9, history=12)
    with TritonServer(repository, files=files) as server:
        assert_same(send(server.grpc_url, tensors), Reference.of(pipeline).answer(tensors))
