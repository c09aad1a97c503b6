"""FP8 (E4M3) as nvidia-modelopt describes it: what is quantized, for calibration and for training with it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.model.gr4ad import Generator

FP8: dict[str, Any] = {
    "quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        {
            "quantizer_name": "*weight_quantizer",
            "parent_class": "nn.Linear",
            "cfg": {"num_bits": (4, 3), "axis": 0},
        },
        {
            "quantizer_name": "*input_quantizer",
            "parent_class": "nn.Linear",
            "cfg": {"num_bits": (4, 3), "axis": None},
        },
        {"quantizer_name": "tied_heads.*.weight_quantizer", "cfg": {"num_bits": (4, 3), "axis": 0}},
        {"quantizer_name": "tied_heads.*.input_quantizer", "cfg": {"num_bits": (4, 3), "axis": None}},
    ],
    "algorithm": "max",
}
"""Weights with a scale an output channel, activations with a scale a tensor; nothing but linear layers and
tied heads, which are linear layers in the graphs that serve."""


class MissingPackageError(RuntimeError):
    """An optional package is not installed."""


def modelopt_quantization() -> Any:
    """`modelopt.torch.quantization`.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import modelopt.torch.quantization as mtq
    except ImportError as error:
        raise MissingPackageError(
            f"FP8 needs nvidia-modelopt ({error}); run `make precision-setup`, or pip install -r "
            "requirements-precision.txt"
        ) from error
    return mtq


def quantized_copy(model: Generator, batches: Iterable[tuple[Tensor, ...]]) -> Generator:
    """A copy whose products run in emulated FP8, to be trained: gradients pass the rounding unchanged.

    Args:
        model: trained; not changed.
        batches: arguments of its `forward` that ranges of activations are measured on.

    Raises:
        MissingPackageError: modelopt is not installed.
    """
    mtq = modelopt_quantization()
    student = copy.deepcopy(model)
    # In two steps: a model that has any quantizer, as a tied head does, counts as one that has them all.
    mtq.quantize(student, FP8 | {"algorithm": None})
    expose_tied_heads(student)

    def measure(quantized: nn.Module) -> None:
        for inputs in batches:
            quantized(*inputs)

    with torch.no_grad():
        mtq.quantize(student, FP8, forward_loop=measure)
    return student


def share_weights(plain: Generator, quantized: Generator) -> None:
    """Make `plain` a view of a quantized model: it has the same weights in memory, and no quantizers."""
    weights = {name: w for name, w in quantized.state_dict().items() if "_quantizer." not in name}
    plain.load_state_dict(weights, assign=True)


def expose_tied_heads(model: Generator) -> None:
    """Give the heads that share the code tables quantizers, which modelopt looks for in modules only."""
    if not model.config.tie_embeddings:
        return
    from modelopt.torch.quantization.nn import TensorQuantizer

    class TiedHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_quantizer, self.weight_quantizer = TensorQuantizer(), TensorQuantizer()

        def forward(self, h: Tensor, weight: Tensor) -> Tensor:
            return functional.linear(self.input_quantizer(h), self.weight_quantizer(weight))

    model.tied_heads = nn.ModuleList(TiedHead() for _ in model.level_sizes)
    plain = type(model).logits

    def logits(self: Any, h: Tensor, level: int) -> Tensor:
        if level > self.levels:
            return plain(self, h, level)
        return self.tied_heads[level - 1](self.norm(h), self.codes.table(level).weight[1:])

    model.logits = MethodType(logits, model)  # type: ignore[method-assign]
