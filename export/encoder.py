"""A tokenizer's text encoder as an ONNX graph: new ads get the SIDs that the tokenizer would give them.

The graph follows `TfidfSvd` and `ResidualKMeans` in float64 up to the grid, where arithmetic becomes exact.
Before the grid only operations with one possible order of addition are used (CumSum, Scan), so a row is the
same in any batch and with any padding. One sum, the squared length of the projection, NumPy adds in another
order: it may differ in its last bit of 53, which the cast to float32 and the grid drop.

Letters: N texts, L n-grams of the longest text, F n-grams of the vocabulary, D dimensions, K codes of a
level, T levels of a SID.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
from onnx import TensorProto, helper, numpy_helper

from export.parity import ParityError
from indexer.encoder import ANALYSIS, FORMAT_VERSION, GRAPH, SETTINGS, AdEncoder, graph_metadata
from training.tokenizer.embedders.tfidf_svd import MIN_LENGTH, TOKEN_PATTERN, TfidfSvd
from training.tokenizer.quantizers.residual_kmeans import GRID
from training.tokenizer.tokenizer import Tokenizer

OPSET, IR_VERSION = 17, 8


def write_encoder(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `encoder.onnx` and `encoder.json` into a new folder and check them against the tokenizer.

    Raises:
        ValueError: the tokenizer's embedder has no ONNX form.
        ParityError: the encoder does not give the tokenizer's SIDs.
    """
    embedder = tokenizer.embedder
    if not isinstance(embedder, TfidfSvd):
        raise ValueError(
            f"tokenizer {tokenizer.tokenizer_id}: expected an embedder with an ONNX form (tfidf_svd), got "
            f"{type(embedder).__name__}: write one in {Path(__file__).name}, or export without the tokenizer"
        )
    arrays, metadata = embedder.state()
    dim, features = arrays["components"].shape
    graph = encoder_graph(arrays["idf"], arrays["components"], codebooks=tokenizer.codebooks)
    helper.set_model_props(
        graph,
        graph_metadata(tokenizer.tokenizer_id, tokenizer.level_sizes, features=features, dim=dim),
    )
    vocabulary: dict[str, int] = metadata["vocabulary"]
    settings = {
        "format_version": FORMAT_VERSION,
        "tokenizer_id": tokenizer.tokenizer_id,
        "analysis": ANALYSIS,
        "token_pattern": TOKEN_PATTERN,
        "ngram_max": metadata["ngram_max"],
        "level_sizes": tokenizer.level_sizes,  # the last one is the hash's
        "embedding_dim": dim,
        "vocabulary": sorted(vocabulary, key=vocabulary.__getitem__),  # n-gram i is column i
    }
    folder.mkdir()
    onnx.save(graph, str(folder / GRAPH))
    (folder / SETTINGS).write_text(json.dumps(settings))
    check_encoder(tokenizer, folder)


def check_encoder(tokenizer: Tokenizer, folder: Path, *, count: int = 1000, seed: int = 0) -> None:
    """Compare the SIDs of `count` seeded texts, most of them of the tokenizer's own words.

    Raises:
        ParityError: a SID differs.
    """
    words = json.loads((folder / SETTINGS).read_text())["vocabulary"]
    ads = _sample(words, count=count, seed=seed)
    columns = {name: ads[name].to_list() for name in ("account_id", "conversion_type", "text")}
    actual = AdEncoder(folder).encode(
        ads["ad_id"].to_list(),
        account_ids=columns["account_id"],
        conversion_types=columns["conversion_type"],
        texts=columns["text"],
    )
    wanted = tokenizer.encode(ads)
    wrong = np.flatnonzero((actual != wanted).any(axis=1))
    if len(wrong):
        row = wrong[0]
        raise ParityError(
            f"encoder: expected the SIDs of tokenizer {tokenizer.tokenizer_id}, {len(wrong)} of {count} "
            f"differ, first of {columns['text'][row][:80]!r}: expected {wanted[row].tolist()}, got "
            f"{actual[row].tolist()}; the bundle is not published"
        )


def _sample(words: list[str], *, count: int, seed: int) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    # A dotted capital I changes its length in lower case.
    texts = ["", "!?", "\u0130 \u6f22\u5b57 unknown_word", " ".join(words[:20_000])]
    while len(texts) < count:
        drawn = [words[i] for i in random.integers(0, len(words), random.integers(1, 12))]
        # Repeated words, unknown words, and case must be seen too.
        drawn += drawn[: random.integers(0, 3)] + ["zzzunknown"] * int(random.integers(0, 2))
        text = " ".join(drawn)
        texts.append(text.upper() if random.integers(0, 4) == 0 else text)
    texts = texts[:count]
    return pl.DataFrame(
        {
            "ad_id": random.integers(0, 2**63, len(texts)),
            "account_id": [f"account {i % 97}" for i in range(len(texts))],
            "conversion_type": ["plain", "ü"] * (len(texts) // 2) + ["plain"] * (len(texts) % 2),
            "text": texts,
        }
    )


class _Nodes:
    """Nodes and constants of one graph, named as they come."""

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._prefix = prefix

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{self._prefix}{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any) -> str:
        name = f"{self._prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def length(self, x: str) -> str:
        """Length float64 [N, 1] of the rows of x [N, .], added from left to right."""
        axis, last = self.constant(1, np.int64), self.constant([-1], np.int64)
        sums = self.add("CumSum", self.add("Mul", x, x), axis)
        return self.add("Sqrt", self.add("Gather", sums, last, axis=1))


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
    g = _Nodes()
    idf_of = g.add("Gather", g.constant(idf, np.float32), "columns")  # [N, L]
    tfidf = g.add("Mul", "tf", g.add("Cast", idf_of, to=TensorProto.DOUBLE))
    projected = _projection(g, g.add("Div", tfidf, g.length(tfidf)), components)  # [N, D]
    length = g.length(projected)
    # A text without a known word is 0 / 0 by now, and NaN is not greater either: the zero vector.
    known = g.add("Greater", length, g.constant(MIN_LENGTH, np.float64))
    unit = g.add("Where", known, g.add("Div", projected, length), g.constant(0, np.float64))
    # float32, as `TextEmbedder.embed` returns it, then the grid of `ResidualKMeans`.
    unit = g.add("Cast", g.add("Cast", unit, to=TensorProto.FLOAT, name="unit"), to=TensorProto.DOUBLE)
    grid = g.constant(GRID, np.float64)
    residual = g.add("Div", g.add("Round", g.add("Mul", unit, grid)), grid)
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
    graph = helper.make_graph(
        g.nodes,
        "encoder",
        [
            helper.make_tensor_value_info("columns", TensorProto.INT64, ["N", "L"]),
            helper.make_tensor_value_info("tf", TensorProto.DOUBLE, ["N", "L"]),
        ],
        [helper.make_tensor_value_info("codes", TensorProto.INT32, ["N", len(codebooks)])],
        g.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


def _projection(g: _Nodes, weights: str, components: np.ndarray) -> str:
    """Sum over a text's features of weight * row of the projection, one feature after the other: [N, D].

    A Scan holds [N, D], where one product of gathered rows would hold [N, L, D].
    """
    dim = components.shape[0]
    rows = g.constant(np.ascontiguousarray(components.T), np.float32)  # [F, D]
    body = _Nodes("body_")
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
