"""Compose files: loaded by docker compose, held against the image, the configs and the commands there are."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path

import pytest
import yaml

from export import render
from indexer import __main__ as indexer
from serving import adapter, triton_server
from serving.launcher import HOME
from tests.deployment import COMPOSE, DEPLOY, IMAGE, compose, dockerfile, run_compose

RUN = "build/demo"  # RUN of the Makefile for its default preset
SERVICES = compose()["services"]


def _configured(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where an adapter in the container looks for a folder of the run, from what rendering writes."""
    monkeypatch.setattr(adapter, "HOME", Path(IMAGE.home))
    return str(adapter.resolve_path(render._portable(HOME / RUN / name)))


def test_service_images_are_pinned() -> None:
    assert {"server", "indexer-build", "prometheus", "grafana"} <= SERVICES.keys()
    for name, service in SERVICES.items():
        repository, _, tag = service["image"].rpartition(":")
        assert repository, name
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), f"{name}: {service['image']}"


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_hardened_and_limited(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory", "pids"}
    assert not {"privileged", "cap_add", "pid", "ipc", "user"} & service.keys()
    assert service.get("network_mode", "none") == "none"
    assert "healthcheck" in service or "build" in service  # our own image brings its health check along
    assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", []))


def test_the_password_has_no_default() -> None:
    result = run_compose(COMPOSE)
    assert result.returncode != 0
    assert "GRAFANA_PASSWORD" in result.stderr
    for service in yaml.safe_load(COMPOSE.read_text())["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY", name):
                assert re.match(r"\$\{\w+:\?", value), f"{name} must come from the environment"


def test_the_server_mounts_what_the_rendered_configs_name(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = {v["target"]: v for v in SERVICES["server"]["volumes"]}
    bundles, index = (_configured(name, monkeypatch) for name in ("bundles", "index"))
    assert mounts.keys() == {bundles, index, f"{IMAGE.home}/model_repository"}
    assert f"--model-repository={IMAGE.home}/model_repository" in IMAGE.command
    assert mounts[bundles]["source"] == str(HOME / RUN / "bundles")
    assert {target for target, v in mounts.items() if not v.get("read_only")} == {index}


@pytest.mark.parametrize("name", SERVICES)
def test_mounts_have_a_source_and_a_place(name: str) -> None:
    for volume in SERVICES[name]["volumes"]:
        if volume["type"] == "bind":
            source = Path(volume["source"])
            made = (
                source.is_relative_to(HOME / RUN) or source == HOME / "model_repository"
            )  # by `make export`
            assert made or source.exists()
            assert volume["read_only"] is True
            assert volume["bind"] == {"create_host_path": False}
        if "build" in SERVICES[name]:
            assert volume["target"] in IMAGE.folders


def test_another_run_is_mounted_where_its_image_has_the_folders() -> None:
    server = compose(GR4AD_RUN="build/mine")["services"]["server"]
    folders = dockerfile(**server["build"]["args"])[-1].folders
    targets = {v["target"] for v in server["volumes"]}
    assert f"{IMAGE.home}/build/mine/index" in targets
    assert targets <= folders


def test_the_index_builder_gets_a_command_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    service = SERVICES["indexer-build"]
    assert service["entrypoint"] == [f"{IMAGE.home}/.venv/bin/python", "-m", "indexer"]
    calls: list[dict[str, Path]] = []
    manifest = type("Manifest", (), {"level_sizes": (4,), "tokenizer_id": "t"})
    monkeypatch.setattr(indexer, "read_manifest", lambda *_, **__: manifest)
    monkeypatch.setattr(indexer, "current_version", lambda _: 1)
    monkeypatch.setattr(indexer, "build", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(sys, "argv", ["indexer", *service["command"]])
    indexer.main()
    home = Path(IMAGE.home)
    mounts = {Path(v["target"]): bool(v.get("read_only")) for v in service["volumes"]}
    assert mounts[home / calls[0]["ads"].parent] is True
    assert mounts[home / calls[0]["sids"].parent] is True
    assert mounts[home / calls[0]["out"]] is False
    assert str(home / calls[0]["out"]) == _configured("index", monkeypatch)
    (bundles,) = (o.split("=")[1] for o in service["command"] if o.startswith("--bundles="))
    assert str(home / bundles) == _configured("bundles", monkeypatch)


def test_the_index_has_one_home() -> None:
    sources = {
        volume["source"]
        for service in SERVICES.values()
        for volume in service["volumes"]
        if volume["target"].endswith("/index")
    }
    assert sources == {"index"}


def test_the_server_has_time_to_end() -> None:
    seconds = int(SERVICES["server"]["stop_grace_period"].removesuffix("s"))
    assert seconds > IMAGE.exit_timeout_s + triton_server._KILL_AFTER_S


def test_published_ports_are_those_of_the_server() -> None:
    assert {port["target"] for port in SERVICES["server"]["ports"]} == set(IMAGE.ports.values())


def test_prometheus_scrapes_the_metrics_port_of_the_server() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "triton")
    assert job["static_configs"] == [{"targets": [f"server:{IMAGE.ports['metrics']}"]}]
    (mount,) = (v for v in SERVICES["prometheus"]["volumes"] if v["type"] == "bind")
    assert f"--config.file={mount['target']}" in SERVICES["prometheus"]["command"]


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    host, _, port = source["url"].removeprefix("http://").partition(":")
    assert [p["target"] for p in SERVICES[host]["ports"]] == [int(port)]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "dashboards.yml").read_text())["providers"]
    mounts = {v["target"]: v["source"] for v in SERVICES["grafana"]["volumes"]}
    assert mounts[provider["options"]["path"]] == str(DEPLOY / "grafana" / "dashboards")


def test_the_gpu_file_only_adds_a_gpu_to_the_server() -> None:
    merged = copy.deepcopy(compose(COMPOSE, DEPLOY / "compose.gpu.yaml")["services"])
    assert {name for name in merged if merged[name] != SERVICES[name]} == {"server"}
    server = merged["server"]
    reserved = server["deploy"]["resources"].pop("reservations")
    assert reserved == {"devices": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]}
    assert server["build"]["args"].pop("PACKAGES") == "gpu"
    assert server.pop("image") == f"{SERVICES['server']['image']}-gpu"
    assert server == {key: value for key, value in SERVICES["server"].items() if key != "image"}
