"""Kubernetes manifests: their schemas; names, ports, paths and times fit each other and the image."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from indexer.commands import serve
from indexer.sidecar.worker import Worker
from indexer.sources.source import Source
from launcher.command import parser
from launcher.paths import HOME
from tests.deployment import (
    DEPLOY,
    IMAGE,
    INDEXER_PORT,
    KUBERNETES,
    compose,
    configured_folders,
    container,
    manifests,
    overlay,
    pod,
    stop_seconds,
)
from tests.promql import selectors
from tests.unit.test_prometheus import RECORDED

BASE, GPU, KEDA = KUBERNETES / "base", KUBERNETES / "overlays" / "gpu", KUBERNETES / "overlays" / "keda"
MANIFESTS = manifests()
DEPLOYMENT = MANIFESTS["Deployment", "gr4ad-server"]
POD = pod(MANIFESTS)
LABELS = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
SERVER, INDEXER = container(MANIFESTS, "server"), container(MANIFESTS, "indexer")
(RESTORE,) = POD["initContainers"]
SCHEMAS = ("1.30", "1.37")  # strict: an unknown key is an error


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMG]i)", quantity).groups()
    return int(number) << {"Ki": 10, "Mi": 20, "Gi": 30}[unit]


def _mounts(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


@pytest.mark.parametrize("version", SCHEMAS)
def test_manifests_fit_the_schemas_of_kubernetes(version: str) -> None:
    for manifest in (*MANIFESTS.values(), *overlay(GPU).values(), *overlay(KEDA).values()):
        if manifest["apiVersion"] != "keda.sh/v1alpha1":  # by test_the_scaled_object
            kubernetes_validate.validate(manifest, version, strict=True)


def test_the_kustomization_names_every_file() -> None:
    for folder in (BASE, GPU, KEDA):
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
    assert {p["port"] for p in monitoring["ports"]} == {ports["metrics"], INDEXER_PORT}
    assert INDEXER["ports"] == [{"name": "indexer", "containerPort": INDEXER_PORT}]
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["metrics"])


def test_grpc_clients_see_every_pod() -> None:
    assert MANIFESTS["Service", "gr4ad-grpc"]["spec"]["clusterIP"] == "None"
    assert "clusterIP" not in MANIFESTS["Service", "gr4ad"]["spec"]


def test_probes() -> None:
    for name in ("startupProbe", "readinessProbe"):
        assert SERVER[name]["httpGet"] == {"path": "/v2/health/ready", "port": "http"}
    assert SERVER["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": "metrics"}
    startup = SERVER["startupProbe"]
    longest_start = startup["periodSeconds"] * startup["failureThreshold"]
    assert longest_start < DEPLOYMENT["spec"]["progressDeadlineSeconds"]


def test_a_pod_has_time_to_drain() -> None:
    assert SERVER["args"][: len(IMAGE.command)] == IMAGE.command
    options = parser().parse_args(SERVER["args"][3:])
    assert options.lame_duck >= 10  # until the endpoints no longer name the pod
    assert POD["terminationGracePeriodSeconds"] > stop_seconds(options)
    assert "lifecycle" not in SERVER
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_pods_have_no_rights() -> None:
    user, group = map(int, IMAGE.last("USER").split(":"))
    context = POD["securityContext"]
    assert context["runAsNonRoot"] is True
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (user, group, group)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    for one in (*POD["initContainers"], *POD["containers"]):
        rights = one["securityContext"]
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert one["resources"]["limits"].keys() >= {"cpu", "memory"}
        assert one["resources"]["requests"].keys() >= {"cpu", "memory"}


def test_images_are_the_release() -> None:
    version = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]["version"]
    images = {c["image"] for c in (*POD["initContainers"], *POD["containers"])}
    assert images == {f"gr4ad-server:{version}"} == {compose()["services"]["server"]["image"]}
    assert f"-t gr4ad-server:{version} " in (DEPLOY / "Dockerfile").read_text()


def test_the_server_mounts_what_the_rendered_configs_name(monkeypatch: pytest.MonkeyPatch) -> None:
    bundles, index = configured_folders(HOME / "build" / "demo", monkeypatch)
    mounts = _mounts(SERVER)
    repository = f"{IMAGE.home}/model_repository"
    assert mounts.keys() == {bundles, index, repository, "/dev/shm", "/tmp"}
    assert {bundles, index, repository} <= IMAGE.folders
    for path, folder in ((bundles, "bundles"), (repository, "model_repository")):
        assert mounts[path] == {"name": "data", "mountPath": path, "subPath": folder, "readOnly": True}
    assert mounts[index]["name"] == "index"
    assert _mounts(INDEXER).keys() == {bundles, index, "/tmp"}
    assert _mounts(INDEXER)[bundles] == mounts[bundles]
    assert _mounts(INDEXER)[index] == _mounts(RESTORE)[index] == mounts[index]


def test_volumes() -> None:
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    used = {m["name"] for c in (RESTORE, SERVER, INDEXER) for m in c["volumeMounts"]}
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
    targets = {m["pods"]["metric"]["name"] for m in spec["metrics"]}
    (block,) = re.findall(r"```yaml\n(rules:.*?)```", (DEPLOY / "README.md").read_text(), re.S)
    rules = {rule["name"]["as"]: rule["seriesQuery"] for rule in yaml.safe_load(block)["rules"]}
    assert rules.keys() == targets
    for name, query in rules.items():
        ((series, labels),) = selectors(query)
        assert series in RECORDED
        assert series.replace(":", "_") == name
        assert labels == {"namespace", "pod"}


def test_nothing_else_gets_in_or_out() -> None:
    spec = MANIFESTS["NetworkPolicy", "gr4ad-server"]["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert all(rule["from"] for rule in spec["ingress"])
    assert all(rule["to"] for rule in spec["egress"])
    assert {p["port"] for rule in spec["egress"] for p in rule["ports"]} == {6379, 53}


# The sidecar


def _options() -> Any:
    """What the sidecar makes of its command: that of launcher.keep, and after it its own."""
    words = [*INDEXER["command"], *INDEXER["args"]]
    at = words.index("--")
    python = f"{IMAGE.home}/.venv/bin/python"
    assert words[:3] == [python, "-m", "launcher.keep"]
    assert words[3:at] == [f"--url=http://127.0.0.1:{INDEXER_PORT}/healthz"]
    assert words[at + 1 : at + 5] == [python, "-m", "indexer", "serve"]
    return serve.parser().parse_args(words[at + 5 :])


def test_all_who_open_the_index_share_a_pid_namespace() -> None:
    """LMDB refuses one of two readers that have the same process id."""
    assert POD["shareProcessNamespace"] is True
    assert [c["name"] for c in POD["containers"]] == ["server", "indexer"]


def test_a_sidecar_that_fails_does_not_make_the_pod_unready() -> None:
    assert not {"readinessProbe", "startupProbe", "livenessProbe"} & INDEXER.keys()
    assert INDEXER["command"][2] == "launcher.keep"
    assert "restartPolicy" not in INDEXER


def test_the_sidecar_writes_the_index_of_its_pod() -> None:
    options = _options()
    assert str(options.index) in _mounts(SERVER)
    assert str(options.bundles) in _mounts(SERVER)
    assert (options.host, options.port) == ("0.0.0.0", INDEXER_PORT)
    # A full store refuses events; a full volume would cost the pod. Bases need room, too.
    (volume,) = (v["emptyDir"] for v in POD["volumes"] if v["name"] == "index")
    assert 2 * options.map_size_gib * (1 << 30) <= _bytes(volume["sizeLimit"])


def test_every_pod_has_a_consumer_group_of_its_own() -> None:
    assert _options().redis_group == "gr4ad-$(POD_NAME)"
    names = {v["name"]: v["valueFrom"]["fieldRef"]["fieldPath"] for v in INDEXER["env"]}
    assert names == {"POD_NAME": "metadata.name"}


def test_redis_and_the_token_come_from_outside() -> None:
    settings, secret = INDEXER["envFrom"]  # the later one wins
    data = MANIFESTS["ConfigMap", settings["configMapRef"]["name"]]["data"]
    assert data.keys() == {serve.REDIS_URL, "GR4AD_REDIS_STREAM"}
    assert _options().redis_stream == "$(GR4AD_REDIS_STREAM)"
    assert "optional" not in secret["secretRef"]  # no token, no sidecar
    assert not [kind for kind, _ in MANIFESTS if kind == "Secret"]
    readme = (DEPLOY / "README.md").read_text()
    name = secret["secretRef"]["name"]
    assert f"create secret generic {name} --from-literal={serve.TOKEN}=" in readme
    assert "--redis-url" not in " ".join(INDEXER["args"])  # a password would show in the process list


def test_the_index_begins_from_a_published_backup(tmp_path: Path) -> None:
    python, *words = [*RESTORE["command"], *RESTORE["args"]]
    assert python == f"{IMAGE.home}/.venv/bin/python"
    options = dict(word.removeprefix("--").split("=") for word in words if word.startswith("--"))
    assert _mounts(RESTORE)[options["backup"]]["readOnly"] is True
    assert options["index"] in _mounts(INDEXER)
    at = [word.replace(options["backup"], f"{tmp_path}/none").replace(options["index"], f"{tmp_path}/index")
          for word in words]  # fmt: skip
    result = subprocess.run([sys.executable, *at], cwd=HOME, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1, result.stderr  # 2 would be an option that does not exist
    assert "expected a backup" in result.stderr


def test_the_sidecar_ends_within_the_time_of_the_pod() -> None:
    needed = [inspect.signature(f).parameters["timeout_s"].default for f in (Worker.stop, Source.close)]
    assert POD["terminationGracePeriodSeconds"] > sum(needed) + 10


# KEDA


def test_keda_takes_the_place_of_the_autoscaler_and_asks_for_the_same() -> None:
    found = overlay(KEDA)
    assert ("HorizontalPodAutoscaler", "gr4ad-server") not in found
    others = MANIFESTS.keys() - {("HorizontalPodAutoscaler", "gr4ad-server")}
    assert found.keys() == others | {("ScaledObject", "gr4ad-server")}
    assert all(found[key] == MANIFESTS[key] for key in others)
    base = MANIFESTS["HorizontalPodAutoscaler", "gr4ad-server"]["spec"]
    spec = found["ScaledObject", "gr4ad-server"]["spec"]
    assert spec["scaleTargetRef"] == base["scaleTargetRef"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (base["minReplicas"], base["maxReplicas"])
    assert spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == base["behavior"]
    thresholds = [float(trigger["metadata"]["threshold"]) for trigger in spec["triggers"]]
    assert thresholds == [_number(m["pods"]["target"]["averageValue"]) for m in base["metrics"]]


def _number(quantity: str) -> float:
    return float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)


def test_the_scaled_object() -> None:
    """By hand: no schema of KEDA is here. Fields as keda.sh/docs has them (ScaledObject, Prometheus)."""
    manifest = overlay(KEDA)["ScaledObject", "gr4ad-server"]
    assert manifest["apiVersion"] == "keda.sh/v1alpha1"
    assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
    spec = manifest["spec"]
    assert spec.keys() == {
        "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "advanced", "triggers"
    }  # fmt: skip
    assert len({trigger["name"] for trigger in spec["triggers"]}) == 2
    for trigger in spec["triggers"]:
        assert trigger.keys() == {"type", "name", "metricType", "metadata"}
        assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
        assert trigger["metadata"].keys() == {"serverAddress", "query", "threshold", "ignoreNullValues"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert trigger["metadata"]["query"].startswith("sum(")  # AverageValue divides by the pods
        assert {name for name, _ in selectors(trigger["metadata"]["query"])} <= RECORDED


def test_the_gpu_overlay_changes_the_deployment_only() -> None:
    found = overlay(GPU)
    changed = [key for key, manifest in found.items() if manifest != MANIFESTS[key]]
    assert changed == [("Deployment", "gr4ad-server")]
    server, spec = container(found, "server"), pod(found)
    assert server["resources"]["limits"] == {**SERVER["resources"]["limits"], "nvidia.com/gpu": 1}
    assert {c["image"] for c in (*spec["initContainers"], *spec["containers"])} == {f"{SERVER['image']}-gpu"}
    assert {**container(found, "indexer"), "image": INDEXER["image"]} == INDEXER  # it gets no GPU
    other = SERVER.keys() - {"resources", "image"}
    assert {key: server[key] for key in other} == {key: SERVER[key] for key in other}
    assert spec["nodeSelector"]
