"""The gateway and a real server: what ends Triton's own HTTP server is refused, and health is a promise."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
import urllib.request

import numpy as np
import psutil
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from benchmarks.faults.inject import kill_stub
from examples.client import send
from launcher.triton_server import TritonServer
from tests.malformed_bodies import bomb, large_shape
from tests.malformed_http import message
from tests.malformed_sender import Sender
from tests.malformed_tensors import Case
from tests.serving.ask import Reference, assert_same, request
from tests.waiting import wait_until

CHUNKED = b"POST /v2/models/gr4ad/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
LOAD = "/v2/repository/models/x/load"
MODEL_PY = json.dumps({"parameters": {"config": "{}", "file:1/model.py": "cHJpbnQoMSk="}}).encode()

# What is sent, and status and text of the answer. Triton 24.10's own HTTP server ends on most of them, keeps
# hundreds of megabytes of the bomb, and runs the file that comes with a load as its own user.
HARMFUL = {
    "shape of INT32": (large_shape([1, 10**10]), "400", "shape of at most"),
    "shape of INT64": (large_shape([1, 10**10], datatype="INT64"), "400", "shape of at most"),
    "shape of FP64": (large_shape([1, 2**33], datatype="FP64"), "400", "shape of at most"),
    "shape of INT8": (large_shape([1, 2**40], datatype="INT8"), "400", "shape of at most"),
    "rows": (large_shape([10**10, 1]), "400", "shape of at most"),
    "deep JSON": (message(b"[" * 300_000), "400", "recursion limit"),
    "chunks of a byte": (CHUNKED + b"1\r\n[\r\n" * 100_000 + b"0\r\n\r\n", "413", "10,000 chunks"),
    "gzip bomb": (message(bomb(400, "gzip"), headers={"Content-Encoding": "gzip"}), "413", "once unpacked"),
    "a file to be loaded": (message(MODEL_PY, target=LOAD), "403", "inference, metadata or health"),
    "the same from a page": (
        message(
            MODEL_PY, target=LOAD, headers={"Content-Type": "text/plain", "Origin": "http://evil.example"}
        ),
        "403",
        "web page",
    ),
}


@pytest.fixture(scope="module")
def reference(pipeline):
    return Reference.of(pipeline)


def _ask(server, method: str, path: str, body: bytes | None = None) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(server.http_url, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"{}")


@pytest.mark.parametrize("name", HARMFUL)
def test_what_ends_tritons_own_http_server_is_refused(server, reference, name):
    raw, status, text = HARMFUL[name]
    sender = Sender(grpc_url=server.grpc_url, http_url=server.http_url, timeout_s=10)
    before = server.pid
    outcome = sender.send(Case(name, "raw", raw=raw))
    if outcome.kind == "closed":  # refused before all was read: in pieces its answer is seen
        outcome = sender.send(Case(name, "raw", raw=raw), piecewise=True)
    sender.close()
    assert (outcome.code[:3], text in outcome.text) == (status, True), outcome
    assert (server.poll(), server.pid) == (None, before)
    tensors = request(num_ads=7, seed=3)
    assert_same(send(server.http_url, tensors, protocol="http"), reference.answer(tensors))
    assert _gateway_memory(server) < 300 << 20


def _gateway_memory(server) -> int:
    """Bytes of the process that listens on the server's HTTP port."""
    port = int(server.http_url.split(":")[1])
    listening = [
        c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == "LISTEN"
    ]
    return psutil.Process(listening[0]).memory_info().rss


