"""Bodies of KServe v2 and what they become, against NumPy and against tritonclient's own encoding."""

import json
import zlib

import numpy as np
import pytest
import tritonclient.http
from tritonclient.grpc.service_pb2 import ModelInferResponse

from gateway.answer import infer_answer
from gateway.compression import accepted, pack, unpack
from gateway.limits import Limits
from gateway.request import Wanted, read_request
from gateway.tensors import from_json, to_json
from tests.malformed_bodies import LARGE_SHAPES, bomb
from web.errors import HttpError

LIMITS = Limits()


def read(body: bytes | dict, json_length: object = None, *, limits: Limits = LIMITS):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = None if json_length is None else str(json_length)
    return read_request(raw, json_length=length, model="gr4ad", version="", limits=limits)


def tensor(data, *, name: str = "x", datatype: str = "INT32", shape=None, **more) -> dict:
    shape = list(np.shape(data)) if shape is None else shape
    return {"name": name, "datatype": datatype, "shape": shape, "data": data} | more


def refused(body, json_length=None, *, limits: Limits = LIMITS) -> str:
    with pytest.raises(HttpError) as caught:
        read(body, json_length, limits=limits)
    assert caught.value.status == 400
    return caught.value.message


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [
        ("INT8", "<i1"),
        ("INT16", "<i2"),
        ("INT32", "<i4"),
        ("INT64", "<i8"),
        ("UINT8", "<u1"),
        ("UINT16", "<u2"),
    ]
    + [("UINT32", "<u4"), ("UINT64", "<u8"), ("FP32", "<f4"), ("FP64", "<f8"), ("BOOL", "?")],
)
def test_elements_as_json_are_those_of_numpy(datatype, dtype):
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        ends = np.iinfo(kind)
        values = np.array([[ends.min, 0, 1], [2, 3, ends.max]], kind)
    else:
        values = np.array([[0, 0.1, 1], [-1e-3, 1e30, 0]], kind)
    for data in (values.tolist(), values.ravel().tolist()):  # nested or flat
        assert from_json("x", data, datatype=datatype, count=6) == values.tobytes()
    assert to_json(values.tobytes(), datatype=datatype) == values.ravel().tolist()
    assert from_json("x", [], datatype=datatype, count=0) == b""


def test_texts_carry_their_lengths():
    raw = from_json("x", [["a", ""], ["é€", "\0"]], datatype="BYTES", count=4)
    assert raw == b"\1\0\0\0a" + b"\0\0\0\0" + b"\5\0\0\0" + "é€".encode() + b"\1\0\0\0\0"
    assert to_json(raw, datatype="BYTES") == ["a", "", "é€", "\0"]


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT32", [1.5]),
        ("INT32", [True]),
        ("INT32", ["1"]),
        ("INT32", [None]),
        ("INT32", [2**31]),
        ("INT8", [-129]),
    ]
    + [("UINT32", [-1]), ("UINT64", [2**64]), ("INT64", [2**63]), ("INT64", [[1], [2, 3]]), ("BOOL", [1])]
    + [("BOOL", [0.0]), ("FP32", ["a"]), ("FP32", [1e39]), ("FP16", [1.0]), ("BF16", [1.0]), ("BYTES", [1])]
    + [("INT32", {"a": 1}), ("INT32", "abc"), ("INT32", [{}]), ("INT32", [10**400])],
)
def test_elements_that_are_not_of_the_datatype(datatype, data):
    assert "'x'" in refused({"inputs": [tensor(data, datatype=datatype, shape=[1])]})


