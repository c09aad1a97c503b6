"""Compose files: loaded by docker compose, held against the image, the configs and the commands there are."""

from __future__ import annotations

import argparse
import copy
import inspect
import re
import socket
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from indexer.__main__ import main
from indexer.commands import build, serve
from indexer.http.guard import Guard
from indexer.sidecar.worker import Worker
from indexer.sources.source import Source
from launcher.paths import HOME
from tests.deployment import (
    COMPOSE,
    DEPLOY,
    IMAGE,
    INDEXER_PORT,
    SECRETS,
    compose,
    configured_folders,
    dockerfile,
    run_compose,
    stop_seconds,
)
from tests.redis_server import BINARY

RUN = "build/demo"  # RUN of the Makefile for its default preset
SERVICES = compose()["services"]


def test_service_images_are_pinned() -> None:
    assert {"server", "indexer", "redis", "indexer-build", "prometheus", "grafana"} == SERVICES.keys()
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
    assert not {"privileged", "cap_add", "ipc"} & service.keys()
    assert service["logging"]["driver"] == "json-file"
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}  # without them, without end
    # LMDB readers must not have the same process id: the sidecar lives in the server's namespace. Nobody else
    # does, and nobody in the host's.
    assert service.get("pid") == ("service:server" if name == "indexer" else None)
    # The image of Redis starts as root, which could become another user only with capabilities.
    assert all(int(number) > 0 for number in service.get("user", "1:1").split(":"))
    assert ("user" in service) == (name == "redis")
    assert service.get("network_mode", "none") == "none"
    assert "healthcheck" in service or "build" in service  # our own image brings its health check along
    assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", []))


@pytest.mark.parametrize("missing", SECRETS)
def test_secrets_have_no_default(missing: str) -> None:
    result = run_compose(COMPOSE, **{name: value for name, value in SECRETS.items() if name != missing})
    assert result.returncode != 0
    assert missing in result.stderr
    for service in yaml.safe_load(COMPOSE.read_text())["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY", name):
                assert re.match(r"\$\{\w+:\?", value), f"{name} must come from the environment"


