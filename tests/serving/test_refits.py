"""New weights in a real server whose schedulers run the graphs: they follow CURRENT by themselves."""

from __future__ import annotations

import re
import shutil
import time
import urllib.request

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.faults.publishes import is_of
from benchmarks.faults.variants import Expected, add_variant
from benchmarks.loop.publishing import steady
from examples.client import send
from export.canary_watch import promote, roll_back_canary
from export.publish import Place, publish
from export.publisher import Publisher
from export.render import render
from export.versions import version_before
from launcher.triton_server import TritonServer
from serving.files import sha256
from serving.model.bundle import read_manifest
from serving.model.canary import read_canary
from serving.model.current import point_current
from tests.pipeline import WIDTHS, checkpoint, copy_of, serving_config
from tests.serving.ask import request
from tests.unit.test_bundle import edit
from tests.waiting import wait_until
from training.preset.preset import Preset


@pytest.fixture
def place(pipeline, tmp_path):
    """With a result cache: its entries are of one version, too."""
    config = serving_config().model_copy(update={"graph_calls": "in_process", "cache": "local"})
    made = copy_of(pipeline, tmp_path)
    shutil.rmtree(made.repository)
    render(made.bundles, made.repository, index=made.index, config=config)
    return Place(made.bundles, made.repository, made.index, config)


def load(name):
    raise AssertionError(f"{name} was to be loaded")


def trained(pipeline, *, seed):
    return checkpoint(seed=seed, tokenizer_id=pipeline.tokenizer_id)


def test_a_row_of_refits_under_load(pipeline, place):
    """None fails, no answer is of two versions or of an older one's cache, and a rollback is followed."""
    requests = [request(num_ads=8, seed=seed) for seed in range(6)]
    publisher = Publisher(place, Preset.load("configs/demo.yaml"), load, None)
    with TritonServer(place.repository) as server:

        def ask(number):
            return send(server.grpc_url, requests[number % len(requests)])

        def version():
            return int(ask(0)["model_version"][0, 0])

        with steady(ask, qps=20) as seen:
            for seed in range(1, 6):
                made = publisher.publish(trained(pipeline, seed=seed))
                wait_until(lambda: any(a.version == made for a in seen), what=f"version {made}")  # noqa: B023
            back = version_before(place.bundles)
            assert publish(back, place, load=load, roll_back=True)
            wait_until(lambda: version() == back, what="the version of before")
        assert server.poll() is None
    assert [asked.failure for asked in seen if asked.failure] == []
    assert {asked.version for asked in seen} == {1, 2, 3, 4, 5, 6}
    expected = Expected(place.bundles, place.index, requests, widths=WIDTHS)
    for asked in seen:
        assert is_of(asked.answer, expected.of(asked.version)[asked.number % len(requests)]), asked.version


def test_a_canary_answers_its_share_until_it_is_promoted_or_ended(pipeline, place):
    """By the id of the request alone; no answer is of two versions, and a share that is over is over."""
    requests = [request(num_ads=8, seed=seed) for seed in range(6)]
    publisher = Publisher(place, Preset.load("configs/demo.yaml", ["publish.canary_share=0.3"]), load, None)
    with TritonServer(place.repository) as server:

        def ask(number):
            return send(server.grpc_url, requests[number % len(requests)], request_id=f"request {number}")

        def metrics():
            with urllib.request.urlopen(server.metrics_url, timeout=5) as page:
                return page.read().decode()

        with steady(ask, qps=20) as seen:
            canaries = []
            for seed in (1, 2):
                version = publisher.publish(trained(pipeline, seed=seed))
                canaries.append(read_canary(place.bundles))
                assert canaries[-1].version == version
                wait_until(lambda: sum(a.version == version for a in seen) > 5, what="answers")  # noqa: B023
                pages = re.findall("^gr4ad_canary_version{.*} ([0-9.]+)$", metrics(), re.M)
                assert {float(value) for value in pages} <= {0.0, float(version)}
                assert float(version) in map(float, pages)
                if seed == 1:
                    assert promote(canaries[0], place, load=load, reason="by command")
                    wait_until(
                        lambda: all(a.version == version for a in seen[-8:]),  # noqa: B023
                        what="the canary everywhere",
                    )
            assert roll_back_canary(place.bundles, canaries[1], reason="by command")
            wait_until(lambda: all(a.version == canaries[0].version for a in seen[-8:]), what="it has ended")
        tensors = requests[0]
        assert send(server.grpc_url, tensors)["model_version"].tolist() == [[canaries[0].version]]
    assert [asked.failure for asked in seen if asked.failure] == []
    assert {asked.version for asked in seen} == {1, 2, 3}
    second = [a for a in seen if a.version == canaries[1].version]
    assert all(canaries[1].takes(f"request {a.number}") for a in second)
    expected = Expected(place.bundles, place.index, requests, widths=WIDTHS)
    for asked in seen:
        assert is_of(asked.answer, expected.of(asked.version)[asked.number % len(requests)]), asked.version


def test_weights_that_are_no_numbers_do_not_answer(pipeline, place):
    """Planted past the publisher, and its hashes fit: the first run of the graphs tells."""
    add_variant(place.bundles, 2, source=1)
    path = place.bundles / "2" / "tail_3.onnx"
    graph = onnx.load(str(path))
    weight = max(graph.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32("nan"), weight.name))
    onnx.save(graph, str(path))
    digests = read_manifest(path.parent, verify=False).sha256 | {path.name: sha256(path)}
    edit(path.parent, sha256=digests)
    read_manifest(path.parent)  # whole, as far as hashes go
    tensors = request(num_ads=8)
    with TritonServer(place.repository) as server:
        first = send(server.grpc_url, tensors)
        point_current(place.bundles, 2)
        for _ in range(20):
            found = send(server.grpc_url, tensors)
            assert found["model_version"].tolist() == [[1]]
            np.testing.assert_array_equal(found["ad_ids"], first["ad_ids"])
            time.sleep(0.1)
        publisher = Publisher(place, Preset.load("configs/demo.yaml"), load, None)
        assert publisher.publish(trained(pipeline, seed=3)) == 3
        wait_until(lambda: send(server.grpc_url, tensors)["model_version"][0, 0] == 3, what="version 3")
