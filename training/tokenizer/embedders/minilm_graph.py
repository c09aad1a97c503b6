"""ONNX graph of the sentence model all-MiniLM-L6-v2, without its weights: whoever opens it brings them.

The formulas are those of `serving.embedding.exact`, in float32. One text a call, so there is no mask.

Letters: L word pieces, D = 384 dimensions, H = 12 heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from serving.embedding.exact import EPSILON, HEAD_DIM, HEADS, LAYERS
from serving.embedding.sentence_model import DIM
from training.tokenizer.graph_nodes import Nodes


def minilm_graph(weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Graph from word pieces int64 [L] to their mean vector float32 [D].

    Args:
        weights: by their names in PyTorch; only names and shapes count here.
    """
    g = _Layers()
    word = g.add("Gather", g.weight("embeddings.word_embeddings.weight"), "pieces")  # [L, D]
    first = g.constant([0], np.int64)
    bounds = (first, g.add("Shape", "pieces"), first)  # from 0 to L, of axis 0
    position = g.add("Slice", g.weight("embeddings.position_embeddings.weight"), *bounds)
    kind = g.add("Gather", g.weight("embeddings.token_type_embeddings.weight"), g.constant(0, np.int64))
    x = g.norm("embeddings.LayerNorm", g.add("Add", g.add("Add", word, kind), position))
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        attended = g.affine(f"{name}.attention.output.dense", g.attention(f"{name}.attention.self", x))
        x = g.norm(f"{name}.attention.output.LayerNorm", g.add("Add", attended, x))
        hidden = g.gelu(g.affine(f"{name}.intermediate.dense", x))
        x = g.norm(f"{name}.output.LayerNorm", g.add("Add", g.affine(f"{name}.output.dense", hidden), x))
    g.add("ReduceMean", x, axes=[0], keepdims=0, name="mean")
    return g.model(
        [helper.make_tensor_value_info("pieces", TensorProto.INT64, ["L"])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [DIM])],
        weights=[_outside(name, weights[name].shape) for name in g.weights],
    )


class _Layers(Nodes):
    """Nodes of a BERT, and the names of the weights they want."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[str] = []

    def weight(self, name: str) -> str:
        self.weights.append(name)
        return name

    def affine(self, name: str, x: str) -> str:
        return self.add("Gemm", x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), transB=1)

    def norm(self, name: str, x: str) -> str:
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=EPSILON)

    def gelu(self, x: str) -> str:
        half, one = self.constant(0.5, np.float32), self.constant(1, np.float32)
        erf = self.add("Erf", self.add("Mul", x, self.constant(2**-0.5, np.float32)))
        return self.add("Mul", self.add("Mul", x, half), self.add("Add", erf, one))

    def attention(self, name: str, x: str) -> str:
        split = self.constant([-1, HEADS, HEAD_DIM], np.int64)
        q, k, v = (
            self.add("Transpose", self.add("Reshape", self.affine(f"{name}.{part}", x), split), perm=perm)
            for part, perm in (("query", [1, 0, 2]), ("key", [1, 2, 0]), ("value", [1, 0, 2]))
        )
        scores = self.add("Mul", self.add("MatMul", q, k), self.constant(HEAD_DIM**-0.5, np.float32))
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), v)  # [H, L, 32]
        return self.add(
            "Reshape", self.add("Transpose", mixed, perm=[1, 0, 2]), self.constant([-1, DIM], np.int64)
        )


def _outside(name: str, shape: tuple[int, ...]) -> TensorProto:
    """An initializer that lies in no file: ONNX Runtime is handed it."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    return tensor