def test_what_tritonclient_sends_arrives():
    random = np.random.default_rng(0)
    arrays = {"a": random.integers(0, 9, (2, 3)), "b": random.random((1, 4)).astype(np.float32)}
    arrays["c"] = np.array([["x", "yz"]], dtype=object)
    for binary in (True, False):
        inputs = []
        for (name, values), datatype in zip(arrays.items(), ("INT64", "FP32", "BYTES"), strict=True):
            made = tritonclient.http.InferInput(name, list(values.shape), datatype)
            made.set_data_from_numpy(values, binary_data=binary)
            inputs.append(made)
        outputs = [tritonclient.http.InferRequestedOutput("o", binary_data=binary)]
        body, length = tritonclient.http.InferenceServerClient.generate_request_body(
            inputs, outputs=outputs, request_id="7", priority=1, timeout=5000, parameters={"widths": "1-1:1"}
        )
        request, wanted = read(body, length)
        assert [(t.name, t.datatype, list(t.shape)) for t in request.inputs] == [
            ("a", "INT64", [2, 3]),
            ("b", "FP32", [1, 4]),
            ("c", "BYTES", [1, 2]),
        ]
        raw = list(request.raw_input_contents)
        assert raw == [arrays["a"].tobytes(), arrays["b"].tobytes(), b"\1\0\0\0x\2\0\0\0yz"]
        assert request.id == "7"
        found = {k: getattr(v, v.WhichOneof("parameter_choice")) for k, v in request.parameters.items()}
        assert found == {"priority": 1, "timeout": 5000, "widths": "1-1:1"}
        assert [output.name for output in request.outputs] == ["o"]
        assert wanted.as_bytes("o") is binary


@pytest.mark.parametrize("shape", LARGE_SHAPES)
@pytest.mark.parametrize("datatype", ["INT8", "INT32", "FP64", "BYTES"])
def test_a_shape_never_promises_more_than_came(shape, datatype):
    text = ["a"] if datatype == "BYTES" else [1]
    assert "shape" in refused({"inputs": [tensor(text, shape=shape, datatype=datatype)]})
    head = tensor(None, shape=shape, datatype=datatype, parameters={"binary_data_size": 4})
    raw = json.dumps({"inputs": [head]}).encode()
    assert "'x'" in refused(raw + b"\1\0\0\0", len(raw))


@pytest.mark.parametrize(
    ("head", "behind"),
    [
        ({"binary_data_size": 3}, b"abc"),
        ({"binary_data_size": 8}, b"abcd"),
        ({"binary_data_size": -1}, b"abcd"),
    ]
    + [
        ({"binary_data_size": 4}, b"abcde"),
        ({"binary_data_size": 2**70}, b"abcd"),
        ({"binary_data_size": True}, b"a"),
    ]
    + [({"binary_data_size": "4"}, b"abcd"), ({"shared_memory_region": "gr4ad"}, b""), ({}, b""), (5, b"")],
)
def test_binary_data_that_are_not_what_the_header_says(head, behind):
    entry = {"name": "x", "datatype": "INT32", "shape": [1], "parameters": head}
    raw = json.dumps({"inputs": [entry]}).encode()
    assert refused(raw + behind, len(raw))


def test_texts_behind_the_json_are_counted():
    def ask(behind: bytes, count: int):
        entry = {"name": "x", "datatype": "BYTES", "shape": [count]}
        raw = json.dumps({"inputs": [entry | {"parameters": {"binary_data_size": len(behind)}}]}).encode()
        return read(raw + behind, len(raw))

    two = b"\1\0\0\0a\0\0\0\0"
    assert ask(two, 2)[0].raw_input_contents[0] == two
    for behind, count in ((two, 1), (two, 3), (two[:-1], 2), (b"\xff\xff\xff\xff", 1), (b"\0", 1), (b"", 1)):
        with pytest.raises(HttpError, match="elements of BYTES"):
            ask(behind, count)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"{}", b'{"inputs":5}', b'{"inputs":[]}', b'{"inputs":[5]}', b"NaN", b"\xff"]
    + [b"[" * 300_000, b'{"a":' * 300_000, b'{"inputs":' + b"[" * 5_000 + b"]" * 5_000 + b"}"]
    + [
        b'{"inputs":[{"name":"x","datatype":"INT32","shape":[1],"data":'
        + b"[" * 150
        + b"1"
        + b"]" * 150
        + b"}]}"
    ],
    ids=lambda body: repr(body[:12]),
)
def test_json_that_is_no_request(body):
    assert refused(body)


