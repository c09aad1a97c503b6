"""The command `python -m gateway` in front of a gRPC server that does what a test says."""

import concurrent.futures
import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.gateway_process import ROOT, running_gateway
from tests.waiting import wait_until

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "INT32", "shape": [1], "data": [7]}]}).encode()
INFER = "/v2/models/gr4ad/infer"


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Doubles a number, once `release` is set; or fails."""

    def __init__(self) -> None:
        self.release, self.fail, self.odd = threading.Event(), None, False
        self.release.set()
        self.waiting = self.cancelled = self.requests = 0
        self.server, self.port = None, 0

    def start(self) -> None:
        self.server = grpc.server(ThreadPoolExecutor(100), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        self.server.start()

    def stop(self) -> None:
        self.release.set()
        self.server.stop(grace=None).wait()

    def ModelInfer(self, request, context):  # noqa: N802
        self.requests += 1
        self.waiting += 1

        def ended() -> None:
            self.cancelled += context.code() is None and not done

        done = False
        context.add_callback(ended)
        self.release.wait(30)
        done = True
        if self.fail is not None:
            context.abort(*self.fail)
        value = np.frombuffer(request.raw_input_contents[0], "<i4") * 2
        made = pb.ModelInferResponse(model_name="gr4ad", model_version="1")
        made.outputs.add(name="y", datatype="INT32", shape=[1])
        if not self.odd:
            made.raw_output_contents.append(value.tobytes())
        return made

    def ModelMetadata(self, request, context):  # noqa: N802
        return pb.ModelMetadataResponse(name=request.name, platform="test")

    def ModelReady(self, request, context):  # noqa: N802
        return pb.ModelReadyResponse(ready=True)


@pytest.fixture(scope="module")
def shared_triton():
    made = Triton()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def gateway(shared_triton):
    """For tests that leave it running."""
    with running_gateway(f"127.0.0.1:{shared_triton.port}") as running:
        yield running


@pytest.fixture
def triton(shared_triton):
    shared_triton.fail, shared_triton.odd = None, False
    shared_triton.waiting = shared_triton.cancelled = shared_triton.requests = 0
    yield shared_triton
    shared_triton.release.set()


@pytest.fixture
def gateway_to_stop(triton):
    with running_gateway(f"127.0.0.1:{triton.port}") as running:
        yield running


def ask(url: str, method: str = "GET", path: str = "/v2/health/ready", body: bytes | None = None, **headers):
    connection = http.client.HTTPConnection(url, timeout=20)
    try:
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def infer(url: str):
    return ask(url, "POST", INFER, BODY)


def is_right(answer) -> bool:
    status, body, _ = answer
    return status == 200 and json.loads(body)["outputs"][0]["data"] == [14]


def test_health_and_metrics_answer_head_without_a_body(triton, gateway):
    pages = [(gateway.http_url, "/v2/health/live"), (gateway.http_url, "/v2/health/ready")]
    pages += [(gateway.http_url, "/v2/models/gr4ad/ready"), (gateway.metrics_url, "/metrics")]
    for url, path in pages:
        connection = http.client.HTTPConnection(url, timeout=20)
        for method in ("HEAD", "GET"):  # a body after HEAD would stand before the next answer
            connection.request(method, path)
            response = connection.getresponse()
            assert (response.status, int(response.headers["content-length"]) > 0) == (200, True), path
            assert bool(response.read()) == (method == "GET")
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_all_48_in_hand(triton, gateway_to_stop, number):
    triton.release.clear()
    with ThreadPoolExecutor(48) as pool:
        asked = [pool.submit(infer, gateway_to_stop.http_url) for _ in range(48)]
        wait_until(lambda: triton.waiting == 48)
        gateway_to_stop.process.send_signal(number)
        time.sleep(0.5)
        with pytest.raises(ConnectionError):
            infer(gateway_to_stop.http_url)
        triton.release.set()
        assert all(is_right(answer.result()) for answer in asked)
    assert gateway_to_stop.process.wait(10) == 0


def test_a_stop_ends_when_a_request_takes_too_long(triton):
    triton.release.clear()
    with (
        running_gateway(f"127.0.0.1:{triton.port}", "--grace-s", "1") as gateway,
        ThreadPoolExecutor(1) as pool,
    ):
        pool.submit(infer, gateway.http_url)
        wait_until(lambda: triton.waiting == 1)
        began = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.15, 0.3, 0.6])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_first_second_is_no_traceback(number, seconds):
    command = [sys.executable, "-m", "gateway", "--port", "0", "--metrics-port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            wait_until(lambda: _catches(process.pid, signal.SIGTERM), every_s=0.001)
            time.sleep(seconds)
            process.send_signal(number)
            out, err = process.communicate(timeout=10)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, ""), out


def _catches(pid: int, number: int) -> bool:
    """Whether a process has come as far as its own code: Python by itself leaves SIGTERM alone."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def test_without_triton_it_says_so_at_once_and_finds_it_again_within_a_second(triton, gateway):
    assert is_right(infer(gateway.http_url))
    triton.stop()
    for _ in range(3):
        began = time.monotonic()
        status, body, headers = infer(gateway.http_url)
        assert time.monotonic() - began < 1.0
        assert status == 503
        assert headers["Retry-After"] == "1"
        assert json.loads(body)["error"].startswith("Triton is away or restarting")
    time.sleep(1.1)  # what is known of readiness is a second old at most
    status, body, _ = ask(gateway.http_url)
    assert status == 503
    assert "away or restarting" in json.loads(body)["error"]
    assert ask(gateway.http_url, path="/v2/health/live")[0] == 200
    time.sleep(3)  # long enough for a back-off to grow
    triton.start()
    began = time.monotonic()
    while not is_right(infer(gateway.http_url)):
        assert time.monotonic() - began < 1.0
        time.sleep(0.02)


