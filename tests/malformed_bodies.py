"""HTTP bodies that cost a server more than they cost their sender: `(random, case) -> case` of raw bytes.

Triton 24.10's own HTTP server ends, or keeps hundreds of megabytes, on most of them.
"""

from __future__ import annotations

import functools
import json
import zlib
from dataclasses import replace
from typing import Any

import numpy as np

from tests.malformed_http import http_body, message
from tests.malformed_tensors import Case

_CHUNKED = (
    b"POST /v2/models/gr4ad/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
LARGE_SHAPES = (
    [1, 10**10],
    [10**10, 1],
    [1, 2**31],
    [1, 2**33],
    [1, 2**40],
    [2**20, 2**20],
    [2**32, 2**32],
    [1, 2**63 - 1],
    [0, 2**62],
    [2**62, 0],
)


def _raw(case: Case, raw: bytes, *, complete: bool = True) -> Case:
    return replace(case, protocol="raw", raw=raw, complete=complete)


def _json_inputs(case: Case) -> list[dict[str, Any]]:
    kinds = {"INT32": "<i4", "INT64": "<i8"}
    return [
        {
            "name": t.name,
            "datatype": t.dtype,
            "shape": list(t.shape),
            "data": np.frombuffer(t.data, kinds[t.dtype]).tolist(),
        }
        for t in case.tensors
    ]


def large_shape(shape: list[int], *, datatype: str = "INT32") -> bytes:
    """The whole message of a request whose shape asks for memory that its data do not fill."""
    tensor = {"name": "num_ads", "datatype": datatype, "shape": shape, "data": [1]}
    return message(json.dumps({"inputs": [tensor]}).encode())


def _large_shape(random: np.random.Generator, case: Case) -> Case:
    inputs = _json_inputs(case)
    entry = inputs[random.integers(len(inputs))]
    entry["shape"] = LARGE_SHAPES[random.integers(len(LARGE_SHAPES))]
    if random.random() < 0.5:
        entry["datatype"] = str(random.choice(["INT8", "INT32", "INT64", "BOOL", "FP64", "BYTES"]))
    return _raw(case, message(json.dumps({"inputs": inputs}).encode()))


def _deep_json(random: np.random.Generator, case: Case) -> Case:
    depth = int(random.choice([150, 250, 5_000, 300_000]))
    opened, closed = [(b"[", b"]"), (b'{"a":', b"}")][random.integers(2)]
    nested = opened * depth + (b"1" + closed * depth if random.random() < 0.5 else b"")
    start = b'{"inputs":[{"name":"num_ads","datatype":"INT32","shape":[1,1],"data":'
    bodies = [
        nested,
        b'{"inputs":' + nested + b"}",
        start + nested + b"}]}",
        b'{"parameters":' + nested + b"}",
    ]
    return _raw(case, message(bodies[random.integers(len(bodies))]))


def _byte_chunks(random: np.random.Generator, case: Case) -> Case:
    """A body in chunks of one byte, more of them than anybody needs."""
    count = int(random.choice([12_000, 30_000, 100_000]))
    ends = [b"0\r\n\r\n", b""][random.integers(2)]
    return _raw(case, _CHUNKED + b"1\r\n[\r\n" * count + ends, complete=False)


@functools.cache
def bomb(megabytes: int, encoding: str) -> bytes:
    """So many megabytes of spaces, packed to a thousandth."""
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    return b"".join(packer.compress(b" " * (1 << 20)) for _ in range(megabytes)) + packer.flush()


def _bomb(random: np.random.Generator, case: Case) -> Case:
    encoding = ["gzip", "deflate"][random.integers(2)]
    body = bomb(int(random.choice([20, 400])), encoding)
    cut = int(random.integers(len(body))) if random.random() < 0.2 else len(body)
    return _raw(case, message(body[:cut], headers={"Content-Encoding": encoding}))


def _packed(random: np.random.Generator, case: Case) -> Case:
    """Packed twice, in two members, with something behind, or cut."""
    body, length = http_body(case)
    packed = zlib.compress(body, wbits=31)
    odd = [packed + packed, packed + b"x" * 100, zlib.compress(packed, wbits=31), packed[:-4], packed[:20]]
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": length}
    return _raw(case, message(odd[random.integers(len(odd))], headers=headers))


def _many(random: np.random.Generator, case: Case) -> Case:
    """Many inputs, outputs, parameters, dimensions or elements."""
    count = int(random.choice([100, 10_000, 60_000]))
    inputs = _json_inputs(case)
    content: dict[str, Any] = {"inputs": inputs}
    at = random.integers(5)
    if at == 0:
        content["inputs"] = [inputs[0]] * min(count, 10_000)
    elif at == 1:
        content["outputs"] = [{"name": f"o{i}"} for i in range(count)]
    elif at == 2:
        content["parameters"] = {f"p{i}": i for i in range(count)}
    elif at == 3:
        inputs[0]["shape"] = [1] * count
    else:
        inputs[0]["data"] = [[]] * count
    return _raw(case, message(json.dumps(content).encode()))


def _shared_memory(random: np.random.Generator, case: Case) -> Case:
    """A tensor that is said to lie in the server's own memory."""
    inputs = _json_inputs(case)
    region = {"shared_memory_region": "gr4ad", "shared_memory_byte_size": 64, "shared_memory_offset": 0}
    content: dict[str, Any] = {"inputs": inputs}
    if random.random() < 0.5:
        del inputs[0]["data"]
        inputs[0]["parameters"] = region
    else:
        content["outputs"] = [{"name": "ad_ids", "parameters": region}]
    return _raw(case, message(json.dumps(content).encode()))


def _other_site(random: np.random.Generator, case: Case) -> Case:
    """What a page of another site can make a browser send."""
    body, length = http_body(case)
    headers: dict[str, Any] = {"Content-Type": "text/plain", "Inference-Header-Content-Length": length}
    headers |= [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}][
        random.integers(3)
    ]
    targets = ["/v2/models/gr4ad/infer", "/v2/repository/models/nobody/load"]
    return _raw(case, message(body, headers=headers, target=targets[random.integers(2)]))


BODY_FAULTS = {
    f.__name__: f
    for f in (
        _large_shape,
        _deep_json,
        _byte_chunks,
        _bomb,
        _packed,
        _many,
        _shared_memory,
        _other_site,
    )
}
