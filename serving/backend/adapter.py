"""What the Triton adapters (`model_repository/*/1/model.py`) read of a request, and rows of an answer.

`triton` is always the module `triton_python_backend_utils`.

Letters: b rows of one client request.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from serving.backend.model_settings import ModelSettings
from serving.backend.request import RequestError
from serving.keys import MAX_KEY
from serving.search.rank import RANK_BY, RankBy


def array(triton: Any, request: Any, name: str) -> np.ndarray | None:
    """Input tensor of a request, None when the client left an optional one out."""
    tensor = triton.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


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


def served_log_parameter(request: Any) -> bool:
    """Whether an answer leaves a record: request parameter `served_log`, "on" (the default) or "off".

    Raises:
        RequestError: it is something else.
    """
    value = text_parameter(request, "served_log")
    if value not in (None, "on", "off"):
        raise RequestError(f'parameter served_log: expected "on" or "off", got {value!r}')
    return value != "off"


def rank_parameter(request: Any, *, default: RankBy) -> RankBy:
    """What ads are ranked by: request parameter `rank_by`, "probability" or "value".

    Raises:
        RequestError: it is something else.
    """
    value = text_parameter(request, "rank_by")
    if value is None:
        return default
    for known in RANK_BY:
        if value == known:
            return known
    raise RequestError(f"parameter rank_by: expected {' or '.join(RANK_BY)}, got {value!r}")


def rerank_parameter(request: Any, settings: ModelSettings) -> bool:
    """Whether the bundle's ranker orders the ads: request parameter `rerank`, "off" or the ranker's kind.

    Raises:
        RequestError: it is something else, or a ranker that the bundle does not have.
    """
    value, ranker = text_parameter(request, "rerank"), settings.ranker
    value = settings.serving.rerank if value is None else value
    if value in ("off", ranker):
        return value != "off"
    if ranker is None:
        raise RequestError(f"parameter rerank: expected off, as the bundle has no ranker, got {value!r}")
    raise RequestError(f"parameter rerank: expected off or {ranker}, got {value!r}")


def user_parameter(request: Any, *, rows: int) -> int | str | None:
    """Who asks: request parameter `user_id`, a number or a key; None when it is absent.

    Raises:
        RequestError: it is something else, or the request has several rows.
    """
    value = json.loads(request.parameters() or "{}").get("user_id")
    if value is None:
        return None
    is_number = type(value) is int and 0 <= value < 1 << 63
    if not is_number and not (isinstance(value, str) and 0 < len(value) <= MAX_KEY):
        raise RequestError(
            f"parameter user_id: expected a number 0 .. 2**63 - 1 or a text of 1 to {MAX_KEY} characters, "
            f"got {value!r:.80}"
        )
    if rows != 1:
        raise RequestError(f"parameter user_id: expected a request of one row, got {rows}")
    return value


def ranked_among(request: Any, settings: ModelSettings) -> tuple[int, bool]:
    """What the resolver makes an answer of: `ranked_among` and `by_value` of a `SearchRequest`.

    Raises:
        RequestError: a parameter that says so is wrong.
    """
    reranked = rerank_parameter(request, settings)
    if rank_parameter(request, default=settings.serving.rank_by) == "value":
        return sys.maxsize, not reranked  # among all that have a value
    return settings.serving.rerank_pool if reranked else 0, False


def pad_rows(rows: list[np.ndarray], *, fill: float) -> np.ndarray:
    """Stack rows [n_i, ...] to [b, max n, ...], filled up with `fill`."""
    width = max(map(len, rows))
    return np.stack(
        [np.concatenate([r, np.full((width - len(r), *r.shape[1:]), fill, r.dtype)]) for r in rows]
    )
