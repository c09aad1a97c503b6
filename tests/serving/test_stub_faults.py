"""Processes of Python models that die, stand still or cannot come back, with a real server under traffic."""

from __future__ import annotations

import contextlib
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults.inject import away, kill_stub, stubs_of, suspend_stub, truncated
from benchmarks.faults.traffic import Outcome, Traffic
from examples.client import send
from export.bundle import write_bundle
from export.render import render
from launcher.stubs import SHM, stubs
from launcher.triton_server import TritonServer
from serving.model.current import point_current
from tests.pipeline import Pipeline, checkpoint, copy_of, exported, serving_config
from tests.serving.ask import Reference, request
from tests.waiting import wait_until

RECOVERS_S = 10.0
TIDY_S = 20.0
STUBS = 8  # two schedulers, the entry, the resolver, four graphs

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # what dies is timed


@pytest.fixture(scope="module")
def own(pipeline, tmp_path_factory) -> Iterator[tuple[Pipeline, TritonServer]]:
    """A deployment that tests may harm, and its server."""
    copied = copy_of(pipeline, tmp_path_factory.mktemp("own"))
    with TritonServer(copied.repository) as running:
        yield copied, running
        assert running.poll() is None, running.log_tail()


def _traffic(deployment: Pipeline, server: TritonServer, *, clients: int = 3) -> Traffic:
    tensors = request(num_ads=9, history=12)
    expected = Reference.of(deployment).answer(tensors)["ad_ids"].tolist()

    def ask() -> str | None:
        answer = send(server.grpc_url, tensors, timeout_s=20)
        is_other = answer["model_version"].tolist() == [[1]] and answer["ad_ids"][0].tolist() != expected
        return f"expected {expected}, got {answer['ad_ids'][0].tolist()}" if is_other else None

    return Traffic(ask, clients=clients)


def _is_whole(server: TritonServer) -> bool:
    return len(stubs(server.shm_prefix)) == STUBS == len(_regions(server))


def _is_ready(server: TritonServer) -> bool:
    try:
        return urllib.request.urlopen(f"http://{server.http_url}/v2/health/ready", timeout=10).status == 200
    except urllib.error.HTTPError:
        return False


def _regions(server: TritonServer) -> list[Path]:
    found = []
    for path in SHM.glob(f"{server.shm_prefix}*"):
        with contextlib.suppress(FileNotFoundError):  # freed at this moment
            found += [path] * (path.stat().st_size > 1 << 20)
    return found


def _recovers(server: TritonServer, traffic: Traffic, *, since: float) -> Outcome:
    """Waits for two seconds of nothing but good answers."""

    def is_calm() -> bool:
        recent = [s for s in traffic.sent if s.until > traffic.now - 2]
        return traffic.now - since > 3 and len(recent) > 10 and all(s.problem is None for s in recent)

    wait_until(is_calm, timeout_s=RECOVERS_S + 5, every_s=0.1, what="two seconds of good answers")
    outcome = traffic.outcome(since)
    assert outcome.recovery_s < RECOVERS_S, outcome
    assert not [p for p in outcome.problems if p.startswith("expected")], outcome
    assert server.poll() is None, server.log_tail()
    return outcome


@pytest.mark.parametrize("model", ["ad_resolver", "beam_scheduler", "lazyar_tail_2", "request_features"])
def test_a_killed_process_comes_back_and_leaves_nothing(own, model):
    deployment, server = own
    before = {stub.pid for stub in stubs_of(server.shm_prefix, model)}
    with _traffic(deployment, server) as traffic:
        since = traffic.now
        pid = kill_stub(server.shm_prefix, model)
        outcome = _recovers(server, traffic, since=since)
        assert outcome.failed > 0  # otherwise nothing was tried
        wait_until(
            lambda: _is_whole(server), timeout_s=TIDY_S, what="as many processes and regions as before"
        )
    now = {stub.pid for stub in stubs_of(server.shm_prefix, model)}
    assert pid not in now
    assert len(now) == len(before)


@pytest.mark.parametrize("seconds", [1.5, 5.0])
def test_a_process_that_stands_still_does_not_end_the_server(own, seconds):
    deployment, server = own
    with _traffic(deployment, server) as traffic:
        since = traffic.now
        suspend_stub(server.shm_prefix, "ad_resolver", seconds=seconds)
        _recovers(server, traffic, since=since)
    wait_until(lambda: _is_whole(server), timeout_s=TIDY_S, what="as many processes and regions as before")


def test_a_short_stop_is_left_alone(own):
    _, server = own
    pid = suspend_stub(server.shm_prefix, "ad_resolver", seconds=0.4)
    time.sleep(1.0)
    assert pid in {stub.pid for stub in stubs(server.shm_prefix)}


def test_a_model_that_cannot_be_loaded_is_tried_until_it_can(own):
    """Its index is away for a while: one failed try must not be the last."""
    deployment, server = own
    with _traffic(deployment, server) as traffic:
        with away(deployment.index):
            kill_stub(server.shm_prefix, "ad_resolver")
            time.sleep(5)
            assert [s for s in traffic.sent if s.until > traffic.now - 1 and s.problem is None] == []
            assert not _is_ready(server)
        _recovers(server, traffic, since=traffic.now)
        assert _is_ready(server)
    wait_until(lambda: _is_whole(server), timeout_s=TIDY_S, what="as many processes and regions as before")


def test_a_base_array_that_is_cut_off_kills_nobody_for_good(own):
    deployment, server = own
    arrays = [path for path in deployment.index.glob("base/**/*") if path.is_file()]
    with _traffic(deployment, server) as traffic:
        with contextlib.ExitStack() as stack:
            for path in arrays:
                stack.enter_context(truncated(path))
            time.sleep(4)
            assert not _is_ready(server)
        _recovers(server, traffic, since=traffic.now)
        assert _is_ready(server)
    wait_until(lambda: _is_whole(server), timeout_s=TIDY_S, what="as many processes and regions as before")


def test_a_series_of_publishes_fails_no_request(own, other_graphs):
    """Versions come and are retired while the watch looks."""
    deployment, server = own
    logged = server.log_tail(1000).count("has lost a process")
    with _traffic(deployment, server, clients=2) as traffic:
        for version in range(2, 8):
            made = checkpoint(seed=5, tokenizer_id=deployment.tokenizer_id)
            with exported(other_graphs):
                write_bundle(made, deployment.bundles, tokenizer=deployment.tokenizer, activate=False)
            render(deployment.bundles, deployment.repository, index=deployment.index, config=serving_config())
            for model in server.admin.side_by_side():
                server.admin.load(model)
            point_current(deployment.bundles, version)
            time.sleep(1.5)
    failed = [s for s in traffic.sent if s.problem is not None]
    assert failed == []
    assert server.log_tail(1000).count("has lost a process") == logged
    assert send(server.grpc_url, request())["model_version"].tolist() == [[version]]
