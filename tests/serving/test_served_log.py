"""The served log through a real server: what is written is what was answered, and nobody waits for it."""

from __future__ import annotations

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from examples.client import send
from export.render import render
from feedback.store.histories import Histories
from launcher.indexer_process import FeedbackProcess
from launcher.triton_server import TritonServer
from serving.model.features import fill_slots
from serving.served_log.record import ServedRecord
from serving.served_log.redis_stream import FIELD
from serving.served_log.settings import ServedLogConfig
from tests.pipeline import serving_config
from tests.redis_server import RedisServer, needs_redis
from tests.served import written_records
from tests.serving.ask import NOW, Reference, assert_same, request
from tests.waiting import wait_until

NAME = "gr4ad_served_records_total"


def repository(pipeline, to, **served_log):
    """Rendered for a served log; the rest is as in all tests of this folder."""
    config = serving_config().model_copy(update={"served_log": ServedLogConfig(**served_log)})
    render(pipeline.bundles, to, index=pipeline.index, config=config)
    return to


@pytest.fixture(scope="module")
def logged(pipeline, tmp_path_factory):
    """A server that keeps its log in a folder."""
    folder = tmp_path_factory.mktemp("logged")
    log = folder / "log"
    with TritonServer(repository(pipeline, folder / "repository", sink="file", folder=str(log))) as server:
        yield server, log
        assert server.poll() is None, server.log_tail(20)


def test_what_was_answered_is_in_the_log_by_the_clients_id(logged, pipeline) -> None:
    server, log = logged
    reference = Reference.of(pipeline)
    answers = {}
    for seed, protocol in enumerate(("grpc", "http") * 3):
        url = server.grpc_url if protocol == "grpc" else server.http_url
        tensors = request(num_ads=3 + seed, history=5 * seed, exclude=[5], seed=seed)
        parameters = {"user_id": seed if seed % 2 else f"user {seed}", "rank_by": "value"}
        found = send(url, tensors, protocol=protocol, parameters=parameters, request_id=f"request {seed}")
        assert_same(found, reference.answer(tensors, rank_by="value"))
        answers[f"request {seed}"] = (seed, tensors, found)
    wait_until(lambda: len(written_records(log)) >= 6)
    records = {r.request_id: r for r in written_records(log)}
    assert records.keys() == answers.keys()
    for name, (seed, tensors, found) in answers.items():
        record = records[name]
        assert record.user_id == (seed if seed % 2 else f"user {seed}")
        assert (record.timestamp, record.num_ads, record.rank_by) == (NOW, 3 + seed, "value")
        assert abs(record.written - time.time()) < 60
        for column in ("ad_ids", "sids", "scores", "expected_value", "beam_widths"):
            np.testing.assert_array_equal(getattr(record, column), found[column][0], err_msg=column)
        assert record.degraded == found["degraded"][0, 0]
        assert record.model_version == found["model_version"][0, 0]
        assert record.index_version == found["index_version"][0, 0]
        # The context is what the model was given: searched again from the record, the answer is the same.
        features, beams = reference.beams(tensors)
        slots = fill_slots(
            reference.snapshot, np.array(record.slot_ads)[None], np.array(record.slots, np.int32)[None]
        )
        expected = fill_slots(reference.snapshot, features.slot_ads[None], features.slots[None])
        np.testing.assert_array_equal(slots, expected)
        assert record.profile == features.profile.tolist()


def test_rows_of_one_request_have_ids_of_their_own_and_some_outputs_are_enough(logged) -> None:
    server, log = logged
    before = len(written_records(log))
    send(server.grpc_url, request(rows=3), request_id="rows", outputs=["ad_ids"])
    send(server.grpc_url, request(), outputs=["scores"])
    wait_until(lambda: len(written_records(log)) == before + 4)
    names = [record.request_id for record in written_records(log)[before:]]
    assert sorted(names, key=str) == [None, "rows#0", "rows#1", "rows#2"]


def test_a_wrong_user_id_is_refused_before_the_search(logged) -> None:
    server, _ = logged
    for value, rows in ((-1, 1), ("", 1), (5, 2)):
        with pytest.raises(InferenceServerException, match="parameter user_id: expected"):
            send(server.grpc_url, request(rows=rows), parameters={"user_id": value})


def test_what_is_fed_back_is_in_the_context_of_the_users_next_request(logged, tmp_path) -> None:
    server, log = logged
    store, tensors = tmp_path / "store", request(history=2, seed=8)
    who = {"user_id": 77}
    shown = send(server.grpc_url, tensors, parameters=who, request_id="first")["ad_ids"][0].tolist()
    click = {"request_id": "first", "ad_id": shown[2], "behavior": "click", "timestamp": NOW + 1}
    options = (f"--store={store}", f"--served={log}")
    with FeedbackProcess(*options, log_file=tmp_path / "feedback.log") as service:
        asked = urllib.request.Request(
            f"{service.url}/feedback", json.dumps(click).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:
            assert json.loads(answer.read())["result"] == "applied"
        with Histories(store) as histories:
            wait_until(lambda: len(histories.of(77)))  # the record may have come after the click
            event = histories.of(77)
    parts = {"ad_ids": "ad_id", "behaviors": "behavior", "timestamps": "timestamp"}
    again = tensors | {"timestamp": np.array([[NOW + 2]])}
    for name, column in parts.items():
        old = tensors[f"history_{name}"]
        again[f"history_{name}"] = np.append(old, event[column].astype(old.dtype))[None]
    send(server.grpc_url, again, parameters=who, request_id="second")
    wait_until(lambda: any(r.request_id == "second" for r in written_records(log)))
    first, second = (
        next(r for r in written_records(log) if r.request_id == name) for name in ("first", "second")
    )
    assert shown[2] in second.slot_ads
    assert second.slots[second.slot_ads.index(shown[2])][0] == 2  # clicked
    assert second.slot_ads != first.slot_ads


@needs_redis
def test_with_redis_and_without_it_answers_are_the_same(pipeline, tmp_path) -> None:
    redis = RedisServer(tmp_path)
    reference = Reference.of(pipeline)
    try:
        folder = repository(
            pipeline, tmp_path / "repository", sink="redis", url=redis.url, stream="s", queue=8
        )
        with TritonServer(folder) as server:
            tensors = request(seed=3)
            send(server.grpc_url, tensors, request_id="there")
            wait_until(lambda: redis.client.xlen("s") == 1)
            ((_, fields),) = redis.client.xrange("s")
            assert ServedRecord.decode(fields[FIELD.encode()]).request_id == "there"
            redis.kill()
            expected = reference.answer(tensors)
            with ThreadPoolExecutor(4) as pool:
                answers = list(
                    pool.map(lambda n: send(server.grpc_url, tensors, request_id=str(n)), range(60))
                )
            for answer in answers:
                assert_same(answer, expected)
            wait_until(lambda: dropped(server) > 0)
            redis.start()
            wait_until(lambda: redis.client.xlen("s") > 1, timeout_s=20)  # what waited comes
            assert server.poll() is None
    finally:
        redis.close()


def dropped(server) -> float:
    """Value of the counter, after one more request, which has it told."""
    send(server.grpc_url, request())
    with urllib.request.urlopen(server.metrics_url, timeout=5) as page:
        lines = page.read().decode().splitlines()
    (value,) = (line.split()[-1] for line in lines if line.startswith(f"{NAME}{{") and "dropped" in line)
    return float(value)
