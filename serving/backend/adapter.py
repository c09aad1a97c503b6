"""What the Triton adapters (`model_repository/*/1/model.py`) have in common.

`triton` is always the module `triton_python_backend_utils`.

Letters: b rows of one client request.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.backend.request import RequestError
from serving.load.policy import OverloadError

logger = logging.getLogger(__name__)

HOME = Path(os.environ.get("GR4AD_HOME", Path(__file__).resolve().parents[2]))


def parameters(args: Mapping[str, str]) -> dict[str, str]:
    """The `parameters` of a model's config.pbtxt."""
    config = json.loads(args["model_config"])
    return {name: value["string_value"] for name, value in config["parameters"].items()}


def resolve_path(text: str) -> Path:
    """A path of the config; relative ones are relative to the checkout."""
    return HOME / text


def array(triton: Any, request: Any, name: str) -> np.ndarray | None:
    """Input tensor of a request, None when the client left an optional one out."""
    tensor = triton.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def answer(triton: Any, outputs: Mapping[str, np.ndarray]) -> Any:
    """Response with these tensors."""
    return triton.InferenceResponse(
        output_tensors=[triton.Tensor(k, np.ascontiguousarray(v)) for k, v in outputs.items()]
    )


def refuse(triton: Any, error: Exception) -> Any:
    """Response that tells the client what is wrong: its own mistake, no time for it, or ours."""
    codes = triton.TritonError
    code = codes.INTERNAL
    if isinstance(error, RequestError):
        code = codes.INVALID_ARG
    elif isinstance(error, OverloadError):
        code = codes.UNAVAILABLE
    return triton.InferenceResponse(error=triton.TritonError(str(error) or type(error).__name__, code))


def answer_each(
    triton: Any, requests: list[Any], run: Callable[[Any], Mapping[str, np.ndarray]]
) -> list[Any]:
    """One response a request; an exception becomes that request's error, never the batch's."""
    responses = []
    for request in requests:
        try:
            responses.append(answer(triton, run(request)))
        except (RequestError, OverloadError) as error:
            responses.append(refuse(triton, error))
        except Exception as error:  # a raise here would fail every request of the batch
            logger.exception("request failed")
            responses.append(refuse(triton, error))
    return responses


def integer_parameter(request: Any, name: str) -> int | None:
    """A request parameter that must be a positive whole number; None when it is absent.

    Raises:
        RequestError: it is something else.
    """
    value = json.loads(request.parameters() or "{}").get(name)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | str)
        or not str(value).isdecimal()
        or len(str(value)) > 18  # int() itself refuses thousands of digits
        or int(value) < 1
    ):
        raise RequestError(f"parameter {name}: expected a whole number >= 1, got {value!r}")
    return int(value)


def text_parameter(request: Any, name: str) -> str | None:
    """A request parameter that must be a text; None when it is absent.

    Raises:
        RequestError: it is something else, or very long.
    """
    value = json.loads(request.parameters() or "{}").get(name)
    if value is not None and (not isinstance(value, str) or len(value) > 200):
        shown = value if not isinstance(value, str) else f"{len(value)} characters"
        raise RequestError(f"parameter {name}: expected a text of at most 200 characters, got {shown!r}")
    return value


def cache_parameter(request: Any) -> bool:
    """Whether a cached result will do: request parameter `cache`, "use" (the default) or "bypass".

    Raises:
        RequestError: it is something else.
    """
    value = text_parameter(request, "cache")
    if value not in (None, "use", "bypass"):
        raise RequestError(f'parameter cache: expected "use" or "bypass", got {value!r}')
    return value != "bypass"


def cancelled(triton: Any) -> Any:
    """Response to a request that its client has given up."""
    error = triton.TritonError("the client has cancelled the request", triton.TritonError.CANCELLED)
    return triton.InferenceResponse(error=error)


def pad_rows(rows: list[np.ndarray], *, fill: float) -> np.ndarray:
    """Stack rows [n_i, ...] to [b, max n, ...], filled up with `fill`."""
    width = max(map(len, rows))
    return np.stack(
        [np.concatenate([r, np.full((width - len(r), *r.shape[1:]), fill, r.dtype)]) for r in rows]
    )
