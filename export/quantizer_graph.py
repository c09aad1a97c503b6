"""The part of an encoder's graph that turns a vector into codes, as the quantizer does, bit for bit.

Everything here is exact (`training/tokenizer/quantizers/grid.py`): sums of numbers on the grid do not round,
so neither batch nor threads nor the order of addition can change a code.

Letters: N ads, D dimensions, K codes of a level, L levels.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from training.tokenizer.graph_nodes import Nodes
from training.tokenizer.quantizers.base import Quantizer
from training.tokenizer.quantizers.fsq import Fsq
from training.tokenizer.quantizers.grid import GRID
from training.tokenizer.quantizers.mlp import LIMIT, ResidualMlp
from training.tokenizer.quantizers.residual import ResidualQuantizer
from training.tokenizer.quantizers.rq_kmeans_plus import RqKmeansPlus


def add_codes(g: Nodes, vectors: str, quantizer: Quantizer) -> None:
    """Add the output `codes`, int32 [N, L], of vectors float32 [N, D].

    Raises:
        ValueError: the quantizer has no ONNX form.
    """
    point = on_grid(g, g.add("Cast", vectors, to=TensorProto.DOUBLE))
    if isinstance(quantizer, ResidualQuantizer):
        codes = _residual(g, point, quantizer)
    elif isinstance(quantizer, RqKmeansPlus):
        codes = _residual(g, _mlp(g, point, quantizer.encoder), quantizer.quantizer)
    elif isinstance(quantizer, Fsq):
        codes = _scalars(g, point, quantizer)
    else:
        raise ValueError(
            f"expected a quantizer with an ONNX form, got {type(quantizer).__name__}: write one in "
            "quantizer_graph.py, or export without the tokenizer"
        )
    g.add("Cast", g.add("Concat", *codes, axis=1), to=TensorProto.INT32, name="codes")


def on_grid(g: Nodes, x: str) -> str:
    """Float64 x, rounded to the grid."""
    grid = g.constant(GRID, np.float64)
    return g.add("Div", g.add("Round", g.add("Mul", x, grid)), grid)


def _residual(g: Nodes, point: str, quantizer: ResidualQuantizer) -> list[str]:
    """Codes int64 [N, 1] of each level of points float64 [N, D] on the grid."""
    codes, residual, axis = [], point, g.constant([1], np.int64)
    for level in quantizer.levels:
        book = g.add("Cast", g.constant(level.codebook, np.float32), to=TensorProto.DOUBLE)
        product = g.add("MatMul", residual, g.add("Transpose", book, perm=[1, 0]))  # [N, D] @ [D, K]
        scores = g.add("Sub", g.constant(level.bias, np.float64), product)
        code = g.add("ArgMin", scores, axis=1, keepdims=0)  # [N]
        residual = g.add("Sub", residual, g.add("Gather", book, code))
        codes.append(g.add("Unsqueeze", code, axis))
    return codes


def _mlp(g: Nodes, point: str, layer: ResidualMlp) -> str:
    """The layer of points float64 [N, D] on the grid, on the grid."""
    w1, b1, w2, b2 = (
        g.add("Cast", g.constant(a, np.float32), to=TensorProto.DOUBLE)
        for a in (layer.w1, layer.b1, layer.w2, layer.b2)
    )
    hidden = on_grid(g, g.add("Relu", g.add("Add", g.add("MatMul", point, w1), b1)))  # [N, H]
    output = g.add("Add", point, g.add("Add", g.add("MatMul", hidden, w2), b2))
    least, most = g.constant(-LIMIT, np.float64), g.constant(LIMIT, np.float64)
    return on_grid(g, g.add("Clip", output, least, most))


def _scalars(g: Nodes, point: str, quantizer: Fsq) -> list[str]:
    """Codes int64 [N, 1] of each level: how many borders lie below each scalar, as digits."""
    axes = g.add("Cast", g.constant(quantizer.axes, np.float32), to=TensorProto.DOUBLE)
    along = g.add("MatMul", point, axes)  # [N, P]
    codes, axis, columns = [], 0, g.constant([1], np.int64)
    for borders in quantizer.borders:
        digits, place = [], 1
        for border in borders:
            scalar = g.add("Gather", along, g.constant([axis], np.int64), axis=1)  # [N, 1]
            above = g.add("Greater", scalar, g.constant(border, np.float64))  # [N, L - 1]
            count = g.add("ReduceSum", g.add("Cast", above, to=TensorProto.INT64), columns, keepdims=1)
            digits.append(g.add("Mul", count, g.constant(place, np.int64)))
            axis, place = axis + 1, place * (len(border) + 1)
        codes.append(_sum(g, digits))
    return codes


def _sum(g: Nodes, terms: list[str]) -> str:
    total, *others = terms
    for term in others:
        total = g.add("Add", total, term)
    return total
