"""ONNX graphs of tokenizers: from what an ad is to its codes, bit for bit as the tokenizer gives them.

The graphs follow the embedder (`ProjectedWords`, `GivenVectors`, `Joined`) in float64 up to the grid, where
arithmetic becomes exact; from there on see `quantizer_graph.py`. Before the grid only operations with one
possible order of addition are used (CumSum, Scan), so a row is the same in any batch and with any padding.
One sum, the squared length of a projection, NumPy adds in another order: it may differ in its last bit of 53,
which the cast to float32 and the grid drop.

Letters: N ads, L n-grams of the longest text, F n-grams of the vocabulary or numbers of an ad, D dimensions,
K codes of a level, T levels of a SID.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.quantizer_graph import add_codes, on_grid
from training.tokenizer.embedders.given_vectors import CLIP, GivenVectors
from training.tokenizer.embedders.joined import Joined
from training.tokenizer.embedders.projected import MIN_LENGTH
from training.tokenizer.graph_nodes import Nodes
from training.tokenizer.quantizers.base import Quantizer


def words_graph(idf: np.ndarray, components: np.ndarray, *, quantizer: Quantizer) -> onnx.ModelProto:
    """Graph of `ProjectedWords`: columns int64 [N, L] and term frequencies to codes int32 [N, T - 1].

    Args:
        idf: float32 [F].
        components: float32 [D, F].
        quantizer: of vectors of D dimensions.
    """
    g = Nodes()
    add_codes(g, _unit(g, _words(g, idf, components)), quantizer)
    return _model(g, _WORD_INPUTS, levels=len(quantizer.level_sizes))


def vectors_graph(given: GivenVectors, *, quantizer: Quantizer) -> onnx.ModelProto:
    """Graph of `GivenVectors`: vectors float32 [N, D] and numbers float64 [N, F] to codes int32 [N, T - 1].

    Of vectors and numbers only what is there is an input. A number that is left out is NaN.

    Args:
        given: the embedder.
        quantizer: of vectors of D + F dimensions.
    """
    g = Nodes()
    add_codes(g, _given(g, given), quantizer)
    return _model(g, _given_inputs(given), levels=len(quantizer.level_sizes))


def joined_graph(embedder: Joined, *, quantizer: Quantizer) -> onnx.ModelProto:
    """Graph of `Joined`: the inputs of its parts, sentences as float32 [N, 384], to codes int32 [N, T - 1].

    Args:
        embedder: the embedder.
        quantizer: of vectors of D dimensions.
    """
    g, inputs, dense = Nodes(), list[onnx.ValueInfoProto](), list[str]()
    of_words, of_dense = np.split(embedder.components, [embedder.word_count], axis=1)
    if embedder.sentences:
        width = embedder.sentences.golden.shape[1]
        inputs.append(helper.make_tensor_value_info("sentences", TensorProto.FLOAT, ["N", width]))
        dense.append(g.add("Cast", "sentences", to=TensorProto.DOUBLE))
    if embedder.given:
        inputs += _given_inputs(embedder.given)
        dense.append(on_grid(g, g.add("Cast", _given(g, embedder.given), to=TensorProto.DOUBLE)))
    parts = []
    if embedder.words:
        inputs += _WORD_INPUTS
        parts.append(_words(g, embedder.words.idf, of_words))
    if dense:
        # Exact in any order of addition: both sides lie on the grid.
        parts.append(g.add("MatMul", g.add("Concat", *dense, axis=1), g.constant(of_dense.T, np.float64)))
    add_codes(g, _unit(g, g.add("Sum", *parts)), quantizer)
    return _model(g, inputs, levels=len(quantizer.level_sizes))


# Padding of a text has term frequency 0, its column may be any.
_WORD_INPUTS = [
    helper.make_tensor_value_info("columns", TensorProto.INT64, ["N", "L"]),
    helper.make_tensor_value_info("tf", TensorProto.DOUBLE, ["N", "L"]),
]


def _given_inputs(given: GivenVectors) -> list[onnx.ValueInfoProto]:
    inputs = []
    if given.dim:
        inputs.append(helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["N", given.dim]))
    if given.columns:
        width = len(given.columns)
        inputs.append(helper.make_tensor_value_info("numbers", TensorProto.DOUBLE, ["N", width]))
    return inputs


def _words(g: Nodes, idf: np.ndarray, components: np.ndarray) -> str:
    """TF-IDF of length 1, projected, float64 [N, D]; zero for a text without a known word."""
    idf_of = g.add("Gather", g.constant(idf, np.float32), "columns")  # [N, L]
    tfidf = g.add("Mul", "tf", g.add("Cast", idf_of, to=TensorProto.DOUBLE))
    return _projection(g, _of_length_one(g, tfidf, least=0.0), components)


def _unit(g: Nodes, projected: str) -> str:
    """Of length 1, float32 [N, D] as embedders return it; the zero vector where there is no direction."""
    unit = _of_length_one(g, projected, least=MIN_LENGTH)
    return g.add("Cast", unit, to=TensorProto.FLOAT, name="unit")


def _of_length_one(g: Nodes, x: str, *, least: float) -> str:
    """Rows of x divided by their length; zero where that is not above `least`."""
    length = g.length(x)
    longer = g.add("Greater", length, g.constant(least, np.float64))
    return g.add("Where", longer, g.add("Div", x, length), g.constant(0, np.float64))


def _given(g: Nodes, given: GivenVectors) -> str:
    """Vectors and numbers as `GivenVectors.embed` returns them, float32 [N, D + F]."""
    parts = []
    if given.dim:
        vectors = g.add("Cast", "vectors", to=TensorProto.DOUBLE)
        begin = 0
        for width in given.widths:
            part = vectors
            if len(given.widths) > 1:
                ends = (g.constant([at], np.int64) for at in (begin, begin + width, 1))
                part, begin = g.add("Slice", vectors, *ends), begin + width
            unit = _of_length_one(g, part, least=0.0)
            if len(given.widths) > 1:
                unit = g.add("Mul", unit, g.constant(given.share, np.float64))
            parts.append(unit)
    if given.columns:
        means = g.constant(given.mean, np.float64)
        known = g.add("Where", g.add("IsNaN", "numbers"), means, "numbers")
        standard = g.add("Div", g.add("Sub", known, means), g.constant(given.std, np.float64))
        least, most = g.constant(-CLIP, np.float64), g.constant(CLIP, np.float64)
        clipped = g.add("Clip", standard, least, most)
        parts.append(g.add("Mul", clipped, g.constant(given.scale, np.float64)))
    return g.add("Cast", g.add("Concat", *parts, axis=1), to=TensorProto.FLOAT, name="given")


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