def test_silent_and_slow_clients_keep_nobody_away(server, reference):
    host, port = server.http_url.split(":")
    tensors = request(num_ads=7, seed=3)
    expected = reference.answer(tensors)
    with contextlib.ExitStack() as open_ones:
        for i in range(1200):
            connection = open_ones.enter_context(socket.create_connection((host, int(port)), timeout=10))
            with contextlib.suppress(ConnectionError):
                connection.sendall(
                    [b"", b"GET /v2 HT", b"POST /v2 HTTP/1.1\r\nContent-Length: 9\r\n\r\n"][i % 3]
                )
        began = time.monotonic()
        assert_same(send(server.http_url, tensors, protocol="http"), expected)
        assert _ask(server, "GET", "/v2/health/ready")[0] == 200
        assert time.monotonic() - began < 2.0


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
def test_tritonclient_gets_the_answers_of_the_search(server, reference, binary, packed):
    tensors = request(num_ads=7, history=30, exclude=[53], seed=5)
    client = tritonclient.http.InferenceServerClient(server.http_url)
    inputs = []
    for name, values in tensors.items():
        datatype = {"int32": "INT32", "int64": "INT64"}[values.dtype.name]
        inputs.append(tritonclient.http.InferInput(name, list(values.shape), datatype))
        inputs[-1].set_data_from_numpy(values, binary_data=binary)
    expected = reference.answer(tensors)
    names = [*expected, "degraded"]
    outputs = [tritonclient.http.InferRequestedOutput(name, binary_data=binary) for name in names]
    for asked in (outputs, None):
        answer = client.infer(
            "gr4ad",
            inputs,
            outputs=asked,
            request_compression_algorithm=packed,
            response_compression_algorithm=packed,
            parameters={"cache": "bypass"},
            priority=1,
            request_id="a-7",
        )
        assert_same({name: answer.as_numpy(name) for name in expected}, expected)
        assert answer.get_response()["id"] == "a-7"
    client.close()


def test_tritonclient_finds_metadata_and_health(server):
    client = tritonclient.http.InferenceServerClient(server.http_url)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("gr4ad")
    assert client.is_model_ready("gr4ad", "1")
    assert not client.is_model_ready("gr4ad", "7")
    assert not client.is_model_ready("beam_scheduler")  # loaded, and not for clients
    assert client.get_server_metadata()["name"] == "triton"
    inputs = {t["name"]: (t["datatype"], t["shape"]) for t in client.get_model_metadata("gr4ad")["inputs"]}
    assert inputs["history_ad_ids"] == ("INT64", [-1, -1])
    with pytest.raises(InferenceServerException, match="expected inference, metadata or health"):
        client.get_model_config("gr4ad")
    client.close()


def test_parameters_arrive(server, reference):
    body = {
        "inputs": [
            {"name": name, "shape": list(values.shape), "data": values.tolist()}
            | {"datatype": {"int32": "INT32", "int64": "INT64"}[values.dtype.name]}
            for name, values in request().items()
        ],
        "outputs": [{"name": "ad_ids"}, {"name": "beam_widths"}],
    }

    def ask(**parameters: object) -> tuple[int, dict]:
        return _ask(
            server, "POST", "/v2/models/gr4ad/infer", json.dumps(body | {"parameters": parameters}).encode()
        )

    outputs = {output["name"]: output["data"] for output in ask(widths="1-2-9:9")[1]["outputs"]}
    expected = reference.answer(request(), widths="1-2-9:9")
    assert outputs["beam_widths"] == expected["beam_widths"].ravel().tolist()
    assert outputs["ad_ids"] == expected["ad_ids"].tolist()
    status, refused = ask(widths="many")
    assert (status, "width plan: expected a form like" in refused["error"]) == (400, True)
    status, refused = ask(deadline_ms=-1)
    assert (status, "parameter deadline_ms: expected a whole number >= 1" in refused["error"]) == (400, True)
    assert ask(priority=-1)[0] == 400


def test_metrics_of_gateway_and_triton_are_one_page(server):
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
        names = {
            line.split("{")[0].split(" ")[0]
            for line in response.read().decode().splitlines()
            if line[0] != "#"
        }
    gateway = {"gr4ad_gateway_requests_total", "gr4ad_gateway_connections"}
    assert gateway | {"nv_inference_count", "gr4ad_batch_seconds_count"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ad_resolver", "lazyar_tail_2"])
def test_readiness_is_false_while_a_process_is_dead_and_true_after(pipeline, model):
    with TritonServer(pipeline.repository) as own:
        assert _ask(own, "GET", "/v2/health/ready")[0] == 200
        kill_stub(own.shm_prefix, model)
        reasons = []

        def is_unready() -> bool:
            status, content = _ask(own, "GET", "/v2/health/ready")
            reasons.append(content)
            return status == 503

        wait_until(is_unready, timeout_s=2.5, every_s=0.02)
        assert reasons[-1]["ready"] is False
        assert reasons[-1]["error"].startswith("gr4ad: ")
        wait_until(lambda: _ask(own, "GET", "/v2/health/ready")[0] == 200, timeout_s=15, every_s=0.1)
        answer = send(own.http_url, request(), protocol="http")
        assert (np.asarray(answer["ad_ids"]) >= 0).all()
