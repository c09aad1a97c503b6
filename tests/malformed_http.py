"""HTTP messages of cases, and faults of the message itself: `(random, case) -> case` of raw bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from tests.malformed_tensors import Case


def message(
    body: bytes,
    *,
    headers: dict[str, Any] | None = None,
    target: str = "/v2/models/gr4ad/infer",
    method: str = "POST",
    length: object = None,
) -> bytes:
    lines = [
        f"{method} {target} HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: close",
        f"Content-Length: {len(body) if length is None else length}",
    ]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def http_body(case: Case) -> tuple[bytes, int]:
    """JSON header and binary tensors of a case, and the length of the JSON."""
    inputs = [
        {
            "name": t.name,
            "datatype": t.dtype,
            "shape": list(t.shape),
            "parameters": {"binary_data_size": len(t.data)},
        }
        for t in case.tensors
    ]
    content: dict[str, Any] = {
        "inputs": inputs,
        "parameters": {"binary_data_output": True, **case.parameters},
    }
    if case.outputs:
        content["outputs"] = [{"name": n, "parameters": {"binary_data": True}} for n in case.outputs]
    header = json.dumps(content).encode()
    return header + b"".join(t.data for t in case.tensors), len(header)


def _raw(case: Case, raw: bytes, *, complete: bool = True) -> Case:
    return replace(case, protocol="raw", raw=raw, complete=complete)


def _no_json(random: np.random.Generator, case: Case) -> Case:
    bodies = [
        b"",
        b"hello",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"1",
        b'"x"',
        b"{",
        b'{"inputs":',
        b"{}" * 1000,
        b"NaN",
        b"{'inputs': []}",
        random.bytes(300),
        random.bytes(1_000_000),
        b"[" * 5_000,
        b'{"inputs":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    ]
    return _raw(case, message(bodies[random.integers(len(bodies))]))


def _odd_json(random: np.random.Generator, case: Case) -> Case:
    odd: list[Any] = [
        None,
        [],
        {},
        "x",
        5,
        -1,
        1.5,
        True,
        [None],
        [[1], [2, 3]],
        ["1", 2],
        [1e400],
        2**64,
        [[[[]]]],
    ]
    inputs: list[Any] = [
        {
            "name": t.name,
            "datatype": t.dtype,
            "shape": list(t.shape),
            "data": np.frombuffer(t.data, "<i4" if t.dtype == "INT32" else "<i8").tolist(),
        }
        for t in case.tensors
    ]
    content: dict[str, Any] = {"inputs": inputs}
    at = random.integers(5)
    value = odd[random.integers(len(odd))]
    if at == 0:
        content[str(random.choice(["inputs", "outputs", "parameters", "id"]))] = value
    elif at == 1:
        inputs[random.integers(len(inputs))] = value
    else:
        inputs[random.integers(len(inputs))][
            str(random.choice(["data", "data", "shape", "name", "datatype"]))
        ] = value
    return _raw(case, message(json.dumps(content).encode()))


def _cut_json(random: np.random.Generator, case: Case) -> Case:
    body, length = http_body(case)
    return _raw(case, message(body[: random.integers(1, length)]))


def _binary_length(random: np.random.Generator, case: Case) -> Case:
    """The tensors after the JSON are cut off, or the header that says where they begin is wrong."""
    body, length = http_body(case)
    wrong = [length + 1, length - 1, 0, -1, len(body) + 1, 2**63, "abc", "", "1e3"]
    if random.random() < 0.4:
        return _raw(
            case,
            message(
                body[: random.integers(length, len(body))],
                headers={"Inference-Header-Content-Length": length},
            ),
        )
    return _raw(
        case, message(body, headers={"Inference-Header-Content-Length": wrong[random.integers(len(wrong))]})
    )


def _never_ends(random: np.random.Generator, case: Case) -> Case:
    """Fewer bytes than Content-Length, which is also what a client that dies in the middle sends."""
    body, length = http_body(case)
    whole = message(
        body,
        headers={"Inference-Header-Content-Length": length},
        length=[len(body) + 100, 10**9, 2**62][random.integers(3)],
    )
    return _raw(case, whole[: random.integers(1, len(whole) + 1)], complete=False)


def _odd_length(random: np.random.Generator, case: Case) -> Case:
    """A Content-Length that is too small or no number: what follows is no HTTP any more."""
    body, length = http_body(case)
    odd = [0, 1, length, -1, "abc", "", "0x10", 2**64, "5, 5"]
    return _raw(
        case,
        message(
            body, headers={"Inference-Header-Content-Length": length}, length=odd[random.integers(len(odd))]
        ),
        complete=False,
    )


def _url(random: np.random.Generator, case: Case) -> Case:
    targets = [
        "/",
        "*",
        "/v2",
        "/v2/models",
        "/v2/models//infer",
        "/v2/models/gr4ad",
        "/v2/models/gr4ad/versions/9/infer",
        "/v2/models/gr4ad/versions/x/infer",
        "/v2/models/%00/infer",
        "/v2/models/gr4ad/generate",
        "/v1/predict",
        "/v2/models/gr4ad/infer?x=1",
        "/../../etc/passwd",
        "/v2/models/" + "x" * 7_000 + "/infer",
        "/metrics",
        "/v2/models/gr4ad/generate_stream",
        "/v2/repository/models/nobody/load",
        "/v2/health/ready/x",
    ]
    methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"]
    body, length = http_body(case)
    return _raw(
        case,
        message(
            body,
            headers={"Inference-Header-Content-Length": length},
            target=targets[random.integers(len(targets))],
            method=methods[random.integers(len(methods))],
        ),
        complete=False,
    )


def _encoding(random: np.random.Generator, case: Case) -> Case:
    body, length = http_body(case)
    headers: dict[str, Any] = {"Inference-Header-Content-Length": length}
    headers |= [
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "deflate"},
        {"Content-Encoding": "br"},
        {"Accept-Encoding": "x" * 5_000},
        {"Content-Type": "image/png"},
        {"Expect": "100-continue"},
    ][random.integers(6)]
    return _raw(case, message(body, headers=headers))


def _chunks(random: np.random.Generator, case: Case) -> Case:
    size, count = int(random.integers(1, 500)), int(random.integers(1, 500))
    ends = [b"0\r\n\r\n", b"", b"zz\r\n", b"ffffffffffffffff\r\n"][random.integers(4)]
    head = b"POST /v2/models/gr4ad/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    return _raw(case, head + b"%x\r\n%s\r\n" % (size, random.bytes(size)) * count + ends, complete=False)


def _no_http(random: np.random.Generator, case: Case) -> Case:
    raws = [
        b"\x16\x03\x01\x02\x00\x01" + random.bytes(200),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        random.bytes(2_000),
        b"GET /v2 HTTP/9.9\r\n\r\n",
        b"\r\n" * 500,
        b"POST\r\n\r\n",
        b"A" * 200_000,
        b"\0" * 100,
        b"GET /v2 HTTP/1.1\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
    ]
    return _raw(case, raws[random.integers(len(raws))], complete=False)


RAW_FAULTS = {
    f.__name__: f
    for f in (
        _no_json,
        _odd_json,
        _cut_json,
        _binary_length,
        _never_ends,
        _odd_length,
        _url,
        _encoding,
        _chunks,
        _no_http,
    )
}
