"""A real server whose beams breathe, that caches, and that turns away what it has no time for."""

from __future__ import annotations

import asyncio
import collections
import time
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from examples.client import infer_inputs, send
from export.render import render
from indexer.events.event import PauseEvent
from indexer.store.incoming import Incoming
from indexer.store.index_store import IndexStore
from launcher.triton_server import TritonServer
from serving.index.reader import MAX_WAIT_S
from tests.pipeline import copy_of, serving_config
from tests.serving.ask import LIVE, request
from tests.waiting import wait_until

BASE = [4, 8, 16, 6]
CROWD = 600


@pytest.fixture(scope="module")
def adaptive(pipeline, tmp_path_factory):
    deployment = copy_of(pipeline, tmp_path_factory.mktemp("adaptive"))
    config = serving_config().model_copy(
        update={"load_control": "adaptive", "slo_ms": 400.0, "cache": "local", "scheduler_instances": 1}
    )
    repository = deployment.repository.parent / "adaptive"
    render(deployment.bundles, repository, index=deployment.index, config=config)
    with TritonServer(repository) as server:
        yield deployment, server
        assert server.poll() is None, server.log_tail(20)


def metric(server, name: str) -> float:
    """Sum over the series whose line begins like that."""
    time.sleep(0.25)  # the gateway shows what Triton's page was up to 0.2 s ago
    with urllib.request.urlopen(server.metrics_url, timeout=5) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_beams_grow_while_there_is_nothing_to_do(adaptive):
    _, server = adaptive
    seen = []

    def wider() -> bool:
        seen.append(send(server.grpc_url, request(num_ads=2), parameters={"cache": "bypass"}))
        return bool(seen[-1]["beam_widths"][0, 0] > BASE[0])

    wait_until(wider, timeout_s=30, what="wider beams")
    assert not seen[-1]["degraded"][0, 0]
    assert metric(server, "gr4ad_rungs_above_base") > 0
    assert metric(server, "gr4ad_beam_rows{") > metric(server, "gr4ad_beam_rows_base")
    assert metric(server, "gr4ad_level_seconds_count") >= 4 * len(seen)
    assert metric(server, "gr4ad_searches_total{") >= len(seen)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_deadline_that_cannot_be_met_is_told_at_once(adaptive, protocol):
    _, server = adaptive
    url = server.grpc_url if protocol == "grpc" else server.http_url
    for _ in range(4):  # it must know what a search takes
        send(server.grpc_url, request(), parameters={"cache": "bypass"})
    with pytest.raises(InferenceServerException, match="deadline (leaves . ms|has passed)") as e:
        send(url, request(), protocol=protocol, parameters={"cache": "bypass", "deadline_ms": 1})
    assert e.value.status() == ("StatusCode.UNAVAILABLE" if protocol == "grpc" else "503")
    assert send(url, request(), protocol=protocol, parameters={"deadline_ms": 20_000})["ad_ids"][0, 0] >= 0
    with pytest.raises(InferenceServerException, match="deadline_ms: expected a whole number >= 1, got 0"):
        send(url, request(), protocol=protocol, parameters={"deadline_ms": 0})


def test_repeats_come_from_the_cache_and_a_paused_ad_never_does(adaptive):
    deployment, server = adaptive
    tensors = request(num_ads=5, history=7, seed=3)
    first = send(server.grpc_url, tensors)
    hits = metric(server, 'gr4ad_cache_lookups_total{process="beam_scheduler_0_0",result="hit"}')
    again = send(server.grpc_url, tensors)
    assert metric(server, 'gr4ad_cache_lookups_total{process="beam_scheduler_0_0",result="hit"}') == hits + 1
    np.testing.assert_array_equal(first["ad_ids"], again["ad_ids"])
    np.testing.assert_array_equal(first["scores"], again["scores"])
    best = int(first["ad_ids"][0, 0])
    with IndexStore(deployment.index) as store:
        store.apply([Incoming(PauseEvent(ad_id=best, version=1), b"{}", "test")])
    time.sleep(MAX_WAIT_S)
    paused = send(server.grpc_url, tensors)
    assert best not in paused["ad_ids"]
    assert (paused["ad_ids"] >= 0).all()
    assert metric(server, 'gr4ad_cache_lookups_total{process="beam_scheduler_0_0",result="hit"}') >= hits + 1
    with pytest.raises(InferenceServerException, match='cache: expected "use" or "bypass"'):
        send(server.grpc_url, tensors, parameters={"cache": "never"})


async def crowd(url: str, count: int, *, leave_after: float | None = None) -> collections.Counter:
    """Requests all at once; clients that `leave_after` seconds have no answer cancel."""
    outcomes: collections.Counter = collections.Counter()
    async with tritonclient.grpc.aio.InferenceServerClient(url) as client:
        await client.is_server_ready()

        async def one(i: int) -> None:
            asked = request(num_ads=3, seed=i, exclude=LIVE[i % 9 : i % 9 + 3].tolist())
            call = client.infer(
                "gr4ad",
                infer_inputs(asked),
                parameters={"cache": "bypass"},
                client_timeout=60,
            )
            try:
                answer = await (call if leave_after is None else asyncio.wait_for(call, leave_after))
                outcomes["ok" if (answer.as_numpy("ad_ids") >= 0).all() else "wrong"] += 1
            except TimeoutError:
                outcomes["left"] += 1
            except InferenceServerException as error:
                outcomes[f"{error.status()}".removeprefix("StatusCode.")] += 1

        await asyncio.gather(*(one(i) for i in range(count)))
    return outcomes


@pytest.mark.alone
def test_a_crowd_is_answered_or_turned_away_and_the_server_recovers(adaptive):
    _, server = adaptive
    outcomes = asyncio.run(crowd(server.grpc_url, CROWD))
    assert outcomes.keys() <= {"ok", "UNAVAILABLE"}, outcomes
    assert outcomes["ok"] > 0
    assert outcomes["UNAVAILABLE"] > 0
    assert metric(server, "gr4ad_rejected_total") > 0
    wait_until(lambda: _quick(server), timeout_s=30, what="the server itself again")


@pytest.mark.alone
def test_clients_that_leave_are_not_searched_for(adaptive):
    """Of a crowd that has gone, hardly anybody is searched, and the next client is served at once."""
    _, server = adaptive
    before = metric(server, 'gr4ad_searches_total{process="beam_scheduler_0_0",result="searched"}')
    outcomes = asyncio.run(crowd(server.grpc_url, CROWD, leave_after=0.05))
    assert outcomes["left"] > CROWD / 4, outcomes
    wait_until(lambda: _quick(server), timeout_s=30, what="the server itself again")
    searched = metric(server, 'gr4ad_searches_total{process="beam_scheduler_0_0",result="searched"}') - before
    assert searched < CROWD


def _quick(server) -> bool:
    began = time.monotonic()
    try:
        return bool((send(server.grpc_url, request(num_ads=2))["ad_ids"] >= 0).all()) and (
            time.monotonic() - began < 1.0
        )
    except InferenceServerException:
        return False
