"""How the Triton adapters answer: one response a request, an error where one failed, and a line in the log.

`triton` is always the module `triton_python_backend_utils`, or a stand-in with the same names.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from serving.backend.outcomes import ClientGoneError, Outcome, Outcomes, outcome_of

logger = logging.getLogger(__name__)

Row = TypeVar("Row")
Result = TypeVar("Result")
Given = TypeVar("Given")
Found = TypeVar("Found")


def answer_each(
    triton: Any,
    requests: list[Any],
    run: Callable[[Any], Mapping[str, np.ndarray]],
    *,
    outcomes: Outcomes | None = None,
) -> list[Any]:
    """One response a request; an exception becomes that request's error, never the batch's.

    What is neither the client's mistake nor overload is logged with its traceback.
    """
    return _responses(triton, [_attempt(run, request) for request in requests], outcomes=outcomes)


def answer_together(
    triton: Any,
    requests: list[Any],
    *,
    rows: Callable[[Any], list[Row]],
    run: Callable[[list[Row]], list[Result | Exception]],
    outputs: Callable[[list[Result]], Mapping[str, np.ndarray]],
    outcomes: Outcomes | None = None,
) -> list[Any]:
    """One response a request, where all rows of all requests are worked on together; else as `answer_each`.

    Args:
        triton: see above.
        requests: those that their clients have given up get no rows.
        rows: what is to be done for a request.
        run: results of all rows in order, an exception for a row that failed.
        outputs: tensors of one request's results.
        outcomes: counts how requests end; None for nobody.
    """

    def rows_of(request: Any) -> list[Row]:
        if request.is_cancelled():
            raise ClientGoneError
        return rows(request)

    asked = [_attempt(rows_of, request) for request in requests]
    work = [row for found in asked if not isinstance(found, Exception) for row in found]
    results = _attempt(run, work)
    left = iter([results] * len(work) if isinstance(results, Exception) else results)
    answers: list[Mapping[str, np.ndarray] | Exception] = []
    for found in asked:
        if isinstance(found, Exception):
            answers.append(found)
            continue
        done = list(itertools.islice(left, len(found)))
        failed = next((r for r in done if isinstance(r, Exception)), None)
        good = [r for r in done if not isinstance(r, Exception)]
        answers.append(_attempt(outputs, good) if failed is None else failed)
    return _responses(triton, answers, outcomes=outcomes)


def _attempt(call: Callable[[Given], Found], given: Given) -> Found | Exception:
    """What a call returns or raises: a raise in an adapter would fail every request of the batch."""
    try:
        return call(given)
    except Exception as error:  # noqa: BLE001
        return error


def _responses(
    triton: Any, answers: list[Mapping[str, np.ndarray] | Exception], *, outcomes: Outcomes | None
) -> list[Any]:
    """Tensors, or an error that tells the client what is wrong: its own mistake, no time for it, or ours."""
    codes, responses = triton.TritonError, []
    code_of: dict[Outcome, Any] = {
        "refused": codes.INVALID_ARG,
        "rejected": codes.UNAVAILABLE,
        "cancelled": codes.CANCELLED,
        "failed": codes.INTERNAL,
    }
    logged: list[Exception] = []
    found: list[Outcome] = []

    def respond(outputs: Mapping[str, np.ndarray]) -> Any:
        tensors = [triton.Tensor(name, np.ascontiguousarray(values)) for name, values in outputs.items()]
        return triton.InferenceResponse(output_tensors=tensors)

    for answer in answers:
        made = answer if isinstance(answer, Exception) else _attempt(respond, answer)
        outcome: Outcome = outcome_of(made) if isinstance(made, Exception) else "answered"
        found.append(outcome)
        if not isinstance(made, Exception):
            responses.append(made)
            continue
        if outcome == "failed" and not any(made is error for error in logged):
            logger.error("request failed", exc_info=made)  # one failure of several requests is one line
            logged.append(made)
        error = triton.TritonError(str(made) or type(made).__name__, code_of[outcome])
        responses.append(triton.InferenceResponse(error=error))
    if outcomes is not None:
        outcomes.count(found)
    return responses