def test_bounds_of_a_request():
    one = tensor([1])
    assert "1 to 64" in refused({"inputs": [one] * 65})
    assert "1 to 64" in refused({"inputs": [one], "outputs": [{"name": str(i)} for i in range(65)]})
    assert "32 parameters" in refused({"inputs": [one], "parameters": {str(i): i for i in range(33)}})
    assert "16 dimensions" in refused({"inputs": [tensor([1], shape=[1] * 17)]})
    assert "1,000 characters" in refused({"inputs": [tensor([1], name="n" * 1001)]})
    assert "1,000 characters" in refused({"inputs": [one], "id": "i" * 1001})
    assert "1,000 characters" in refused({"inputs": [one], "parameters": {"widths": "1" * 1001}})
    assert "bytes of JSON" in refused(
        {"inputs": [tensor([1] * 50, shape=[50])]}, limits=Limits(json_bytes=100)
    )
    assert "reserved" in refused({"inputs": [one], "parameters": {"triton_final_response": True}})
    for value in (1.5, None, [1], {}, 2**64, -(2**63) - 1):
        assert "invalid type" in refused({"inputs": [one], "parameters": {"x": value}})
    for length in (0, -1, "", "abc", "1e3", 10**12, 10_000, "٣"):
        assert refused({"inputs": [one]}, length)
    for parameters in ({"shared_memory_region": "x"}, {"binary_data": 1}, {"classification": -1}):
        assert "classification" in refused(
            {"inputs": [one], "outputs": [{"name": "o", "parameters": parameters}]}
        )


def response() -> tuple[ModelInferResponse, dict[str, np.ndarray]]:
    arrays = {
        "ad_ids": np.array([[5, -1]], np.int64),
        "scores": np.array([[-0.1, 0.0]], np.float32),
        "degraded": np.array([[True]]),
    }
    made = ModelInferResponse(model_name="gr4ad", model_version="3", id="7")
    made.parameters["sequence_id"].int64_param = 0
    for (name, values), datatype in zip(arrays.items(), ("INT64", "FP32", "BOOL"), strict=True):
        made.outputs.add(name=name, datatype=datatype, shape=values.shape)
        made.raw_output_contents.append(values.tobytes())
    return made, arrays


def test_an_answer_as_tritonclient_reads_it():
    made, arrays = response()
    for wanted in (Wanted({}, True), Wanted({}, False), Wanted({"scores": True}, False)):
        body, headers = infer_answer(made, wanted)
        length = dict(headers).get(b"inference-header-content-length")
        read_ = tritonclient.http.InferenceServerClient.parse_response_body(
            body, header_length=None if length is None else int(length)
        )
        for name, values in arrays.items():
            np.testing.assert_array_equal(read_.as_numpy(name), values)
        head = read_.get_response()
        assert (head["model_name"], head["model_version"], head["id"]) == ("gr4ad", "3", "7")
        assert head["parameters"] == {"sequence_id": 0}
        by_name = {output["name"]: "data" in output for output in head["outputs"]}
        assert by_name == {name: not wanted.as_bytes(name) for name in arrays}


@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("deflate", 15)])
def test_packed_bodies(encoding, wbits):
    text = b"abc" * 1000
    packed = zlib.compress(text, wbits=wbits)
    assert unpack(packed, encoding=encoding, limit=3000) == text
    assert zlib.decompress(pack(text, encoding=encoding), wbits=wbits) == text
    for body, status in (
        (zlib.compress(text + b"d", wbits=wbits), 413),
        (bomb(50, encoding), 413),
        (packed[:-1], 400),
        (packed + b"x", 400),
        (packed + packed, 400),
        (b"", 400),
        (text, 400),
    ):
        with pytest.raises(HttpError) as caught:
            unpack(body, encoding=encoding, limit=3000)
        assert caught.value.status == status


def test_encodings_by_name():
    assert unpack(b"x", encoding="", limit=1) == unpack(b"x", encoding="identity", limit=1) == b"x"
    with pytest.raises(HttpError, match="'br'") as caught:
        unpack(b"x", encoding="br", limit=1)
    assert caught.value.status == 415
    headers = {
        "": "",
        "gzip": "gzip",
        "deflate": "deflate",
        "br, gzip;q=0.5": "gzip",
        "gzip;q=0": "",
        "*": "",
    }
    headers |= {"gzip;q=0, deflate": "deflate", "GZIP": "gzip", "identity": "", ";;q=,": ""}
    assert {header: accepted(header) for header in headers} == headers
