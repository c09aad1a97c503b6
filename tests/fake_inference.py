"""A stand-in for a gr4ad server over gRPC and HTTP, at a test's command: it stalls, rejects or errs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.model.features import FeatureSpec
from tests.manifest import manifest

_DTYPES = {np.dtype(np.int64): "INT64", np.dtype(np.int32): "INT32", np.dtype(np.float32): "FP32"}
_DTYPES |= {np.dtype(bool): "BOOL"}
SPEC = FeatureSpec(levels=3, short_slots=4, long_slots=4, max_history=64, profile_sizes=(3, 4))


def right_answer(num_ads: int) -> dict[str, np.ndarray]:
    """Outputs of one row that hold together."""
    return {
        "ad_ids": np.arange(1, num_ads + 1)[None],
        "scores": -0.5 - 0.25 * np.arange(num_ads, dtype=np.float32)[None],
        "expected_value": np.full((1, num_ads), 2.5, np.float32),
        "sids": np.ones((1, num_ads, 3), np.int32),
        "model_version": np.array([[3]]),
        "index_version": np.array([[17]]),
        "beam_widths": np.array([[64, 128, 256, 64]], np.int32),
        "degraded": np.array([[False]]),
        "ignored_history": np.array([[0]], np.int32),
    }


@dataclass
class Behaviour:
    """What the server does; tests change it while it runs.

    Attributes:
        seconds: of service of one request, or of the n-th (from 0).
        stall: (first, last) second in which no answer leaves, since the second request: the first one is
            a client's warm-up.
        at_once: requests served at the same time; the others wait.
        fail: status of a gRPC error for the n-th request (from 0), or None.
        answer: outputs for a number of ads.
    """

    seconds: float | Callable[[int], float] = 0.0
    stall: tuple[float, float] | None = None
    at_once: int = 1000
    fail: Callable[[int], grpc.StatusCode | None] = lambda number: None
    answer: Callable[[int], dict[str, np.ndarray]] = right_answer
    began: float | None = None
    arrived: list[float] = field(default_factory=list)
    parameters: list[dict[str, object]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._gate = threading.Semaphore(self.at_once)
        self._lock = threading.Lock()

    def serve(self) -> int:
        """Takes its time; the number of the request."""
        with self._lock:
            now = time.monotonic()
            number = len(self.arrived)
            if number == 1:
                self.began = now
            self.arrived.append(now)
        with self._gate:
            if self.stall is not None and self.began is not None:
                since = time.monotonic() - self.began
                if self.stall[0] <= since < self.stall[1]:
                    time.sleep(self.stall[1] - since)
            time.sleep(self.seconds(number) if callable(self.seconds) else self.seconds)
        return number


class _Grpc(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    def ModelInfer(self, request, context):  # noqa: N802
        number = self._behaviour.serve()
        names = [tensor.name for tensor in request.inputs]
        num_ads = int(np.frombuffer(request.raw_input_contents[names.index("num_ads")], np.int32)[0])
        self._behaviour.requests.append(b"".join(request.raw_input_contents))
        self._behaviour.parameters.append(
            {k: getattr(v, v.WhichOneof("parameter_choice")) for k, v in request.parameters.items()}
        )
        if (status := self._behaviour.fail(number)) is not None:
            context.abort(status, "Exceeds maximum queue size")
        response = service_pb2.ModelInferResponse(model_name="gr4ad", model_version="1")
        for name, values in self._behaviour.answer(num_ads).items():
            response.outputs.add(name=name, datatype=_DTYPES[values.dtype], shape=values.shape)
            response.raw_output_contents.append(np.ascontiguousarray(values).tobytes())
        return response


@contextmanager
def serve_grpc(behaviour: Behaviour, *, threads: int = 256) -> Iterator[str]:
    """Address of a gRPC server."""
    server = grpc.server(ThreadPoolExecutor(threads))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Grpc(behaviour), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=0).wait()


@contextmanager
def serve_http(behaviour: Behaviour) -> Iterator[str]:
    """Address of an HTTP server that speaks the binary extension."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"]))
            header = int(self.headers["Inference-Header-Content-Length"])
            inputs = json.loads(body[:header])["inputs"]
            at, num_ads = header, 0
            for tensor in inputs:
                size = tensor["parameters"]["binary_data_size"]
                if tensor["name"] == "num_ads":
                    num_ads = int(np.frombuffer(body[at : at + size], np.int32)[0])
                at += size
            number = behaviour.serve()
            if (status := behaviour.fail(number)) is not None:
                text = json.dumps({"error": "Exceeds maximum queue size"}).encode()
                return self._send(503 if status == grpc.StatusCode.UNAVAILABLE else 500, text, {})
            outputs, raw = [], []
            for name, values in behaviour.answer(num_ads).items():
                raw.append(np.ascontiguousarray(values).tobytes())
                outputs.append(
                    {"name": name, "datatype": _DTYPES[values.dtype], "shape": list(values.shape)}
                    | {"parameters": {"binary_data_size": len(raw[-1])}}
                )
            head = json.dumps({"model_name": "gr4ad", "outputs": outputs}).encode()
            length = {"Inference-Header-Content-Length": str(len(head))}
            return self._send(200, head + b"".join(raw), length)

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 512
        daemon_threads = True

        def handle_error(self, request, client_address) -> None:
            pass  # a client that gave up

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_bundle(run: Path) -> Path:
    """Manifest of a bundle in a run folder: all that made-up requests need. Returns the run folder."""
    folder = run / "bundles" / "1"
    folder.mkdir(parents=True)
    content = manifest(1, "t", features=SPEC, level_sizes=(6, 5, 7))
    content["profile_columns"] = {"a": ["x", "y"], "b": ["x", "y", "z"]}
    (folder / "manifest.json").write_text(json.dumps(content))
    (run / "bundles" / "CURRENT").write_text("1\n")
    return run