def test_the_server_mounts_what_the_rendered_configs_name(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = {v["target"]: v for v in SERVICES["server"]["volumes"]}
    bundles, index = configured_folders(HOME / RUN, monkeypatch)
    assert mounts.keys() == {bundles, index, f"{IMAGE.home}/model_repository"}
    assert IMAGE.launcher.repository == HOME / "model_repository"  # the same folder of the image
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


def test_the_index_builder_gets_a_command_that_exists(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service = SERVICES["indexer-build"]
    assert service["entrypoint"] == [f"{IMAGE.home}/.venv/bin/python", "-m", "indexer"]
    calls: list[dict[str, Path]] = []
    manifest = type("Manifest", (), {"level_sizes": (4,), "tokenizer_id": "t"})
    monkeypatch.setattr(build, "read_manifest", lambda *_, **__: manifest)
    monkeypatch.setattr(build, "current_version", lambda _: 1)
    monkeypatch.setattr(build, "build", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(sys, "argv", ["indexer", *service["command"]])
    monkeypatch.chdir(tmp_path)
    for name in ("data/ads.parquet", "tokenizer/sids.parquet", "index/here"):
        (tmp_path / RUN / name).parent.mkdir(parents=True)
        (tmp_path / RUN / name).touch()
    main()
    home = Path(IMAGE.home)
    mounts = {Path(v["target"]): bool(v.get("read_only")) for v in service["volumes"]}
    assert mounts[home / calls[0]["ads"].parent] is True
    assert mounts[home / calls[0]["sids"].parent] is True
    assert mounts[home / calls[0]["out"]] is False
    (bundles,) = (o.split("=")[1] for o in service["command"] if o.startswith("--bundles="))
    folders = str(home / bundles), str(home / calls[0]["out"])
    assert folders == configured_folders(HOME / RUN, monkeypatch)


def _options() -> argparse.Namespace:
    """What the sidecar makes of its command."""
    entrypoint = SERVICES["indexer"]["entrypoint"]
    assert entrypoint == [f"{IMAGE.home}/.venv/bin/python", "-m", "indexer"]
    command, *words = SERVICES["indexer"]["command"]
    assert command == "serve"
    return serve.parser().parse_args(words)


def test_the_sidecar_writes_the_index_that_the_server_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    options, home = _options(), Path(IMAGE.home)
    mounts = {Path(v["target"]): bool(v.get("read_only")) for v in SERVICES["indexer"]["volumes"]}
    assert mounts == {home / options.index: False, home / options.bundles: True}
    folders = str(home / options.bundles), str(home / options.index)
    assert folders == configured_folders(HOME / RUN, monkeypatch)


def test_the_sidecar_is_reached_from_this_host_only_and_with_the_token() -> None:
    options = _options()
    token = SERVICES["indexer"]["environment"][serve.TOKEN]
    assert Guard(options.host, token=token).token == SECRETS["GR4AD_INDEXER_TOKEN"]
    with pytest.raises(ValueError, match="expected a token"):
        Guard(options.host)
    (port,) = SERVICES["indexer"]["ports"]
    assert (port["host_ip"], port["target"]) == ("127.0.0.1", options.port)
    assert options.port == INDEXER_PORT
    url = SERVICES["indexer"]["healthcheck"]["test"][-1]
    assert url == f"http://127.0.0.1:{options.port}/readyz"


def test_redis_is_reached_by_the_sidecar_only() -> None:
    where = urllib.parse.urlsplit(_options().redis_url)
    assert (where.hostname, where.port) == ("redis", 6379)
    assert "ports" not in SERVICES["redis"]
    (network,) = SERVICES["redis"]["networks"]
    assert compose()["networks"][network]["internal"] is True
    assert {name for name, s in SERVICES.items() if network in s.get("networks", {})} == {"redis", "indexer"}
    assert "default" in SERVICES["indexer"]["networks"]  # Prometheus, and the port on this host


@pytest.mark.skipif(BINARY is None, reason="no redis-server here (Debian: apt install redis-server)")
def test_redis_keeps_what_it_acknowledged_and_drops_nothing_when_full(tmp_path: Path) -> None:
    """The options of the compose file, given to a real server."""
    words = [str(tmp_path) if word == "/data" else word for word in SERVICES["redis"]["command"]]
    words[words.index("--maxmemory") + 1] = "6mb"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(BINARY), *words, "--bind", "127.0.0.1", "--port", str(port)]

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            try:
                client.ping()
                return process
            except redis.RedisError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)

    with redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as client:
        process = start()
        try:
            added, full = 0, False
            while not full and added < 10_000:
                try:
                    client.xadd("gr4ad:ads", {"event": b"x" * 10_000})
                    added += 1
                except redis.OutOfMemoryError:
                    full = True
            assert full
            assert client.xlen("gr4ad:ads") == added > 10
            process.kill()
            process.wait()
            process = start()
            assert client.xlen("gr4ad:ads") == added
        finally:
            process.kill()
            process.wait()
    limits = SERVICES["redis"]["deploy"]["resources"]["limits"]
    given = SERVICES["redis"]["command"][SERVICES["redis"]["command"].index("--maxmemory") + 1]
    assert int(given.removesuffix("mb")) << 20 < 0.8 * int(limits["memory"])


def test_the_index_has_one_home() -> None:
    sources = {
        volume["source"]
        for service in SERVICES.values()
        for volume in service["volumes"]
        if volume["target"].endswith("/index")
    }
    assert sources == {"index"}


def test_the_server_has_time_to_end() -> None:
    minutes, seconds = re.fullmatch(r"(\d+)m(\d+)s", SERVICES["server"]["stop_grace_period"]).groups()
    assert 60 * int(minutes) + int(seconds) > stop_seconds(IMAGE.launcher)


def test_the_sidecar_has_time_to_end() -> None:
    """To apply what it took, to acknowledge it, and to answer those who wait (10 s)."""
    seconds = [inspect.signature(f).parameters["timeout_s"].default for f in (Worker.stop, Source.close)]
    grace = int(SERVICES["indexer"]["stop_grace_period"].removesuffix("s"))
    assert grace > sum(seconds) + 10


def test_published_ports_are_those_of_the_server() -> None:
    assert {port["target"] for port in SERVICES["server"]["ports"]} == set(IMAGE.ports.values())


def test_prometheus_scrapes_server_and_sidecar_and_has_the_rules() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job["static_configs"] for job in config["scrape_configs"]}
    assert jobs == {
        "triton": [{"targets": [f"server:{IMAGE.ports['metrics']}"]}],
        "indexer": [{"targets": [f"indexer:{INDEXER_PORT}"]}],
    }
    mounts = {
        Path(v["source"]).name: v["target"] for v in SERVICES["prometheus"]["volumes"] if v["type"] == "bind"
    }
    assert f"--config.file={mounts['prometheus.yml']}" in SERVICES["prometheus"]["command"]
    (rules,) = config["rule_files"]
    assert Path(mounts[rules]).parent == Path(mounts["prometheus.yml"]).parent


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
