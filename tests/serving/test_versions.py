"""Versions in a real server: what may be in use stays, what is damaged does not answer, and it is seen."""

from __future__ import annotations

import re
import shutil
import threading
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from benchmarks.faults.publishes import publish_series
from benchmarks.faults.variants import add_variant
from examples.client import infer_inputs, send
from export.publish import Place, publish
from launcher.triton_server import TritonServer
from serving.model.current import CURRENT, point_current
from tests.pipeline import Pipeline, copy_of, serving_config
from tests.serving.ask import Reference, assert_same, request
from tests.unit.test_bundle import edit
from tests.waiting import wait_until


class Deployed:
    """A deployment that one test may change, and its server."""

    def __init__(self, pipeline: Pipeline, server: TritonServer) -> None:
        self.pipeline, self.server = pipeline, server
        self.place = Place(pipeline.bundles, pipeline.repository, pipeline.index, serving_config())
        self.tensors = request(num_ads=8)

    def load(self, name: str) -> None:
        self.server.admin.load(name)

    def add(self, version: int, **changes: object) -> None:
        add_variant(self.pipeline.bundles, version, source=1)
        if changes:
            edit(self.pipeline.bundles / str(version), **changes)

    def publish(self, version: int, **changes: object) -> None:
        self.add(version, **changes)
        assert publish(version, self.place, load=self.load)

    def ask(self) -> dict[str, np.ndarray]:
        return send(self.server.grpc_url, self.tensors)

    def version(self) -> int:
        return int(self.ask()["model_version"][0, 0])

    def refused(self) -> set[str]:
        """Reasons that the metrics page gives now; a process changes its own in a batch."""
        with urllib.request.urlopen(self.server.metrics_url, timeout=5) as page:
            lines = re.findall(r'^gr4ad_version_refused{.*reason="(\w+)".*} 1', page.read().decode(), re.M)
        return set(lines)


@pytest.fixture
def deployed(pipeline, tmp_path):
    copied = copy_of(pipeline, tmp_path)
    with TritonServer(copied.repository) as running:
        yield Deployed(copied, running)
        assert running.poll() is None


def test_versions_that_wait_for_their_tokenizer_do_not_take_the_one_in_use_away(deployed):
    """Published with the repository of the last two, every request failed after the second."""
    first = Reference.of(deployed.pipeline).answer(deployed.tensors)
    for version in (2, 3):
        deployed.publish(version, tokenizer_id=f"new-{version}")
        for _ in range(3):
            assert_same(deployed.ask(), first)
    wait_until(lambda: deployed.ask() and deployed.refused() == {"generation"}, what="the refusal is shown")
    deployed.publish(4)
    wait_until(lambda: deployed.version() == 4 and deployed.refused() == set(), what="version 4")


def _answers_with(deployed, version: int) -> bool:
    try:
        return deployed.version() == version
    except InferenceServerException:  # half of the graphs are those of one version, half of the other
        return False


@pytest.mark.alone
def test_graphs_that_are_gone_are_told_of_and_come_back(deployed):
    deployed.publish(2)
    wait_until(lambda: deployed.version() == 2, what="version 2")
    repository, aside = deployed.pipeline.repository, deployed.pipeline.folder / "aside"
    graphs = sorted(repository.glob("lazyar_*"))
    for graph in graphs:  # somebody takes the version in use away
        shutil.move(graph / "2", aside / graph.name / "2")
        deployed.load(graph.name)
    assert [deployed.version() for _ in range(4)] == [1] * 4  # nobody fails: 1 is still there
    for graph in graphs:
        shutil.move(aside / graph.name / "2", graph / "2")
        shutil.move(graph / "1", aside / graph.name / "1")
        deployed.load(graph.name)
    wait_until(lambda: _answers_with(deployed, 2), what="the version of CURRENT")
    for graph in graphs:
        deployed.server.admin.unload(graph.name)
    text = "model version .: its graphs are not loaded any more; no version can answer: version .: "
    for _ in range(2):
        with pytest.raises(InferenceServerException, match=text):
            deployed.ask()
    for graph in graphs:
        deployed.load(graph.name)
    wait_until(lambda: deployed.version() == 2, what="version 2 without a hand")


