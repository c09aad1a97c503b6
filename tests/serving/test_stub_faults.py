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
from benchmarks.faults.observer import Answer, Observer, Seen, Verdict, judge
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
STUBS = 9  # two schedulers, the entry, the resolver, the keys, four graphs

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # what dies is timed


@pytest.fixture(scope="module")
def own(pipeline, tmp_path_factory) -> Iterator[tuple[Pipeline, TritonServer]]:
    """A deployment that tests may harm, and its server."""
    copied = copy_of(pipeline, tmp_path_factory.mktemp("own"))
    with TritonServer(copied.repository) as running:
        yield copied, running
        assert running.poll() is None, running.log_tail()


def _users(deployment: Pipeline, server: TritonServer) -> Observer:
    """Of later versions, which a test may publish, any answer will do."""
    tensors = request(num_ads=9, history=12)
    expected = {"ad_ids": Reference.of(deployment).answer(tensors)["ad_ids"][None]}

    def ask(_: int) -> Answer:
        answer = send(server.grpc_url, tensors, timeout_s=5)
        return answer if answer["model_version"].tolist() == [[1]] else expected

    return Observer(ask, lambda: _is_ready(server), expected=[expected], every_s=0.1)


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


def _recovers(server: TritonServer, seen: Seen, *, at: float, over: float | None = None) -> Verdict:
    """Waits until nothing but good answers come, and health says yes."""
    wait_until(
        lambda: judge(seen, at=at, over=over).recovery_s is not None,
        timeout_s=RECOVERS_S + 10,
        every_s=0.1,
        what="good answers only",
    )
    verdict = judge(seen, at=at, over=over)
    assert verdict.recovery_s is not None
    assert verdict.recovery_s < RECOVERS_S, verdict
    assert verdict.wrong == 0, verdict
    assert server.poll() is None, server.log_tail()
    return verdict


@pytest.mark.parametrize("model", ["ad_resolver", "beam_scheduler", "lazyar_tail_2", "request_features"])
def test_a_killed_process_comes_back_and_leaves_nothing(own, model):
    deployment, server = own
    before = {stub.pid for stub in stubs_of(server.shm_prefix, model)}
    with _users(deployment, server).watching() as seen:
        at = time.monotonic()
        pid = kill_stub(server.shm_prefix, model)
        wait_until(lambda: judge(seen, at=at).failed, what="a failure")  # otherwise nothing was tried
        _recovers(server, seen, at=at)
        wait_until(
            lambda: _is_whole(server), timeout_s=TIDY_S, what="as many processes and regions as before"
        )
    now = {stub.pid for stub in stubs_of(server.shm_prefix, model)}
    assert pid not in now
    assert len(now) == len(before)


@pytest.mark.parametrize("seconds", [1.5, 5.0])
def test_a_process_that_stands_still_does_not_end_the_server(own, seconds):
    deployment, server = own
    with _users(deployment, server).watching() as seen:
        at = time.monotonic()
        suspend_stub(server.shm_prefix, "ad_resolver", seconds=seconds)
        _recovers(server, seen, at=at)
    wait_until(lambda: _is_whole(server), timeout_s=TIDY_S, what="as many processes and regions as before")


def test_a_short_stop_is_left_alone(own):
    _, server = own
    pid = suspend_stub(server.shm_prefix, "ad_resolver", seconds=0.4)
    time.sleep(1.0)
    assert pid in {stub.pid for stub in stubs(server.shm_prefix)}


def test_a_model_that_cannot_be_loaded_is_tried_until_it_can(own):
    """Its index is away for a while: one failed try must not be the last."""
    deployment, server = own
    with _users(deployment, server).watching() as seen:
        at = time.monotonic()
        with away(deployment.index):
            kill_stub(server.shm_prefix, "ad_resolver")
            time.sleep(5)
            last = time.monotonic() - 1
            assert [asked for asked in list(seen.asked) if asked.ended > last and asked.outcome == "ok"] == []
            assert not _is_ready(server)
        _recovers(server, seen, at=at, over=time.monotonic())
        assert _is_ready(server)
    wait_until(lambda: _is_whole(server), timeout_s=TIDY_S, what="as many processes and regions as before")


def test_a_base_array_that_is_cut_off_kills_nobody_for_good(own):
    deployment, server = own
    arrays = [path for path in deployment.index.glob("base/**/*") if path.is_file()]
    with _users(deployment, server).watching() as seen:
        at = time.monotonic()
        with contextlib.ExitStack() as stack:
            for path in arrays:
                stack.enter_context(truncated(path))
            time.sleep(4)
            assert not _is_ready(server)
        _recovers(server, seen, at=at, over=time.monotonic())
        assert _is_ready(server)
    wait_until(lambda: _is_whole(server), timeout_s=TIDY_S, what="as many processes and regions as before")


def test_a_series_of_publishes_fails_no_request(own, other_graphs):
    """Versions come and are retired while the watch looks."""
    deployment, server = own
    logged = server.log_tail(1000).count("has lost a process")
    with _users(deployment, server).watching() as seen:
        for version in range(2, 8):
            made = checkpoint(seed=5, tokenizer_id=deployment.tokenizer_id)
            with exported(other_graphs):
                write_bundle(made, deployment.bundles, tokenizer=deployment.tokenizer, activate=False)
            render(deployment.bundles, deployment.repository, index=deployment.index, config=serving_config())
            for model in server.admin.side_by_side():
                server.admin.load(model)
            point_current(deployment.bundles, version)
            time.sleep(1.5)
    assert len(seen.asked) > 50
    assert [asked for asked in seen.asked if asked.outcome != "ok"] == []
    assert server.log_tail(1000).count("has lost a process") == logged
    assert send(server.grpc_url, request())["model_version"].tolist() == [[version]]
