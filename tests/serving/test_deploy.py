"""What the deployment files lean on, with a real server: probes, a metric, the liveness check."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from importlib import metadata
from pathlib import Path

from launcher.server_process import _stubs, choose_ports, is_ready, remove_leftovers

from deploy import alive
from examples.client import send
from export.render import render
from launcher.paths import DEFAULT_CACHE, HOME
from launcher.server_files import prepare_server
from launcher.triton_server import TritonServer
from tests.deployment import IMAGE, container, image_packages, manifests
from tests.pipeline import Pipeline, serving_config
from tests.promql import TRITON
from tests.serving.ask import Reference, assert_same, request


def _problem(server: TritonServer) -> str | None:
    return alive.problem(
        host="127.0.0.1", port=server.ports["http"], shm_prefix=server.shm_prefix, timeout_s=5.0
    )


def test_probe_endpoints_and_the_metrics_of_the_autoscaler_exist(server: TritonServer) -> None:
    for name in ("startupProbe", "readinessProbe"):
        path = container(manifests(), "server")[name]["httpGet"]["path"]
        assert urllib.request.urlopen(f"http://{server.http_url}{path}", timeout=5).status == 200
    page = urllib.request.urlopen(server.metrics_url, timeout=5).read().decode()
    for name in TRITON:
        if not name.startswith(("nv_gpu", "nv_energy", "nv_cpu", "nv_inference_request_failure")):
            assert f'{name}{{model="beam_scheduler"' in page, name


def test_a_whole_server_is_alive(server: TritonServer) -> None:
    assert _problem(server) is None
    port = str(server.ports["http"])
    command = [sys.executable, "-m", "deploy.alive", "--port", port, "--shm-prefix", server.shm_prefix]
    assert subprocess.run(command, cwd=HOME, timeout=30).returncode == 0


def test_a_lost_process_is_seen_though_triton_says_it_is_ready(pipeline: Pipeline, tmp_path: Path) -> None:
    with TritonServer(pipeline.repository, log_file=tmp_path / "server.log") as server:
        server._watch.stop()  # it would bring the model back
        assert _problem(server) is None
        (pid,) = (pid for pid, arguments in _stubs(server.shm_prefix) if "/ad_resolver/" in arguments[1])
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while _problem(server) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _problem(server) == "a process of the Python model ad_resolver is gone"
        ready = f"http://{server.http_url}/v2/health/ready"
        assert urllib.request.urlopen(ready, timeout=5).status == 200


def test_no_server_is_not_alive() -> None:
    command = [sys.executable, "-m", "deploy.alive", "--port", "9", "--shm-prefix", "gr4ad_nobody_"]
    result = subprocess.run(command, cwd=HOME, timeout=30, capture_output=True, text=True)
    assert result.returncode == 1
    assert "no healthy server at 127.0.0.1:9" in result.stderr


def _image(home: Path) -> Path:
    """The folders of the image: what its Dockerfile copies, and an environment with its packages only."""
    home.mkdir()
    base = os.path.realpath(sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", home / ".venv"], check=True, timeout=60)
    (packages,) = home.glob(".venv/lib/python*/site-packages")
    for name in image_packages():
        for file in metadata.files(name) or []:
            link = packages / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(Path(str(metadata.distribution(name).locate_file(file.parts[0]))))
    for copy in IMAGE.all("COPY"):
        if "--from=" not in copy:
            *sources, target = copy.split()
            for source in sources:
                if (HOME / source).is_dir():
                    shutil.copytree(
                        HOME / source, home / target, ignore=shutil.ignore_patterns("__pycache__")
                    )
                else:
                    (home / target).mkdir(exist_ok=True)
                    shutil.copy(HOME / source, home / target)
    return home


def test_the_image_serves_with_its_own_command_and_packages(pipeline: Pipeline, tmp_path: Path) -> None:
    """Without Docker and with the wheel's server: as near to the image as this machine gets."""
    home, shm_prefix = _image(tmp_path / "gr4ad"), f"gr4ad_image_{uuid.uuid4().hex[:8]}_"
    render(pipeline.bundles, home / "model_repository", index=pipeline.index, config=serving_config())
    files = prepare_server(DEFAULT_CACHE)
    ports = choose_ports({"http": None, "grpc": None, "metrics": None}, host="127.0.0.1")
    command = [str(files.binary)]
    for option in IMAGE.command[1:]:
        option = option.replace(IMAGE.home, str(home)).replace("0.0.0.0", "127.0.0.1")
        option = option.replace(f"={alive.SHM_PREFIX}", f"={shm_prefix}")
        command.append(re.sub(r"--(\w+)-port=.*", lambda m: f"--{m[1]}-port={ports[m[1]]}", option))
    command += [f"--backend-directory={files.backend_directory}", "--allow-gpu-metrics=false"]
    env = {k: v.replace(IMAGE.home, str(home)) for k, v in IMAGE.environment.items()}
    env["PATH"] = env["PATH"].replace("${PATH}", os.defpath)
    env["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, files.library_path))
    log = tmp_path / "server.log"
    python = [f"{home}/.venv/bin/python", "-m"]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=env, stdout=output, stderr=output) as process,
    ):
        try:
            deadline = time.monotonic() + 90
            while not is_ready("127.0.0.1", ports["http"]):
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.1)
            tensors = request(num_ads=9, history=12)
            assert_same(send(f"127.0.0.1:{ports['grpc']}", tensors), Reference.of(pipeline).answer(tensors))
            options = ["--port", str(ports["http"]), "--shm-prefix", shm_prefix]
            subprocess.run([*python, "deploy.alive", *options], cwd=home, env=env, check=True, timeout=30)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            remove_leftovers(shm_prefix)
    stats = [*python, "indexer", "stats", "--index", str(pipeline.index)]
    assert "active on" in subprocess.run(stats, cwd=home, env=env, capture_output=True, text=True).stdout
