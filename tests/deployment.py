"""Reads the files of `deploy/` for tests: Dockerfile, compose files as compose sees them, manifests."""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from export.rendered import portable
from launcher import gateway_process, triton_process
from launcher.command import parser
from launcher.paths import HOME
from launcher.triton_command import TritonOptions
from serving.backend import model_settings
from serving.backend.settings import ServingConfig
from serving.model.features import FeatureSpec

DEPLOY = HOME / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
COMPOSE = DEPLOY / "compose.yaml"
INDEXER_PORT = 8010  # the default of `python -m indexer serve`
TOOLS = Path(sys.executable).parent
SECRETS = {"GRAFANA_PASSWORD": "x", "GR4AD_INDEXER_TOKEN": "xxxxxxxx"}
_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Stage:
    """One stage of a Dockerfile, its arguments filled in."""

    base: str
    instructions: list[tuple[str, str]]

    def all(self, name: str) -> list[str]:
        return [value for instruction, value in self.instructions if instruction == name]

    def last(self, name: str) -> str:
        return self.all(name)[-1]

    @property
    def environment(self) -> dict[str, str]:
        return dict(re.findall(r'(\w+)=("[^"]*"|\S+)', " ".join(self.all("ENV"))))

    @property
    def home(self) -> str:
        return self.environment["GR4AD_HOME"]

    @property
    def command(self) -> list[str]:
        return json.loads(self.last("CMD"))

    @property
    def launcher(self) -> argparse.Namespace:
        """What the launcher makes of the command."""
        python, *module = self.command[:3]
        assert (python, module) == (f"{self.home}/.venv/bin/python", ["-m", "launcher"])
        return parser().parse_args(self.command[3:])

    @property
    def ports(self) -> dict[str, int]:
        """Ports by service."""
        return {name: getattr(self.launcher, f"{name}_port") for name in ("http", "grpc", "metrics")}

    @property
    def folders(self) -> set[str]:
        """Folders that `install -d` makes."""
        calls = re.findall(r"install -d((?: -[og] \d+)*)((?: [\w./-]+)+)", " ".join(self.all("RUN")))
        return {f"{self.last('WORKDIR')}/{name}" for _, names in calls for name in names.split()}


def dockerfile(path: Path = DEPLOY / "Dockerfile", **arguments: str) -> list[Stage]:
    """Stages in order; the last one is the image. `arguments` as with `--build-arg`."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.M)
    lines = [" ".join(line.split()) for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]
    known: dict[str, str] = {}
    stages: list[Stage] = []
    for line in lines:
        name, value = line.split(" ", 1)
        if name == "ARG":
            key, _, default = value.partition("=")
            known[key] = arguments.get(key, default)
        value = _VARIABLE.sub(lambda match: known.get(match[1], match[0]), value)
        if name == "FROM":
            stages.append(Stage(value.split()[0], []))
        elif stages:
            stages[-1].instructions.append((name, value))
    return stages


IMAGE = dockerfile()[-1]


def configured_folders(run: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Where an adapter in the container looks for bundles and index of a run, from what rendering writes."""
    bundles, index = (portable(run / name) for name in ("bundles", "index"))
    settings = model_settings.ModelSettings.of(
        ServingConfig(),
        bundles=bundles,
        index=index,
        features=FeatureSpec(),
        profile_columns={},
        ranker=None,
        graph_memory="host",
        pad_shapes=False,
    )
    monkeypatch.setattr(model_settings, "HOME", Path(IMAGE.home))
    return str(settings.bundles_folder), str(settings.index_folder)


def stop_seconds(options: argparse.Namespace) -> float:
    """What a stop may take: lame duck, grace, what the gateway has in hand, Triton's end."""
    gateway = gateway_process._KILL_AFTER_S
    triton = TritonOptions(Path()).exit_timeout_s + triton_process._KILL_AFTER_S
    return options.lame_duck + options.grace + gateway + triton


def wanted_packages() -> set[str]:
    """Names in requirements-serving.in."""
    lines = (DEPLOY / "requirements-serving.in").read_text().splitlines()
    names = [line.split("#")[0].strip() for line in lines]
    return {canonicalize_name(Requirement(name).name) for name in names if name}


def image_packages() -> set[str]:
    """Those and all that they need, on the image's Python."""
    todo, done = wanted_packages(), set[str]()
    while todo:
        name = todo.pop()
        done.add(name)
        for needed in map(Requirement, metadata.requires(name) or []):
            if needed.marker is None or needed.marker.evaluate({"extra": "", "python_version": "3.12"}):
                todo |= {canonicalize_name(needed.name)} - done
    return done


def run_compose(*files: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`docker compose config` on these files, all profiles: checks them by schema and prints JSON."""
    options = [f"--file={file}" for file in files]
    return subprocess.run(
        [TOOLS / "docker-compose", *options, "--profile=*", "config", "--format=json"],
        env={"PATH": os.defpath, "HOME": "/nonexistent", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


@functools.cache
def compose(*files: Path, **variables: str) -> dict[str, Any]:
    """Compose files, merged and filled in by docker compose itself. Not to be changed."""
    result = run_compose(*(files or (COMPOSE,)), **{**SECRETS, **variables})
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def manifests(folder: Path = KUBERNETES / "base") -> dict[tuple[str, str], dict[str, Any]]:
    """Manifests that the kustomization of a folder names, by kind and name."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        if (folder / name).is_dir():
            found |= manifests((folder / name).resolve())
            continue
        for manifest in yaml.safe_load_all((folder / name).read_text()):
            found[manifest["kind"], manifest["metadata"]["name"]] = manifest
    return found


def pod(found: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """Specification of the server's pods."""
    return found["Deployment", "gr4ad-server"]["spec"]["template"]["spec"]


def container(found: dict[tuple[str, str], dict[str, Any]], name: str) -> dict[str, Any]:
    """One container of the server's pods."""
    return next(c for c in pod(found)["containers"] if c["name"] == name)


def merge(base: Any, patch: Any) -> Any:
    """Kustomize's strategic merge as far as our patches use it: mappings by key, named things by name."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {key: merge(base[key], patch[key]) if key in base else patch[key] for key in patch}
    if isinstance(base, list) and all(isinstance(item, dict) and "name" in item for item in [*base, *patch]):
        by_name = {item["name"]: item for item in base}
        for item in patch:
            by_name[item["name"]] = merge(by_name.get(item["name"], {}), item)
        return list(by_name.values())
    return patch


def _set_tags(node: Any, tags: dict[str, str]) -> Any:
    if isinstance(node, list):
        return [_set_tags(item, tags) for item in node]
    if not isinstance(node, dict):
        return node
    changed = {key: _set_tags(value, tags) for key, value in node.items()}
    name = str(node.get("image", "")).partition(":")[0]
    return changed | {"image": f"{name}:{tags[name]}"} if name in tags else changed


def overlay(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Manifests of an overlay, its tags and patches applied.

    Raises:
        KeyError: a patch names something that is not there.
    """
    found = manifests(folder)
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    tags = {image["name"]: image["newTag"] for image in content.get("images", [])}
    for key, manifest in found.items():
        found[key] = _set_tags(manifest, tags)
    for patch in content["patches"]:
        content = yaml.safe_load((folder / patch["path"]).read_text())
        key = content["kind"], content["metadata"]["name"]
        if content.pop("$patch", "") == "delete":
            del found[key]
        else:
            found[key] = merge(found[key], content)
    return found
