"""ONNX graphs of tokenizers: from what an ad is to its codes, bit for bit as the tokenizer gives them.

The graphs follow the embedder (`ProjectedWords`, `GivenVectors`) and `ResidualKMeans` in float64 up to the
grid, where arithmetic becomes exact. Before the grid only operations with one possible order of addition are
used (CumSum, Scan), so a row is the same in any batch and with any padding. One sum, the squared length of a
text's projection, NumPy adds in another order: it may differ in its last bit of 53, which the cast to float32
and the grid drop.

Letters: N ads, L n-grams of the longest text, F n-grams of the vocabulary or numbers of an ad, D dimensions,
K codes of a level, T levels of a SID.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from training.tokenizer.embedders.given_vectors import CLIP
from training.tokenizer.embedders.projected import MIN_LENGTH
from training.tokenizer.graph_nodes import Nodes
from training.tokenizer.quantizers.residual_kmeans import GRID


def encoder_graph(
    idf: np.ndarray, components: np.ndarray, *, codebooks: tuple[np.ndarray, ...]
) -> onnx.ModelProto:
    """Graph from columns int64 [N, L] and term frequencies float64 [N, L] to codes int32 [N, T - 1].

    Padding has term frequency 0, its column may be any.

    Args:
        idf: float32 [F].
        components: float32 [D, F].
        codebooks: float32 [K, D] a level, on the grid.
    """
    g = Nodes()
    idf_of = g.add("Gather", g.constant(idf, np.float32), "columns")  # [N, L]
    tfidf = g.add("Mul", "tf", g.add("Cast", idf_of, to=TensorProto.DOUBLE))
    projected = _projection(g, g.add("Div", tfidf, g.length(tfidf)), components)  # [N, D]
    length = g.length(projected)
    # A text without a known word is 0 / 0 by now, and NaN is not greater either: the zero vector.
    known = g.add("Greater", length, g.constant(MIN_LENGTH, np.float64))
    unit = g.add("Where", known, g.add("Div", projected, length), g.constant(0, np.float64))
    # float32, as `ProjectedWords.embed` returns it.
    _codes(g, g.add("Cast", unit, to=TensorProto.FLOAT, name="unit"), codebooks)
    return _model(
        g,
        [
            helper.make_tensor_value_info("columns", TensorProto.INT64, ["N", "L"]),
            helper.make_tensor_value_info("tf", TensorProto.DOUBLE, ["N", "L"]),
        ],
        levels=len(codebooks),
    )


def vectors_graph(
    dim: int, *, mean: np.ndarray, std: np.ndarray, scale: float, codebooks: tuple[np.ndarray, ...]
) -> onnx.ModelProto:
    """Graph of `GivenVectors`: vectors float32 [N, D] and numbers float64 [N, F] to codes int32 [N, T - 1].

    Of vectors and numbers only what is there is an input. A number that is left out is NaN.

    Args:
        dim: D.
        mean: float64 [F].
        std: float64 [F].
        scale: of a standardised number.
        codebooks: float32 [K, D + F] a level, on the grid.
    """
    g, inputs, parts = Nodes(), [], []
    if dim:
        inputs.append(helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["N", dim]))
        vectors = g.add("Cast", "vectors", to=TensorProto.DOUBLE)
        length, zero = g.length(vectors), g.constant(0, np.float64)
        parts.append(g.add("Where", g.add("Greater", length, zero), g.add("Div", vectors, length), zero))
    if len(mean):
        inputs.append(helper.make_tensor_value_info("numbers", TensorProto.DOUBLE, ["N", len(mean)]))
        means = g.constant(mean, np.float64)
        known = g.add("Where", g.add("IsNaN", "numbers"), means, "numbers")
        standard = g.add("Div", g.add("Sub", known, means), g.constant(std, np.float64))
        least, most = g.constant(-CLIP, np.float64), g.constant(CLIP, np.float64)
        clipped = g.add("Clip", standard, least, most)
        parts.append(g.add("Mul", clipped, g.constant(scale, np.float64)))
    joined = g.add("Concat", *parts, axis=1)
    _codes(g, g.add("Cast", joined, to=TensorProto.FLOAT, name="unit"), codebooks)
    return _model(g, inputs, levels=len(codebooks))


def _codes(g: Nodes, vectors: str, codebooks: tuple[np.ndarray, ...]) -> None:
    """Output `codes` int32 [N, T - 1] of vectors float32 [N, D], as `ResidualKMeans.encode` has them."""
    grid = g.constant(GRID, np.float64)
    wide = g.add("Cast", vectors, to=TensorProto.DOUBLE)
    residual = g.add("Div", g.add("Round", g.add("Mul", wide, grid)), grid)
    codes = []
    axis = g.constant([1], np.int64)
    for codebook in codebooks:
        centroids = codebook.astype(np.float64)
        half_norm = g.constant(0.5 * (centroids * centroids).sum(axis=1), np.float64)  # [K]
        book = g.add("Cast", g.constant(codebook, np.float32), to=TensorProto.DOUBLE)
        product = g.add("MatMul", residual, g.add("Transpose", book, perm=[1, 0]))  # [N, D] @ [D, K]
        code = g.add("ArgMin", g.add("Sub", half_norm, product), axis=1, keepdims=0)  # [N]
        residual = g.add("Sub", residual, g.add("Gather", book, code))
        codes.append(g.add("Unsqueeze", code, axis))
    g.add("Cast", g.add("Concat", *codes, axis=1), to=TensorProto.INT32, name="codes")


def _model(g: Nodes, inputs: list[onnx.ValueInfoProto], *, levels: int) -> onnx.ModelProto:
    return g.model(inputs, [helper.make_tensor_value_info("codes", TensorProto.INT32, ["N", levels])])


def _projection(g: Nodes, weights: str, components: np.ndarray) -> str:
    """Sum over a text's features of weight * row of the projection, one feature after the other: [N, D].

    A Scan holds [N, D], where one product of gathered rows would hold [N, L, D].
    """
    dim = components.shape[0]
    rows = g.constant(np.ascontiguousarray(components.T), np.float32)  # [F, D]
    body = Nodes("body_")
    row = body.add("Cast", body.add("Gather", rows, "column"), to=TensorProto.DOUBLE)  # [N, D]
    weight = body.add("Unsqueeze", "weight", body.constant([1], np.int64))  # [N, 1]
    body.add("Add", "sum_in", body.add("Mul", weight, row), name="sum_out")
    step = helper.make_graph(
        body.nodes,
        "add_feature",
        [
            helper.make_tensor_value_info("sum_in", TensorProto.DOUBLE, ["N", dim]),
            helper.make_tensor_value_info("column", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("weight", TensorProto.DOUBLE, ["N"]),
        ],
        [helper.make_tensor_value_info("sum_out", TensorProto.DOUBLE, ["N", dim])],
        body.constants,
    )
    shape = g.add("Concat", g.add("Shape", "columns", end=1), g.constant([dim], np.int64), axis=0)
    start = g.add("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, np.float64)))
    return g.add("Scan", start, "columns", weights, body=step, num_scan_inputs=2, scan_input_axes=[1, 1])
