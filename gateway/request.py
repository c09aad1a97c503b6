"""A body of KServe v2 over HTTP becomes the message that Triton takes over gRPC.

JSON with inputs, outputs and parameters; behind it, where `Inference-Header-Content-Length` says so, the
bytes of inputs (Triton's docs/protocol/extension_binary_data.md).
What the gateway does not know it refuses: a region of shared memory is no tensor of a stranger's request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pydantic_core
from tritonclient.grpc.service_pb2 import InferParameter, ModelInferRequest

from gateway.errors import invalid, shown
from gateway.limits import Limits
from gateway.tensors import check_bytes, check_datatype, check_shape, from_json

_RESERVED = "triton_"


@dataclass(frozen=True)
class Wanted:
    """How outputs are to be answered: as bytes or as JSON.

    Attributes:
        binary: of outputs that were named.
        default: of others.
    """

    binary: dict[str, bool]
    default: bool

    def as_bytes(self, name: str) -> bool:
        """Whether an output goes behind the JSON."""
        return self.binary.get(name, self.default)


def read_request(
    body: bytes, *, json_length: str | None, model: str, version: str, limits: Limits
) -> tuple[ModelInferRequest, Wanted]:
    """The message for Triton, and how to answer.

    Args:
        body: unpacked.
        json_length: value of `Inference-Header-Content-Length`; None where all of the body is JSON.
        model: name.
        version: digits, or nothing for the newest.
        limits: of the request.

    Raises:
        HttpError: 400, or 413 where something is too long.
    """
    content, rest = _split(body, json_length, limits)
    request = ModelInferRequest(model_name=model, model_version=version)
    if (identity := content.get("id")) is not None:
        request.id = _text("id", identity, limits)
    default = _parameters(request, content.get("parameters"), limits)
    at = 0
    for entry in _entries("inputs", content.get("inputs"), limits.inputs):
        at = _add_input(request, entry, rest, at, limits)
    if at != len(rest):
        raise invalid(f"expected {at:,} bytes of inputs behind the JSON, got {len(rest):,}")
    binary = {}
    if content.get("outputs") is not None:
        for entry in _entries("outputs", content["outputs"], limits.outputs):
            name, as_bytes = _add_output(request, entry, limits)
            if as_bytes is not None:
                binary[name] = as_bytes
    return request, Wanted(binary, default)


def _split(body: bytes, json_length: str | None, limits: Limits) -> tuple[dict[str, Any], memoryview]:
    length = len(body)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdigit() and len(json_length) < 12):
            raise invalid(f"expected a number as Inference-Header-Content-Length, got {shown(json_length)}")
        length = int(json_length)
        if not 0 < length <= len(body):
            raise invalid(f"inference header size should be in range (0, {len(body)}), got: {length}")
    if length > limits.json_bytes:
        most = f"{limits.json_bytes:,}"
        raise invalid(f"expected at most {most} bytes of JSON, got {length:,}: send tensors as binary data")
    try:
        content = pydantic_core.from_json(body[:length], allow_inf_nan=False)
    except ValueError as error:
        raise invalid(f"failed to parse the request JSON buffer: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise invalid(f"expected a JSON object as request, got {shown(content)}")
    return content, memoryview(body)[length:]


def _entries(what: str, entries: Any, most: int) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or not 1 <= len(entries) <= most:
        got = f"{len(entries):,}" if isinstance(entries, list) else shown(entries)
        raise invalid(f"expected {what}: a list of 1 to {most} tensors, got {got}")
    for entry in entries:
        if not isinstance(entry, dict):
            raise invalid(f"{what}: expected an object for each tensor, got {shown(entry)}")
    return entries


def _add_input(
    request: ModelInferRequest, entry: dict[str, Any], rest: memoryview, at: int, limits: Limits
) -> int:
    """Add an input; returns where the bytes of the next one begin."""
    name = _text("name of an input", entry.get("name"), limits)
    datatype = check_datatype(name, entry.get("datatype"))
    shape = entry.get("shape")
    count = check_shape(name, shape, dims=limits.dims, most=limits.body_bytes)
    parameters = _object(f"input {name!r}", entry.get("parameters"), limits)
    if unknown := parameters.keys() - {"binary_data_size"}:
        raise invalid(
            f"input {name!r}: expected no parameter but binary_data_size, got {shown(sorted(unknown))}"
        )
    size, data = parameters.get("binary_data_size"), entry.get("data")
    if (size is None) == (data is None):
        raise invalid(f"input {name!r}: expected either data or the parameter binary_data_size")
    if size is None:
        raw = from_json(name, data, datatype=datatype, count=count)
    else:
        if type(size) is not int or not 0 <= size <= len(rest) - at:
            raise invalid(
                f"input {name!r}: expected 0 to {len(rest) - at:,} as binary_data_size, the bytes left "
                f"behind the JSON, got {shown(size)}"
            )
        raw, at = bytes(rest[at : at + size]), at + size
        check_bytes(name, raw, datatype=datatype, count=count)
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(raw)
    return at


def _add_output(request: ModelInferRequest, entry: dict[str, Any], limits: Limits) -> tuple[str, bool | None]:
    name = _text("name of an output", entry.get("name"), limits)
    output = request.outputs.add(name=name)
    binary = None
    for key, value in _object(f"output {name!r}", entry.get("parameters"), limits).items():
        if key == "binary_data" and isinstance(value, bool):
            binary = value
        elif key == "classification" and type(value) is int and 0 <= value < 1 << 31:
            output.parameters[key].int64_param = value
        else:
            raise invalid(
                f"output {name!r}: expected the parameters binary_data (true, false) and classification "
                f"(a number), got {shown(key)}: {shown(value)}"
            )
    return name, binary


def _parameters(request: ModelInferRequest, found: Any, limits: Limits) -> bool:
    """Hand parameters on; returns whether outputs are to be answered as bytes."""
    default = False
    for key, value in _object("request", found, limits).items():
        if key == "binary_data_output":
            if not isinstance(value, bool):
                raise invalid(f"parameter 'binary_data_output': expected true or false, got {shown(value)}")
            default = value
        elif key.startswith(_RESERVED):
            raise invalid(
                "parameter keys starting with 'triton_' are reserved for Triton usage and should not be "
                "specified."
            )
        else:
            _set(request.parameters[_text("name of a parameter", key, limits)], key, value, limits)
    return default


def _set(parameter: InferParameter, key: str, value: Any, limits: Limits) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        parameter.int64_param = value
    elif isinstance(value, int) and 0 <= value < 1 << 64:
        parameter.uint64_param = value
    elif isinstance(value, str):
        parameter.string_param = _text(f"parameter {key!r}", value, limits)
    else:
        raise invalid(f"parameter {key!r} has invalid type. It should be either 'int', 'bool', or 'string'.")


def _object(what: str, found: Any, limits: Limits) -> dict[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, dict) or len(found) > limits.parameters:
        raise invalid(
            f"{what}: expected an object of at most {limits.parameters} parameters, got {shown(found)}"
        )
    return found


def _text(what: str, value: Any, limits: Limits) -> str:
    if not isinstance(value, str) or len(value) > limits.text:
        raise invalid(f"{what}: expected a text of at most {limits.text:,} characters, got {shown(value)}")
    return value
