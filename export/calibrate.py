"""Activation and weight ranges of the split graphs, calibrated by nvidia-modelopt on real requests.

Letters: N requests, B requests of a batch, S slots, T SID levels, P profile columns.
"""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from export.gate_requests import GateRequests
from serving.search.beam_search import beam_search
from serving.search.normalise import Normalise
from serving.search.widths import WidthPlan
from training.model.fp8 import FP8, modelopt_quantization
from training.model.gr4ad import Generator
from training.model.split import split
from training.rollout.executor import TorchExecutor

E4M3_MAX = 448.0


class CalibrationError(ValueError):
    """The calibration requests cannot say how large activations get."""


@dataclass(frozen=True)
class Ranges:
    """Largest absolute values of one product x W^T.

    Attributes:
        name: of its weight in the graph module.
        weight: float32 [out, in], the weight itself.
        activation: largest |x| seen.
    """

    name: str
    weight: np.ndarray
    activation: float


def calibrate(
    model: Generator,
    requests: GateRequests,
    *,
    plan: WidthPlan,
    value_table: np.ndarray,
    batch_size: int,
    normalise: tuple[Normalise, ...] | None = None,
) -> dict[str, list[Ranges]]:
    """Ranges of every linear layer of every graph; arguments and errors as of `calibrated_graphs`."""
    graphs = calibrated_graphs(
        model,
        requests,
        plan=plan,
        value_table=value_table,
        batch_size=batch_size,
        normalise=normalise,
    )
    return {stem: list(_ranges(stem, graph)) for stem, graph in graphs.items()}


def calibrated_graphs(
    model: Generator,
    requests: GateRequests,
    *,
    plan: WidthPlan,
    value_table: np.ndarray,
    batch_size: int,
    normalise: tuple[Normalise, ...] | None = None,
) -> nn.ModuleDict:
    """The split model with modelopt's quantizers, their ranges the largest over all requests.

    The requests are searched as they will be served, so tails see the beams they will see. A graph's layers
    have ranges of their own, also where graphs share weights.

    Args:
        model: not changed.
        requests: see `check_requests`.
        plan: widths that serve.
        value_table: float32 [V_value].
        batch_size: requests a search.
        normalise: as served.

    Raises:
        CalibrationError: see `check_requests`; or a layer saw nothing but zeros, or a number that is none.
        MissingPackageError: modelopt is not installed.
    """
    check_requests(requests.slots, requests.profile, batch_size=batch_size)
    mtq = modelopt_quantization()
    # Graphs share modules; ranges must not be shared.
    graphs = nn.ModuleDict({stem: copy.deepcopy(graph) for stem, graph in split(model).items()})

    bar: dict[str, Any] = {"desc": "calibrate", "unit": "batch", "file": sys.stderr, "mininterval": 2.0}

    def search(_: nn.Module) -> None:
        executor = TorchExecutor(graphs)
        for rows in tqdm(list(_batches(len(requests.slots), batch_size)), **bar):
            beam_search(
                executor,
                requests.snapshot.trie,
                requests.slots[rows],
                requests.profile[rows],
                plan=plan,
                num_results=np.ones(len(requests.slots[rows]), np.int64),
                value_table=value_table,
                normalise=normalise,
            )

    try:
        with torch.no_grad():
            mtq.quantize(graphs, FP8, forward_loop=search)
    except AssertionError as error:  # how modelopt says that a layer saw NaN
        raise CalibrationError(f"calibration: {error}") from error
    return graphs


def check_requests(slots: np.ndarray, profile: np.ndarray, *, batch_size: int) -> None:
    """Refuse calibration requests that are fewer than they look.

    Args:
        slots: int32 [N, S, T + 3].
        profile: int32 [N, P].
        batch_size: requests a batch.

    Raises:
        CalibrationError: none; all the same; or two batches with the same requests in any order.
    """
    if not len(slots):
        raise CalibrationError("calibration: expected at least one request, got none")
    rows = [hashlib.sha256(s.tobytes() + p.tobytes()).digest() for s, p in zip(slots, profile, strict=True)]
    if len(rows) > 1 and len(set(rows)) == 1:
        raise CalibrationError(
            f"calibration: expected different requests, got {len(rows)} times the same one"
        )
    seen: dict[tuple[bytes, ...], int] = {}
    for i, part in enumerate(_batches(len(rows), batch_size)):
        key = tuple(sorted(rows[part]))
        if key in seen:
            raise CalibrationError(
                f"calibration: expected batches of different requests, got batch {i} equal to batch "
                f"{seen[key]}"
            )
        seen[key] = i


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _ranges(stem: str, graph: nn.Module) -> Iterator[Ranges]:
    for name, module in graph.named_modules():
        quantizer: Any = getattr(module, "input_quantizer", None)
        if not isinstance(module, nn.Linear) or quantizer is None or quantizer.amax is None:
            continue  # not a linear layer, or one that this graph does not run
        activation = float(quantizer.amax)
        if not 0 < activation < np.inf:
            raise CalibrationError(
                f"calibration: {stem}: {name}: expected activations with a largest absolute value above 0, "
                f"got {activation}"
            )
        weight = module.weight.detach().numpy()
        yield Ranges(f"{name}.weight", weight, activation)
