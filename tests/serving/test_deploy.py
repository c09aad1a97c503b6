"""What the deployment files lean on, with a real server: probes, a metric, the liveness check."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import urllib.request
from importlib import metadata
from pathlib import Path

from examples.client import send
from export.render import render
from launcher.paths import DEFAULT_CACHE, HOME
from launcher.run_file import RunFile
from launcher.server_files import prepare_server
from launcher.stubs import SHM
from launcher.triton_server import TritonServer
from tests.deployment import IMAGE, container, image_packages, manifests
from tests.pipeline import Pipeline, serving_config
from tests.promql import TRITON
from tests.serving.ask import Reference, assert_same, request
from tests.waiting import wait_until


def test_probe_endpoints_and_the_metrics_of_the_autoscaler_exist(server: TritonServer) -> None:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container(manifests(), "server")[name]["httpGet"]
        url = f"http://127.0.0.1:{server.ports[probe['port']]}{probe['path']}"
        assert urllib.request.urlopen(url, timeout=5).status == 200
    page = urllib.request.urlopen(server.metrics_url, timeout=5).read().decode()
    for name in TRITON:
        if not name.startswith(("nv_gpu", "nv_energy", "nv_cpu", "nv_inference_request_failure")):
            assert f'{name}{{model="beam_scheduler"' in page, name


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
    home = _image(tmp_path / "gr4ad")
    render(pipeline.bundles, home / "model_repository", index=pipeline.index, config=serving_config())
    env = {k: v.replace(IMAGE.home, str(home)) for k, v in IMAGE.environment.items()}
    env["PATH"] = os.pathsep.join([f"{home}/.venv/bin", str(_server(tmp_path / "bin")), os.defpath])
    env["GR4AD_RUN_FILE"] = str(tmp_path / "run.json")
    command = [word.replace(IMAGE.home, str(home)).replace("0.0.0.0", "127.0.0.1") for word in IMAGE.command]
    command += [f"--{service}-port=0" for service in IMAGE.ports]
    printed = tmp_path / "printed"
    python = [f"{home}/.venv/bin/python", "-m"]
    with (
        printed.open("wb") as output,
        subprocess.Popen(command, cwd=home, env=env, stdout=output, stderr=output) as process,
    ):
        try:

            def is_up() -> bool:
                assert process.poll() is None, printed.read_text()[-3000:]
                return "try: make request" in printed.read_text()

            wait_until(is_up, timeout_s=90, every_s=0.1, what="a server that is up")
            run = RunFile.read(tmp_path / "run.json")
            tensors = request(num_ads=9, history=12)
            assert_same(send(run.grpc_url, tensors), Reference.of(pipeline).answer(tensors))
            models = [*python, "launcher.admin", "models"]
            shown = subprocess.run(
                models, cwd=home, env=env, check=True, timeout=30, capture_output=True, text=True
            )
            assert re.search(r"^gr4ad +1 +READY", shown.stdout, re.M)
        finally:
            process.terminate()
            process.wait(60)
    assert process.returncode == 0
    assert not list(SHM.glob(f"gr4ad_{process.pid}_*"))
    stats = [*python, "indexer", "stats", "--index", str(pipeline.index)]
    assert "active on" in subprocess.run(stats, cwd=home, env=env, capture_output=True, text=True).stdout


def _server(folder: Path) -> Path:
    """A `tritonserver` in PATH, as in NVIDIA's container: the wheel's, with what says where its parts are."""
    folder.mkdir()
    files = prepare_server(DEFAULT_CACHE)
    libraries = os.pathsep.join(map(str, files.library_path))
    options = f"--backend-directory={files.backend_directory} --allow-gpu-metrics=false"
    script = folder / "tritonserver"
    script.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {files.binary} "$@" {options}\n')
    script.chmod(0o755)
    return folder
