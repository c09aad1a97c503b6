"""Ranking by value through a real server that does so by default, corrects values and caches."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from examples.client import send
from export.render import render
from indexer.events.event import PauseEvent
from indexer.store.incoming import Incoming
from indexer.store.index_store import IndexStore
from launcher.triton_server import TritonServer
from serving.index.reader import MAX_WAIT_S
from serving.model.bundle import MANIFEST
from tests.pipeline import copy_of, serving_config
from tests.serving.ask import LIVE, Reference, assert_same, request, send_at_once
from tests.serving.test_load_control import metric

HITS = 'gr4ad_cache_lookups_total{process="beam_scheduler_0_0",result="hit"}'
CORRECTION = [[0.5, 0.5], [2.0, 0.0], [3.0, 2.0]]


@pytest.fixture(scope="module")
def valued(pipeline, tmp_path_factory):
    deployment = copy_of(pipeline, tmp_path_factory.mktemp("valued"))
    manifest = deployment.bundles / "1" / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"value_correction": CORRECTION}))
    config = serving_config().model_copy(
        update={"rank_by": "value", "cache": "local", "scheduler_instances": 1}
    )
    repository = deployment.repository.parent / "valued"
    render(deployment.bundles, repository, index=deployment.index, config=config)
    with TritonServer(repository) as server:
        yield deployment, server
        assert server.poll() is None, server.log_tail(20)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_preset_names_the_order_and_a_request_overrides_it(valued, protocol):
    deployment, server = valued
    reference = Reference.of(deployment)
    url = server.grpc_url if protocol == "grpc" else server.http_url
    tensors = request(num_ads=6, exclude=LIVE[::9].tolist(), seed=11)
    by_value, by_probability = (reference.answer(tensors, rank_by=by) for by in ("value", "probability"))
    assert by_value["ad_ids"].tolist() != by_probability["ad_ids"].tolist()
    plain = Reference(
        reference.snapshot, reference.executor, reference.value_table, type(reference.value_correction)()
    )
    assert not np.allclose(plain.answer(tensors)["expected_value"], by_probability["expected_value"])
    for parameters, expected in (
        ({}, by_value),
        ({"rank_by": "value"}, by_value),
        ({"rank_by": "probability"}, by_probability),
    ):
        assert_same(
            send(url, tensors, protocol=protocol, parameters={"cache": "bypass", **parameters}), expected
        )


@pytest.mark.parametrize("order", [("value", "probability"), ("probability", "value")])
def test_what_the_cache_keeps_of_one_order_answers_the_other(valued, order):
    deployment, server = valued
    reference = Reference.of(deployment)
    tensors = request(num_ads=12, history=9, seed=20 + len(order[0]))
    expected = {by: reference.answer(tensors, rank_by=by) for by in order}
    assert expected["value"]["ad_ids"].tolist() != expected["probability"]["ad_ids"].tolist()
    before = metric(server, HITS)
    for count, by in enumerate((*order, *order)):
        assert_same(send(server.grpc_url, tensors, parameters={"rank_by": by}), expected[by])
        assert metric(server, HITS) == before + count


def test_requests_of_mixed_sizes_and_orders_get_the_beams_of_their_own(valued):
    """Searched together, a request for many ads widens the last level; the answers of others stay theirs."""
    deployment, server = valued
    reference = Reference.of(deployment)
    asked = [
        (request(num_ads=n, seed=seed), ("value", "probability")[seed % 3 == 0])
        for seed, n in enumerate([1, 40, 3, 25, 2, 40, 5, 1] * 4)
    ]
    found = send_at_once(server.grpc_url, asked, parameter="rank_by")
    for (tensors, by), answer in zip(asked, found, strict=True):
        assert_same(answer, reference.answer(tensors, rank_by=by))


def test_a_cached_answer_by_value_is_the_rest_of_its_beams_after_a_pause(valued):
    deployment, server = valued
    tensors, reference = request(num_ads=20, history=7, seed=3), Reference.of(deployment)
    first, before = send(server.grpc_url, tensors), metric(server, HITS)
    assert_same(first, reference.answer(tensors, rank_by="value"))
    best = int(first["ad_ids"][0, 0])
    with IndexStore(deployment.index) as store:
        store.apply([Incoming(PauseEvent(ad_id=best, version=1), b"{}", "test")])
    time.sleep(MAX_WAIT_S)
    paused = send(server.grpc_url, tensors)
    assert metric(server, HITS) == before + 1  # of SIDs with several ads there are enough
    assert best not in paused["ad_ids"]
    assert_same(paused, reference.answer(tensors, rank_by="value", paused_since=[best]))
    worth = np.exp(paused["scores"][0].astype(np.float64)) * paused["expected_value"][0]
    assert (np.diff(worth) <= 0).all()
    assert (worth > 0).all()
