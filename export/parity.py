"""Parity of the split ONNX graphs with the unsplit PyTorch model: same log-probabilities, or no bundle.

Letters: B requests, n beams, V codes of a level, T SID levels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from export.graphs import example_request
from serving.engines.ort import OrtExecutor
from serving.search.executor import COPY_LOGPROB
from training.model.gr4ad import Generator

TOLERANCE = 1e-4
"""Of the median request."""
RARE = 1e-2
"""Of any request. Some contexts are ill-conditioned: there PyTorch in FP32 is as far from FP64."""


class ParityError(RuntimeError):
    """The exported graphs do not compute what the model computes."""


def parity_errors(
    model: Generator, bundle: Path, *, batch: int = 5, beams: int = 9, seed: int = 1
) -> np.ndarray:
    """Largest absolute difference of log-probabilities over all levels and codes, and of a copy path, [B].

    The model runs unsplit, teacher-forced on random SIDs; the graphs run level by level along the same SIDs,
    with the beams of every level in another order, so that the parent gather is part of what is compared. One
    request has an empty history.
    """
    generator = torch.Generator().manual_seed(seed)
    slots, profile = example_request(model, batch=batch, generator=generator)
    slots[-1] = 0
    tokens = torch.stack(
        [torch.randint(0, v, (batch, beams), generator=generator) for v in model.level_sizes], dim=-1
    )
    with torch.no_grad():
        said = model.eval()(slots, profile, tokens)
    expected = [x.log_softmax(-1).numpy() for x in said.logits]  # [B, n, V] a level
    executor = OrtExecutor(bundle, levels=model.levels)
    logprob, carry = executor.prefix(slots.numpy(), profile.numpy())
    # Level 1 sees no token: one row for all beams.
    worst = _worst(expected[0] - logprob[:, None])
    if said.copies is not None:
        worst = np.maximum(worst, _worst(said.copies.logprob.numpy() - carry[COPY_LOGPROB]))
    random = np.random.default_rng(seed)
    sids = tokens.numpy().astype(np.int32)
    order = np.broadcast_to(np.arange(beams), (batch, beams))  # beam i of the level follows path order[:, i]
    placed: list[np.ndarray] = []  # order of the beams at level 2, 3, ...
    for level in range(2, model.levels + 2):
        order = random.permuted(order, axis=1)
        # Where the path that beam i follows stood at each earlier level.
        parents = [np.take_along_axis(np.argsort(p, axis=1), order, 1).astype(np.int32) for p in placed]
        token = np.take_along_axis(sids[:, :, level - 2], order, 1)
        size = expected[level - 1].shape[-1]
        allowed = np.broadcast_to(np.arange(size, dtype=np.int32), (batch, beams, size))
        logprob, carry = executor.tail(
            level,
            carry,
            parents=parents,
            token=np.ascontiguousarray(token),
            allowed=np.ascontiguousarray(allowed),
        )
        path = np.take_along_axis(expected[level - 1], order[:, :, None], 1)
        worst = np.maximum(worst, _worst(path - logprob))
        placed.append(order)
    return worst


def _worst(difference: np.ndarray) -> np.ndarray:
    """Largest absolute value of each request."""
    return np.abs(difference).reshape(len(difference), -1).max(axis=1)


def require_parity(errors: np.ndarray, *, what: str) -> float:
    """The largest of the errors [B] of `what`.

    Raises:
        ParityError: the median request is beyond `TOLERANCE`, or one beyond `RARE`, or is not a number.
    """
    median, worst = float(np.median(errors)), float(np.max(errors))
    if not (median <= TOLERANCE and worst <= RARE):  # true for NaN, too
        raise ParityError(
            f"parity: expected {what} within {TOLERANCE:g} of PyTorch in the median request and within "
            f"{RARE:g} in each, got {median:g} and {worst:g}; the bundle is not published"
        )
    return worst


def check_parity(model: Generator, bundle: Path) -> float:
    """The largest parity error.

    Raises:
        ParityError: see `require_parity`.
    """
    return require_parity(parity_errors(model, bundle), what="log-probabilities of ONNX Runtime")
