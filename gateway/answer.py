"""An answer of Triton over gRPC becomes a body of KServe v2 over HTTP."""

from __future__ import annotations

from typing import Any

import pydantic_core
from tritonclient.grpc.service_pb2 import ModelInferResponse, ModelMetadataResponse, ServerMetadataResponse

from gateway.request import Wanted
from gateway.tensors import to_json

_EXTENSIONS = {"classification", "sequence", "schedule_policy", "binary_tensor_data", "parameters"}
"""Of Triton's extensions those that the gateway hands on."""

Answer = tuple[bytes, list[tuple[bytes, bytes]]]
"""A body and its own headers."""

_JSON = (b"content-type", b"application/json")


def infer_answer(response: ModelInferResponse, wanted: Wanted) -> Answer:
    """Outputs as JSON, or behind it as bytes.

    Raises:
        HttpError: 400, an output that JSON cannot hold.
    """
    head: dict[str, Any] = {"id": response.id} if response.id else {}
    head |= {"model_name": response.model_name, "model_version": response.model_version}
    if response.parameters:
        head["parameters"] = {
            name: getattr(value, kind)
            for name, value in response.parameters.items()
            if (kind := value.WhichOneof("parameter_choice"))
        }
    outputs, behind = [], []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        entry = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if wanted.as_bytes(output.name):
            entry["parameters"] = {"binary_data_size": len(raw)}
            behind.append(raw)
        else:
            entry["data"] = to_json(raw, datatype=output.datatype)
        outputs.append(entry)
    made = pydantic_core.to_json(head | {"outputs": outputs})
    if not behind:
        return made, [_JSON]
    length = (b"inference-header-content-length", str(len(made)).encode())
    return b"".join([made, *behind]), [(b"content-type", b"application/octet-stream"), length]


def model_answer(response: ModelMetadataResponse) -> Answer:
    """Metadata of a model."""

    def tensors(of: Any) -> list[dict[str, Any]]:
        return [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in of]

    return json_answer(
        {
            "name": response.name,
            "versions": list(response.versions),
            "platform": response.platform,
            "inputs": tensors(response.inputs),
            "outputs": tensors(response.outputs),
        }
    )


def server_answer(response: ServerMetadataResponse) -> Answer:
    """Metadata of the server; of its extensions those that can be used here."""
    extensions = [name for name in response.extensions if name in _EXTENSIONS]
    return json_answer({"name": response.name, "version": response.version, "extensions": extensions})


def json_answer(content: dict[str, Any]) -> Answer:
    """Any object."""
    return pydantic_core.to_json(content), [_JSON]
