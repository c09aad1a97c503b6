"""Kubernetes manifests: their schemas; names, ports, paths and times fit each other and the image."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from export import render
from serving import adapter, triton_server
from serving.launcher import HOME
from tests.deployment import DEPLOY, IMAGE, KUBERNETES, compose, manifests, overlay

BASE, GPU = KUBERNETES / "base", KUBERNETES / "overlays" / "gpu"
MANIFESTS = manifests()
DEPLOYMENT = MANIFESTS["Deployment", "gr4ad-server"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
LABELS = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
(SERVER,) = POD["containers"]
SCHEMAS = ("1.30", "1.37")  # strict: an unknown key is an error


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMG]i)", quantity).groups()
    return int(number) << {"Ki": 10, "Mi": 20, "Gi": 30}[unit]


def _mounts(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


@pytest.mark.parametrize("version", SCHEMAS)
def test_manifests_fit_the_schemas_of_kubernetes(version: str) -> None:
    for manifest in (*MANIFESTS.values(), *overlay(GPU).values()):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_kustomization_names_every_file() -> None:
    for folder in (BASE, GPU):
        content = yaml.safe_load((folder / "kustomization.yaml").read_text())
        named = {*content["resources"], *(patch["path"] for patch in content.get("patches", []))}
        files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert {name for name in named if name.endswith(".yaml")} == files
    assert not [m for m in MANIFESTS.values() if "namespace" in m["metadata"]]


def test_labels_select_the_pods() -> None:
    selectors = [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        MANIFESTS["PodDisruptionBudget", "gr4ad-server"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["NetworkPolicy", "gr4ad-server"]["spec"]["podSelector"]["matchLabels"],
        *(m["spec"]["selector"] for (kind, _), m in MANIFESTS.items() if kind == "Service"),
        *(c["labelSelector"]["matchLabels"] for c in POD["topologySpreadConstraints"]),
    ]
    assert len(selectors) == 7
    assert all(selector.items() <= LABELS.items() for selector in selectors)
    assert all("app.kubernetes.io/component" in selector for selector in selectors)


def test_ports_are_those_of_the_image() -> None:
    ports = {port["name"]: port["containerPort"] for port in SERVER["ports"]}
    assert ports == IMAGE.ports
    for (kind, _), manifest in MANIFESTS.items():
        if kind == "Service":
            for port in manifest["spec"]["ports"]:
                assert port["port"] == ports[port["targetPort"]]
    clients, monitoring = MANIFESTS["NetworkPolicy", "gr4ad-server"]["spec"]["ingress"]
    assert {p["port"] for p in clients["ports"]} == {ports["http"], ports["grpc"]}
    assert {p["port"] for p in monitoring["ports"]} == {ports["metrics"]}
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["metrics"])


def test_grpc_clients_see_every_pod() -> None:
    assert MANIFESTS["Service", "gr4ad-grpc"]["spec"]["clusterIP"] == "None"
    assert "clusterIP" not in MANIFESTS["Service", "gr4ad"]["spec"]


def test_probes() -> None:
    for name in ("startupProbe", "readinessProbe"):
        assert SERVER[name]["httpGet"] == {"path": "/v2/health/ready", "port": "http"}
    python, *module = SERVER["livenessProbe"]["exec"]["command"]
    assert python == f"{IMAGE.home}/.venv/bin/python"
    assert module == ["-m", "deploy.alive"]
    assert "deploy/alive.py deploy/alive.py" in IMAGE.all("COPY")
    assert IMAGE.last("WORKDIR") == IMAGE.home  # where `-m` looks
    startup = SERVER["startupProbe"]
    longest_start = startup["periodSeconds"] * startup["failureThreshold"]
    assert longest_start < DEPLOYMENT["spec"]["progressDeadlineSeconds"]


def test_a_pod_has_time_to_drain() -> None:
    (_, seconds) = SERVER["lifecycle"]["preStop"]["exec"]["command"]
    needed = int(seconds) + IMAGE.exit_timeout_s + triton_server._KILL_AFTER_S
    assert POD["terminationGracePeriodSeconds"] > needed
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_pods_have_no_rights() -> None:
    user, group = map(int, IMAGE.last("USER").split(":"))
    context = POD["securityContext"]
    assert context["runAsNonRoot"] is True
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (user, group, group)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    for container in (*POD["initContainers"], *POD["containers"]):
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}


def test_images_are_the_release() -> None:
    version = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]["version"]
    images = {c["image"] for c in (*POD["initContainers"], *POD["containers"])}
    assert images == {f"gr4ad-server:{version}"} == {compose()["services"]["server"]["image"]}
    assert f"-t gr4ad-server:{version} " in (DEPLOY / "Dockerfile").read_text()


def test_the_server_mounts_what_the_rendered_configs_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "HOME", Path(IMAGE.home))
    bundles, index = (
        str(adapter.resolve_path(render._portable(HOME / "build" / "demo" / name)))
        for name in ("bundles", "index")
    )
    mounts = _mounts(SERVER)
    repository = f"{IMAGE.home}/model_repository"
    assert mounts.keys() == {bundles, index, repository, "/dev/shm", "/tmp"}
    assert {bundles, index, repository} <= IMAGE.folders
    for path, folder in ((bundles, "bundles"), (repository, "model_repository")):
        assert mounts[path] == {"name": "data", "mountPath": path, "subPath": folder, "readOnly": True}
    assert mounts[index]["name"] == "index"
    (copy,) = POD["initContainers"]
    source, target = copy["command"][1:]
    assert target == f"{index}/data.mdb"
    assert str(Path(source).parent) in _mounts(copy)
    assert index in _mounts(copy)


def test_volumes() -> None:
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    used = {m["name"] for c in (*POD["initContainers"], SERVER) for m in c["volumeMounts"]}
    assert volumes.keys() == used
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] in {n for _, n in MANIFESTS}
    assert "emptyDir" in volumes["index"]  # LMDB and network file systems
    shm = volumes[_mounts(SERVER)["/dev/shm"]["name"]]["emptyDir"]
    assert shm["medium"] == "Memory"
    assert _bytes(shm["sizeLimit"]) < _bytes(SERVER["resources"]["limits"]["memory"]) / 2


def test_the_autoscaler_owns_the_replicas() -> None:
    spec = MANIFESTS["HorizontalPodAutoscaler", "gr4ad-server"]["spec"]
    assert spec["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]
    assert "replicas" not in DEPLOYMENT["spec"]
    budget = MANIFESTS["PodDisruptionBudget", "gr4ad-server"]["spec"]
    assert spec["minReplicas"] > budget["maxUnavailable"] >= 1
    (metric,) = spec["metrics"]
    assert metric["pods"]["metric"]["selector"]["matchLabels"]["model"] in render.ADAPTERS
    assert f"name: {{as: {metric['pods']['metric']['name']}}}" in (DEPLOY / "README.md").read_text()


def test_nothing_else_gets_in_or_out() -> None:
    spec = MANIFESTS["NetworkPolicy", "gr4ad-server"]["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["egress"] == []
    assert all(rule["from"] for rule in spec["ingress"])


def test_the_gpu_overlay_changes_the_deployment_only() -> None:
    found = overlay(GPU)
    changed = [key for key, manifest in found.items() if manifest != MANIFESTS[key]]
    assert changed == [("Deployment", "gr4ad-server")]
    pod = found["Deployment", "gr4ad-server"]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    assert server["resources"]["limits"] == {**SERVER["resources"]["limits"], "nvidia.com/gpu": 1}
    assert {c["image"] for c in (*pod["initContainers"], server)} == {f"{SERVER['image']}-gpu"}
    other = SERVER.keys() - {"resources", "image"}
    assert {key: server[key] for key in other} == {key: SERVER[key] for key in other}
    assert pod["nodeSelector"]
