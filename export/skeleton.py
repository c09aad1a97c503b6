"""Graphs without their weights, and where each of these comes from: so a new model needs no new trace.

What is traced is a twin of the model with random weights. No two of its numbers are alike, so the numbers in
a graph say which weight of the model they are, whole, transposed or a part of it, whatever the exporter
folded. A constant that is none of them has nothing to do with the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from training.model.gr4ad import Generator
from training.model.split import split

SKELETON = "skeleton"  # folder of a bundle
WEIGHT, FORM = "gr4ad.weight", "gr4ad.form"  # what is written beside a constant of a graph
_WHOLE, _TRANSPOSED, _SELECTED = "whole", "transposed", "select"
_PLACES = 16  # levels, at most; a longer dimension is not cut apart by place

_Module = TypeVar("_Module", bound=nn.Module)


class SkeletonError(RuntimeError):
    """A skeleton is missing, or weights do not fit into it."""


def random_twin(model: _Module) -> _Module:
    """A copy with random weights, always the same ones: what is traced does not depend on what was learnt."""
    twin, random = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.copy_(torch.randn(weight.shape, generator=random))
    return twin


def mark(graph: onnx.GraphProto, weights: Mapping[str, Tensor]) -> None:
    """Write beside each constant of a traced graph which weight it is.

    Args:
        graph: of the twin.
        weights: of the module that was traced, by name.
    """
    known: dict[bytes, tuple[str, str]] = {}
    for name, weight in weights.items():
        for form, part in _forms(weight.detach().numpy()):
            known.setdefault(np.ascontiguousarray(part).tobytes(), (name, form))
    for constant in graph.initializer:
        if constant.data_type == TensorProto.FLOAT:
            found = known.get(numpy_helper.to_array(constant).tobytes())
            if found is not None:
                helper.set_metadata_props(constant, {WEIGHT: found[0], FORM: found[1]})


def fill(graph: onnx.GraphProto, weights: Mapping[str, Tensor]) -> None:
    """Give a marked graph the weights of a model.

    Args:
        graph: from a skeleton, or with the weights of another model.
        weights: of the module that it is the graph of, by name.

    Raises:
        SkeletonError: the module lacks one, or it has another size.
    """
    for constant in graph.initializer:
        told = {entry.key: entry.value for entry in constant.metadata_props}
        if WEIGHT not in told:
            continue
        weight, dims = weights.get(told[WEIGHT]), tuple(constant.dims)
        part = None if weight is None else _take(weight.detach().numpy(), told[FORM])
        if part is None or part.size != int(np.prod(dims)):
            got = "none" if part is None else f"one of shape {part.shape}"
            raise SkeletonError(
                f"{graph.name}: {told[WEIGHT]} ({told[FORM]}): expected a weight of shape {dims}, got {got}"
            )
        filled = numpy_helper.from_array(np.ascontiguousarray(part, np.float32).reshape(dims), constant.name)
        constant.raw_data = filled.raw_data


def write_skeletons(graphs: Path, target: Path) -> None:
    """Write the graphs of a folder without their weights into another, which is made."""
    target.mkdir()
    for file in sorted(graphs.glob("*.onnx")):
        model = onnx.load(str(file))
        for constant in model.graph.initializer:
            if any(entry.key == WEIGHT for entry in constant.metadata_props):
                constant.ClearField("raw_data")
        onnx.save(model, str(target / file.name))


def fill_skeletons(skeletons: Path, model: Generator, target: Path) -> None:
    """Write the graphs of a model into a folder: what `export_graphs` does, in a moment.

    Raises:
        SkeletonError: a skeleton is missing, or of another model.
    """
    for stem, module in split(model).items():
        file = skeletons / f"{stem}.onnx"
        if not file.is_file():
            raise SkeletonError(
                f"{file}: expected the graph without its weights, found none; `make export` makes a bundle "
                "that has it"
            )
        graph = onnx.load(str(file))
        fill(graph.graph, module.state_dict())
        onnx.checker.check_model(graph)
        onnx.save(graph, str(target / file.name))


def _forms(weight: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Everything of a weight that an exporter may have folded it to."""
    yield _WHOLE, weight
    if weight.ndim == 2:
        yield _TRANSPOSED, weight.T
    for axis, size in enumerate(weight.shape):
        if size <= _PLACES:
            for place in range(size):
                yield f"{_SELECTED} {axis} {place}", weight.take(place, axis)


def _take(weight: np.ndarray, form: str) -> np.ndarray | None:
    """One of the forms; None where the weight has no such form."""
    return dict(_forms(weight)).get(form)