def test_a_graph_that_was_damaged_after_rendering_does_not_answer(deployed):
    """It loaded with 200, and gave other answers."""
    first = deployed.ask()
    deployed.add(2)

    def damaged(name: str) -> None:
        graph = deployed.pipeline.repository / "lazyar_tail_2" / "2" / "model.onnx"
        if name == "lazyar_tail_2" and graph.exists():
            data = bytearray(graph.read_bytes())
            data[len(data) // 2] ^= 1
            graph.write_bytes(data)
        deployed.load(name)

    assert publish(2, deployed.place, load=damaged)
    wait_until(lambda: deployed.ask() and deployed.refused() == {"files"}, what="the refusal is shown")
    assert_same(deployed.ask(), {name: values[0] for name, values in first.items()})
    with TritonServer(deployed.pipeline.repository) as again:  # nor does it keep a server from starting
        assert send(again.grpc_url, deployed.tensors)["model_version"].tolist() == [[1]]
    assert publish(2, deployed.place, load=deployed.load)
    wait_until(lambda: deployed.version() == 2, what="version 2")


def test_a_bundle_that_is_not_what_it_says_does_not_answer(deployed):
    """Its hashes fit and its graphs load: the scheduler finds out by running them."""
    first = deployed.ask()
    deployed.publish(2, value_means=[0.5, 1.0, 2.0], value_edges=[0.7, 1.5])
    wait_until(lambda: deployed.ask() and deployed.refused() == {"answers"}, what="the refusal is shown")
    assert_same(deployed.ask(), {name: values[0] for name, values in first.items()})


@pytest.mark.parametrize("text", [b"9" * 5_000, "²".encode(), b"", b"-1", b"\xff" * 10])
def test_a_current_that_names_nothing(deployed, text):
    current = Path(deployed.pipeline.bundles, CURRENT)
    current.write_bytes(text)
    wait_until(lambda: deployed.version() == 1 and deployed.refused() == {"manifest"}, what="the refusal")
    point_current(deployed.pipeline.bundles, 1)
    wait_until(lambda: deployed.version() == 1 and deployed.refused() == set(), what="its end")


def test_a_start_with_a_version_that_cannot_be_used(pipeline, tmp_path):
    """A supervisor starts the server again, whatever was published last."""
    copied = copy_of(pipeline, tmp_path)
    add_variant(copied.bundles, 2, source=1)
    point_current(copied.bundles, 2)
    edit(copied.bundles / "2", tokenizer_id="another")
    with TritonServer(copied.repository) as server:
        deployed = Deployed(copied, server)
        assert deployed.version() == 1
        wait_until(lambda: deployed.ask() and deployed.refused() == {"graphs"}, what="the refusal is shown")


def test_a_row_of_publishes_under_load(deployed):
    """None fails, and no answer is of two versions."""
    requests, local = [request(num_ads=8, seed=seed) for seed in range(6)], threading.local()

    def ask(number: int) -> dict[str, np.ndarray]:
        if not hasattr(local, "client"):
            local.client = tritonclient.grpc.InferenceServerClient(deployed.server.grpc_url)
        inputs = infer_inputs(requests[number % len(requests)])
        found = local.client.infer("gr4ad", inputs, client_timeout=20)
        return {o.name: found.as_numpy(o.name) for o in found.get_response().outputs}

    def processes() -> list[psutil.Process]:
        server = psutil.Process(deployed.server.pid)
        return [server, *server.children(recursive=True)]

    found = publish_series(
        ask,
        deployed.place,
        requests=requests,
        load=deployed.load,
        processes=processes,
        count=6,
        every_s=0.5,
    )
    assert found["publish_failed_requests"] == 0, found
    assert found["mixed_versions"] == 0, found
    assert found["last_seen"]
    assert found["versions_seen"] > 3
    assert found["files"][0] == found["files"][1]
