"""A real server whose queue is full: what comes then is refused at once, the rest is answered."""

from __future__ import annotations

import asyncio
import re
import threading
import time
import urllib.request
from collections import Counter

import pytest
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from examples.client import infer_inputs, send
from export.render import render
from launcher.triton_server import TritonServer
from loadtest.outcomes import REJECTED, classify
from serving.backend.outcomes import TELL_EVERY_S
from tests.pipeline import serving_config
from tests.serving.ask import request
from tests.waiting import wait_until

MAX_QUEUE, CROWD = 5, 400
NOWHERE = {"GR4AD_METRICS_URL": "http://127.0.0.1:9/metrics"}  # load control then knows no queue
_PENDING = re.compile(r'nv_inference_pending_request_count\{model="(\w+)".*\} (\d+)')


@pytest.fixture(scope="module", params=["fixed", "adaptive"])
def server(request, pipeline, tmp_path_factory):
    """Room for five; one batch of at most eight is in hand."""
    one, patient = {"max_queue": MAX_QUEUE, "scheduler_instances": 1}, {"slo_ms": 60_000.0}
    config = serving_config().model_copy(update={"load_control": request.param} | one | patient)
    repository = tmp_path_factory.mktemp("queue") / request.param
    render(pipeline.bundles, repository, index=pipeline.index, config=config)
    with TritonServer(repository, env=NOWHERE) as running:
        yield running
        assert running.poll() is None, running.log_tail(20)


class Peak:
    """Most requests that waited for each model, while the block runs."""

    def __init__(self, url: str) -> None:
        self.pending: Counter[str] = Counter()
        self._url, self._stop = url, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            with urllib.request.urlopen(self._url, timeout=5) as page:
                for model, count in _PENDING.findall(page.read().decode()):
                    self.pending[model] = max(self.pending[model], int(count))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


async def crowd(
    url: str, *, rows: int = 1, count: int = CROWD
) -> tuple[list[float], list[tuple[float, Exception]]]:
    """Seconds of answers, and of refusals with their error; all ask at once."""
    answered: list[float] = []
    refused: list[tuple[float, Exception]] = []
    async with tritonclient.grpc.aio.InferenceServerClient(url) as client:
        await client.is_server_ready()

        async def one(i: int) -> None:
            inputs, began = infer_inputs(request(num_ads=3, rows=rows, seed=i % 20)), time.monotonic()
            try:
                answer = await client.infer("gr4ad", inputs, client_timeout=60)
                assert (answer.as_numpy("ad_ids") >= 0).all()
                answered.append(time.monotonic() - began)
            except InferenceServerException as error:
                refused.append((time.monotonic() - began, error))

        await asyncio.gather(*(one(i) for i in range(count)))
    return answered, refused


def test_no_more_wait_than_may_and_the_rest_is_refused_at_once(server):
    for pause_s in (TELL_EVERY_S, 0.0):
        send(server.grpc_url, request())
        time.sleep(pause_s)
    before = ended(server)
    with Peak(server.metrics_url) as peak:
        answered, refused = asyncio.run(crowd(server.grpc_url))
    assert len(answered) + len(refused) == CROWD
    assert len(answered) >= MAX_QUEUE
    assert len(refused) > CROWD / 2
    assert {classify(error) for _, error in refused} == {REJECTED}
    assert all(f"at most {MAX_QUEUE} may" in str(error) for _, error in refused)
    assert peak.pending["beam_scheduler"] <= MAX_QUEUE + serving_config().max_batch_size, peak.pending
    assert sorted(s for s, _ in refused)[len(refused) // 2] < max(answered)
    time.sleep(TELL_EVERY_S)
    send(server.grpc_url, request())
    assert ended(server) - before == {"answered": len(answered) + 1, "rejected": len(refused)}
    wait_until(lambda: answers(server, "grpc"), timeout_s=10, what="the server itself again")


def ended(server) -> Counter[str]:
    """Requests so far, by how they ended."""
    with urllib.request.urlopen(server.metrics_url, timeout=5) as page:
        text = page.read().decode()
    found = re.findall(r'gr4ad_requests_total\{.*?outcome="(\w+)".*?\} (\S+)', text)
    return sum((Counter({outcome: int(float(count))}) for outcome, count in found), Counter())


def answers(server, protocol: str) -> bool:
    url = server.grpc_url if protocol == "grpc" else server.http_url
    try:
        return bool((send(url, request(num_ads=2), protocol=protocol)["ad_ids"] >= 0).all())
    except InferenceServerException:
        return False


def test_a_refusal_over_http_is_503(server):
    """Many clients at once, until one is refused."""
    seen: list[BaseException] = []

    def ask() -> None:
        try:
            send(server.http_url, request(num_ads=3), protocol="http")
        except InferenceServerException as error:
            seen.append(error)

    def rush() -> bool:
        threads = [threading.Thread(target=ask) for _ in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return bool(seen)

    wait_until(rush, timeout_s=30, what="a refusal")
    assert {error.status() for error in seen} == {"503"}
    assert {classify(error) for error in seen} == {REJECTED}


def test_a_crowd_is_worked_off_without_a_pause(pipeline, tmp_path):
    """Triton forms the next batch while one is searched, and not when the next request happens to come in.

    With priorities, or a bound of its own queue, 300 such requests took five times as long as one by one.
    """
    config = serving_config().model_copy(update={"load_control": "fixed", "cache": "off"})
    render(pipeline.bundles, tmp_path / "r", index=pipeline.index, config=config)
    count, rows = 100, 4
    with TritonServer(tmp_path / "r") as running:
        url = running.grpc_url
        send(url, request())
        began = time.monotonic()
        for seed in range(20):
            send(url, request(num_ads=3, rows=rows, seed=seed))
        one_by_one = (time.monotonic() - began) / 20 * count
        began = time.monotonic()
        answered, refused = asyncio.run(crowd(url, rows=rows, count=count))
        took = time.monotonic() - began
    assert (len(answered), refused) == (count, [])
    assert took < one_by_one, (took, one_by_one)
