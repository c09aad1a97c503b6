"""Sends the cases of `tests.malformed` as they are, and classifies what comes back."""

from __future__ import annotations

import json
import select
import socket
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

from tests.malformed_http import http_body, message
from tests.malformed_tensors import Case

_PAUSE_S = 0.05  # for the server to answer the pieces it has


@dataclass(frozen=True)
class Outcome:
    """What came back.

    Attributes:
        kind: valid (status OK), error, closed (connection ended without an answer) or hang (timeout).
        code: gRPC status name or HTTP status.
        text: error text.
        outputs: output tensors of a valid answer.
    """

    kind: str
    code: str = ""
    text: str = ""
    outputs: dict[str, np.ndarray] = field(default_factory=dict)


class Sender:
    """Sends cases to one server; one gRPC channel, one HTTP connection a case."""

    def __init__(self, *, grpc_url: str, http_url: str, timeout_s: float) -> None:
        """Connect lazily; `timeout_s` bounds every single case."""
        self._channel = grpc.insecure_channel(grpc_url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        host, _, port = http_url.rpartition(":")
        self._address, self._timeout_s = (host, int(port)), timeout_s

    def send(self, case: Case, *, piecewise: bool = False) -> Outcome:
        """Send and classify; `piecewise` stops sending HTTP as soon as the server has answered."""
        if case.protocol == "grpc":
            return self._grpc(case)
        raw = case.raw if case.protocol == "raw" else _as_http(case)
        piece = 1_024 if piecewise else max(len(raw), 1)
        return self._http(raw, piece=piece, ends=case.protocol == "raw" and not case.complete)

    def close(self) -> None:
        """Release the channel."""
        self._channel.close()

    def _grpc(self, case: Case) -> Outcome:
        request = service_pb2.ModelInferRequest(model_name=case.model, model_version=case.version)
        for name, value in case.parameters.items():
            kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[
                type(value)
            ]
            setattr(request.parameters[name], kind, value)
        for tensor in case.tensors:
            request.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=tensor.shape)
            request.raw_input_contents.append(tensor.data)
        for name in case.outputs:
            request.outputs.add(name=name)
        try:
            response = self._stub.ModelInfer(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            code = error.code().name
            return Outcome("hang" if code == "DEADLINE_EXCEEDED" else "error", code, error.details() or "")
        pairs = zip(response.outputs, response.raw_output_contents, strict=True)
        return Outcome("valid", "OK", outputs={o.name: _decode(o.datatype, o.shape, raw) for o, raw in pairs})

    def _http(self, raw: bytes, *, piece: int, ends: bool) -> Outcome:
        received = b""
        try:
            with socket.create_connection(self._address, timeout=self._timeout_s) as connection:
                try:
                    for start in range(0, len(raw), piece):
                        connection.sendall(raw[start : start + piece])
                        if start + piece < len(raw) and select.select([connection], [], [], _PAUSE_S)[0]:
                            break
                    else:
                        if ends:
                            connection.shutdown(socket.SHUT_WR)  # an incomplete message ends here, not never
                    while more := connection.recv(1 << 16):
                        received += more
                except TimeoutError:
                    return Outcome("hang")
                except OSError:
                    pass  # the server hung up while we were still sending: what it said before counts
        except OSError as error:
            return Outcome("error", "connect", str(error))
        return _parse(received)


def _as_http(case: Case) -> bytes:
    body, length = http_body(case)
    version = f"/versions/{case.version}" if case.version else ""
    target = f"/v2/models/{case.model}{version}/infer".replace(" ", "%20")
    return message(body, headers={"Inference-Header-Content-Length": length}, target=target)


def _parse(received: bytes) -> Outcome:
    """First final HTTP response of a connection."""
    while received.startswith(b"HTTP/1.1 100 "):
        received = received.partition(b"\r\n\r\n")[2]
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1"):
        return Outcome("closed", text=received[:80].decode(errors="replace"))
    lines = head.decode(errors="replace").split("\r\n")
    status = lines[0].split(" ", 1)[1]
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    if not status.startswith("2"):
        return Outcome("error", status, body.decode(errors="replace") or status)
    if "inference-header-content-length" not in headers:
        return Outcome("valid", status, body.decode(errors="replace"))
    length = int(headers["inference-header-content-length"])
    outputs, at = {}, length
    for output in json.loads(body[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        outputs[output["name"]] = _decode(output["datatype"], output["shape"], body[at : at + size])
        at += size
    return Outcome("valid", status, outputs=outputs)


def _decode(dtype: str, shape: Any, raw: bytes) -> np.ndarray:
    if dtype == "BYTES":
        return deserialize_bytes_tensor(raw).reshape(list(shape))
    kinds = {"INT64": "<i8", "INT32": "<i4", "FP32": "<f4", "FP64": "<f8", "BOOL": "?"}
    return np.frombuffer(raw, kinds[dtype]).reshape(list(shape))