def test_a_client_that_leaves_cancels_its_call(triton, gateway):
    triton.release.clear()
    host, port = gateway.http_url.split(":")
    with contextlib.closing(socket.create_connection((host, int(port)))) as connection:
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n"
        connection.sendall(head.encode() + BODY)
        wait_until(lambda: triton.waiting == 1)
        assert triton.cancelled == 0
    wait_until(lambda: triton.cancelled == 1, timeout_s=3)
    assert 'gr4ad_gateway_requests_total{outcome="gone"} 1.0' in metrics(gateway)


def metrics(gateway) -> str:
    status, page, _ = ask(gateway.metrics_url, path="/metrics")
    assert status == 200
    return page.decode()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("INVALID_ARGUMENT", 400),
        ("NOT_FOUND", 404),
        ("UNAVAILABLE", 503),
        ("INTERNAL", 500),
        ("UNIMPLEMENTED", 501),
    ]
    + [("ALREADY_EXISTS", 400), ("UNKNOWN", 400)],
)
def test_errors_have_tritons_text_and_the_status_of_its_http_server(triton, gateway, code, status):
    triton.fail = (grpc.StatusCode[code], "num_ads: expected 1..40, got 0")
    got, body, headers = infer(gateway.http_url)
    assert (got, json.loads(body)) == (status, {"error": "num_ads: expected 1..40, got 0"})
    assert headers["Retry-After"] == ("1" if status == 503 else None)
    client = tritonclient.http.InferenceServerClient(gateway.http_url)
    tensor = tritonclient.http.InferInput("x", [1], "INT32")
    tensor.set_data_from_numpy(np.array([7], np.int32))
    with pytest.raises(InferenceServerException, match="num_ads: expected 1..40, got 0"):
        client.infer("gr4ad", [tensor])


def test_a_fault_of_the_gateway_is_an_error_in_the_same_form(triton, gateway):
    triton.odd = True  # an output without its bytes, which no Triton sends
    status, body, _ = infer(gateway.http_url)
    assert (status, json.loads(body)) == (500, {"error": "the gateway failed; its log says why"})
    triton.odd = False
    assert is_right(infer(gateway.http_url))


def test_a_request_that_triton_never_answers_ends(triton):
    triton.release.clear()
    with running_gateway(f"127.0.0.1:{triton.port}", "--request-s", "0.5") as gateway:
        status, body, _ = infer(gateway.http_url)
        assert (status, json.loads(body)["error"]) == (504, "Triton did not answer in time")


