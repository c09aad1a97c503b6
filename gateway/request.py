"""A body of KServe v2 over HTTP becomes the message that Triton takes over gRPC.

JSON with inputs, outputs and parameters; behind it, where `Inference-Header-Content-Length` says so, the
bytes of inputs: Triton's "binary tensor data extension".
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
        HttpError: 400.
    """
    content, behind = _split(body, json_length, most=limits.json_bytes)
    reader = _Reader(ModelInferRequest(model_name=model, model_version=version), behind, limits=limits)
    return reader.request, reader.read(content)


def _split(body: bytes, json_length: str | None, *, most: int) -> tuple[dict[str, Any], memoryview]:
    """The JSON, and what is behind it."""
    length = len(body)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdigit() and len(json_length) < 12):
            raise invalid(f"expected a number as Inference-Header-Content-Length, got {shown(json_length)}")
        length = int(json_length)
        if not 0 < length <= len(body):
            raise invalid(f"inference header size should be in range (0, {len(body)}), got: {length}")
    if length > most:
        raise invalid(f"expected at most {most:,} bytes of JSON, got {length:,}: send tensors as binary data")
    try:
        content = pydantic_core.from_json(body[:length], allow_inf_nan=False)
    except ValueError as error:
        raise invalid(f"failed to parse the request JSON buffer: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise invalid(f"expected a JSON object as request, got {shown(content)}")
    return content, memoryview(body)[length:]


class _Reader:
    """Fills one message from one body."""

    def __init__(self, request: ModelInferRequest, behind: memoryview, *, limits: Limits) -> None:
        self.request, self._behind, self._limits = request, behind, limits
        self._at = 0  # where the bytes of the next input begin

    def read(self, content: dict[str, Any]) -> Wanted:
        limits, behind = self._limits, len(self._behind)
        if (identity := content.get("id")) is not None:
            self.request.id = self._text("id", identity)
        default = self._parameters(content.get("parameters"))
        for entry in _entries("inputs", content.get("inputs"), most=limits.inputs):
            self._input(entry)
        if self._at != behind:
            raise invalid(f"expected {self._at:,} bytes of inputs behind the JSON, got {behind:,}")
        binary = {}
        if content.get("outputs") is not None:
            for entry in _entries("outputs", content["outputs"], most=limits.outputs):
                name, as_bytes = self._output(entry)
                if as_bytes is not None:
                    binary[name] = as_bytes
        return Wanted(binary, default)

    def _input(self, entry: dict[str, Any]) -> None:
        name = self._text("name of an input", entry.get("name"))
        datatype = check_datatype(name, entry.get("datatype"))
        shape = entry.get("shape")
        count = check_shape(name, shape, dims=self._limits.dims, most=self._limits.body_bytes)
        parameters = self._object(f"input {name!r}", entry.get("parameters"))
        if unknown := parameters.keys() - {"binary_data_size"}:
            got = shown(sorted(unknown))
            raise invalid(f"input {name!r}: expected no parameter but binary_data_size, got {got}")
        size, data = parameters.get("binary_data_size"), entry.get("data")
        if (size is None) == (data is None):
            raise invalid(f"input {name!r}: expected either data or the parameter binary_data_size")
        if size is None:
            raw = from_json(name, data, datatype=datatype, count=count)
        else:
            raw = self._take(name, size)
            check_bytes(name, raw, datatype=datatype, count=count)
        self.request.inputs.add(name=name, datatype=datatype, shape=shape)
        self.request.raw_input_contents.append(raw)

    def _take(self, name: str, size: Any) -> bytes:
        left = len(self._behind) - self._at
        if type(size) is not int or not 0 <= size <= left:
            wanted = f"0 to {left:,} as binary_data_size, the bytes left behind the JSON"
            raise invalid(f"input {name!r}: expected {wanted}, got {shown(size)}")
        self._at += size
        return bytes(self._behind[self._at - size : self._at])

    def _output(self, entry: dict[str, Any]) -> tuple[str, bool | None]:
        name = self._text("name of an output", entry.get("name"))
        output = self.request.outputs.add(name=name)
        binary = None
        for key, value in self._object(f"output {name!r}", entry.get("parameters")).items():
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

    def _parameters(self, found: Any) -> bool:
        """Hand parameters on; returns whether outputs are to be answered as bytes."""
        default = False
        for key, value in self._object("request", found).items():
            if key == "binary_data_output":
                if not isinstance(value, bool):
                    raise invalid(
                        f"parameter 'binary_data_output': expected true or false, got {shown(value)}"
                    )
                default = value
            elif key.startswith(_RESERVED):
                raise invalid(
                    "parameter keys starting with 'triton_' are reserved for Triton usage and should not be "
                    "specified."
                )
            else:
                self._set(self.request.parameters[self._text("name of a parameter", key)], value, key=key)
        return default

    def _set(self, parameter: InferParameter, value: Any, *, key: str) -> None:
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
            parameter.int64_param = value
        elif isinstance(value, int) and 0 <= value < 1 << 64:
            parameter.uint64_param = value
        elif isinstance(value, str):
            parameter.string_param = self._text(f"parameter {key!r}", value)
        else:
            raise invalid(
                f"parameter {key!r} has invalid type. It should be either 'int', 'bool', or 'string'."
            )

    def _object(self, what: str, found: Any) -> dict[str, Any]:
        if found is None:
            return {}
        if not isinstance(found, dict) or len(found) > self._limits.parameters:
            most = self._limits.parameters
            raise invalid(f"{what}: expected an object of at most {most} parameters, got {shown(found)}")
        return found

    def _text(self, what: str, value: Any) -> str:
        if not isinstance(value, str) or len(value) > self._limits.text:
            most = f"{self._limits.text:,}"
            raise invalid(f"{what}: expected a text of at most {most} characters, got {shown(value)}")
        return value


def _entries(what: str, entries: Any, *, most: int) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or not 1 <= len(entries) <= most:
        got = f"{len(entries):,}" if isinstance(entries, list) else shown(entries)
        raise invalid(f"expected {what}: a list of 1 to {most} tensors, got {got}")
    for entry in entries:
        if not isinstance(entry, dict):
            raise invalid(f"{what}: expected an object for each tensor, got {shown(entry)}")
    return entries
