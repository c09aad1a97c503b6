"""The image: held against the launcher's options, the code's imports and the lock."""

from __future__ import annotations

import ast
import fnmatch
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from launcher import triton_command
from launcher.paths import HOME
from launcher.server_files import ServerFiles
from launcher.triton_command import TritonOptions
from tests.deployment import (
    DEPLOY,
    IMAGE,
    INDEXER_PORT,
    TOOLS,
    dockerfile,
    image_packages,
    wanted_packages,
)

EXTRAS = ("gpu", "kafka", "minilm")  # values of the build argument PACKAGES, besides the default
FIRST_PARTY = {"serving", "web", "gateway", "launcher", "indexer", "feedback", "triton_python_backend_utils"}


def _pins(path: Path = HOME / "requirements.lock") -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if "==" in line]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


# The image


def test_the_launcher_starts_the_server_of_the_image_for_all_addresses() -> None:
    options = IMAGE.launcher
    assert (options.tritonserver, options.host, options.log) == ("tritonserver", "0.0.0.0", "-")
    assert (options.detach, options.stop, options.model) == (False, False, None)
    assert IMAGE.environment["GR4AD_RUN_FILE"].startswith("/tmp/")  # the root file system may be read-only


def test_the_server_gets_the_variables_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    for name in ("GR4AD_HOME", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(triton_command, "HOME", Path(IMAGE.home))
    monkeypatch.setattr(sys, "executable", f"{IMAGE.home}/.venv/bin/python")
    launched = TritonOptions(Path("/")).environment(
        ServerFiles(binary=Path("tritonserver"), version=""), metrics_url="u", shm_prefix="p"
    )
    added = {name: value for name, value in launched.items() if os.environ.get(name) != value}
    expected = {k: v.replace("${PATH}", "/usr/bin") for k, v in IMAGE.environment.items()}
    del expected["GR4AD_RUN_FILE"]
    assert added == {**expected, "GR4AD_METRICS_URL": "u", "GR4AD_SHM_PREFIX": "p"}


def test_exposed_ports_are_those_of_the_server() -> None:
    assert sorted(map(int, IMAGE.last("EXPOSE").split())) == sorted([*IMAGE.ports.values(), INDEXER_PORT])


def test_the_image_does_not_run_as_root() -> None:
    user, group = IMAGE.last("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert IMAGE.instructions.index(("USER", IMAGE.last("USER"))) > max(
        i for i, (name, _) in enumerate(IMAGE.instructions) if name in ("RUN", "COPY")
    )


def test_health_check_asks_the_ready_endpoint() -> None:
    command = json.loads(IMAGE.last("HEALTHCHECK").partition("CMD ")[2])
    assert command[-1] == f"http://127.0.0.1:{IMAGE.ports['http']}/v2/health/ready"


def test_the_builder_installs_the_packages() -> None:
    builder, _ = dockerfile()
    assert "--constraint requirements.lock --requirement requirements-serving.in" in builder.last("RUN")
    assert f"venv --without-pip {IMAGE.home}/.venv " in builder.last("RUN")
    assert f"--from=builder {IMAGE.home}/.venv .venv" in IMAGE.all("COPY")
    for packages in EXTRAS:
        stage, _ = dockerfile(PACKAGES=packages)
        assert f"--requirement requirements-{packages}.in" in stage.last("RUN")


def test_stages_share_one_pinned_release() -> None:
    assert len({stage.base for stage in dockerfile()}) == 1
    assert re.fullmatch(r"nvcr\.io/nvidia/tritonserver:\d\d\.\d\d-py3", IMAGE.base)
    texts = [path.read_text() for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {tag for text in texts for tag in re.findall(r"tritonserver:(\d[\w.-]*)", text)} <= {
        IMAGE.base.rpartition(":")[2]
    }


def test_everything_copied_exists_and_is_not_ignored() -> None:
    rules = [r for r in (HOME / ".dockerignore").read_text().split("\n") if r and not r.startswith("#")]
    copies = [value.split() for stage in dockerfile() for value in stage.all("COPY")]
    sources = [name for words in copies if "--from=builder" not in words for name in words[:-1]]
    assert set(sources) >= FIRST_PARTY - {"triton_python_backend_utils"}
    for pattern in sources:
        assert list(HOME.glob(pattern)), pattern
    for name in (str(path.relative_to(HOME)) for pattern in sources for path in HOME.glob(pattern)):
        ignored = False
        for rule in rules:
            if fnmatch.fnmatch(name, rule.removeprefix("!")):
                ignored = not rule.startswith("!")
        assert not ignored, f"{name} is left out by .dockerignore"


def test_no_secret_and_no_build_output_reaches_the_image() -> None:
    assert (HOME / ".dockerignore").read_text().split("\n")[1] == "*"


# Packages


def _names(node: ast.AST) -> set[str]:
    """Packages that a piece of code imports, but for ours and the standard library's."""
    names = {a.name for n in ast.walk(node) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(node) if isinstance(n, ast.ImportFrom) and not n.level}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - FIRST_PARTY


def _imports() -> tuple[set[str], set[str]]:
    """What must be there, and what is only tried."""
    rooms = (
        *("serving", "web", "gateway", "launcher", "indexer", "feedback"),
        *("model_repository", "export/templates"),
    )
    folders = [HOME / room for room in rooms]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(files) > 20
    trees = [ast.parse(path.read_text()) for path in files]
    tried = {
        name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and "ImportError" in "".join(map(ast.unparse, node.handlers))
        for statement in node.body
        for name in _names(statement)
    }
    return {name for tree in trees for name in _names(tree)} - tried, tried


def test_the_image_has_what_the_code_imports_and_no_more() -> None:
    needed, tried = _imports()
    distributions = metadata.packages_distributions()
    needed |= {"httptools", "uvloop"}  # web/ names them to uvicorn, which imports them
    assert {canonicalize_name(distributions[name][0]) for name in needed} == wanted_packages()
    extra = [line for packages in EXTRAS for line in _extra_lines(packages)]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in extra)  # the lock does not have them
    assert all(any(line.startswith(canonicalize_name(name)) for line in extra) for name in tried)


def _extra_lines(packages: str) -> list[str]:
    lines = (DEPLOY / f"requirements-{packages}.in").read_text().splitlines()
    extra = [line.split("#")[0].strip() for line in lines if not line.startswith("#")]
    assert extra.pop(0) == "-r requirements-serving.in"
    return extra


def test_kafka_is_the_release_that_the_tests_use() -> None:
    lines = (HOME / "requirements-kafka.txt").read_text().splitlines()
    assert _extra_lines("kafka") == [line for line in lines if line and not line.startswith("#")]


def test_every_package_and_all_it_needs_is_pinned() -> None:
    packages = image_packages()
    assert packages > wanted_packages()
    assert packages - _pins().keys() == set()
    assert "torch" not in packages


# The folder


def test_hadolint_has_nothing_to_say() -> None:
    command = [TOOLS / "hadolint", "--no-color", "--failure-threshold=style", DEPLOY / "Dockerfile"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_readme_names_every_file() -> None:
    text = (DEPLOY / "README.md").read_text()
    names = {path.name for path in DEPLOY.iterdir()} - {"README.md", "__pycache__"}
    assert {name for name in names if name not in text} == set()