def test_readiness_goes_with_the_signal(triton, gateway_to_stop):
    triton.release.clear()
    kept = http.client.HTTPConnection(gateway_to_stop.http_url, timeout=10)
    kept.request("GET", "/v2/health/ready")
    assert kept.getresponse().read()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(infer, gateway_to_stop.http_url)
        wait_until(lambda: triton.waiting == 1)
        gateway_to_stop.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        kept.request("GET", "/v2/health/ready")  # on a connection that it had already
        response = kept.getresponse()
        assert (response.status, response.headers["Connection"]) == (503, "close")
        assert "stopping" in json.loads(response.read())["error"]
        triton.release.set()
        assert is_right(asked.result())


def test_what_is_not_inference_metadata_or_health_is_refused(gateway):
    url = gateway.http_url
    for path in (
        "/v2/repository/index",
        "/v2/repository/models/x/load",
        "/v2/systemsharedmemory/status",
        "/v2/cudasharedmemory/region/x/register",
        "/v2/trace/setting",
        "/v2/logging",
        "/v2/models/gr4ad/config",
        "/v2/models/gr4ad/versions/1/stats",
        "/v2/models/stats",
        "/v2/models/gr4ad/generate",
    ):
        status, body, _ = ask(url, "POST", path, b"{}")
        assert (status, "expected inference" in json.loads(body)["error"]) == (403, True), path
    for path in ("/", "/metrics", "/v2/", "/v2/models", "/v2/models/other", "/v2/models/other/infer", "/v3"):
        assert ask(url, "POST" if path.endswith("infer") else "GET", path)[0] == 404, path
    assert ask(url, "GET", INFER)[0] == 405
    assert ask(url, "PUT", "/v2")[0] == 405
    assert ask(gateway.metrics_url, "POST", INFER, BODY)[0] == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ]
    + [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:8000"}, 421),
        ({"Host": "localhost:8000"}, 200),
    ],
)
def test_what_a_page_of_another_site_can_send_is_refused(triton, gateway, headers, status):
    assert ask(gateway.http_url, "POST", INFER, BODY, **headers)[0] == status
    assert triton.requests == (status == 200)
    assert ask(gateway.metrics_url, "GET", "/metrics", **headers)[0] == status


def test_bodies_of_all_requests_are_bounded_together(triton):
    triton.release.clear()
    big = json.dumps({"inputs": [], "x": " " * 700_000}).encode()
    with (
        running_gateway(f"127.0.0.1:{triton.port}", "--pending-mib", "2", "--header-s", "5") as gateway,
        contextlib.ExitStack() as open_ones,
    ):
        host, port = gateway.http_url.split(":")
        for _ in range(2):  # bodies that stop before their end
            connection = open_ones.enter_context(socket.create_connection((host, int(port))))
            connection.sendall(
                f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(big) + 1}\r\n\r\n".encode()
                + big
            )
        time.sleep(0.5)
        status, body, headers = ask(gateway.http_url, "POST", INFER, big)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "come back" in json.loads(body)["error"]
        open_ones.close()
        time.sleep(0.5)
        assert ask(gateway.http_url, "POST", INFER, big)[0] == 400  # read, and no request


def test_a_taken_port_and_wrong_options_are_said(gateway):
    port = gateway.http_url.split(":")[1]
    for options, status, text in (
        (["--port", port], 1, "cannot listen on 127.0.0.1"),
        (["--port", "x"], 2, "invalid int"),
        (["--help"], 0, "requests in hand"),
    ):
        command = [sys.executable, "-m", "gateway", "--metrics-port", "0", *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert done.returncode == status
        assert text in done.stdout + done.stderr


def test_a_flood_of_probes_is_no_load(triton, gateway):
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(ask, gateway.http_url) for _ in range(200)]
        answers = [future.result()[0] for future in concurrent.futures.as_completed(asked)]
    assert answers == [200] * 200
    assert triton.requests == 0  # a model without gr4ad's inputs: Triton's own word
