"""Products with constant weights in an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

_WIDTHS: dict[int, int] = {  # bytes; 4 for all others
    TensorProto.FLOAT8E4M3FN: 1,
    TensorProto.FLOAT16: 2,
    TensorProto.INT64: 8,
    TensorProto.BOOL: 1,
}
VIEWS = ("Slice", "Transpose", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Cast")


def products(
    graph: onnx.GraphProto,
) -> Iterator[tuple[onnx.NodeProto, onnx.TensorProto, list[onnx.NodeProto]]]:
    """Products (MatMul, Gemm) whose second factor is constant.

    Yields:
        The product; the initializer; and the nodes between the two, first one first: views such as Transpose,
        and the DequantizeLinear of a quantized weight.
    """
    initializers = {i.name: i for i in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            name, between = node.input[1], []  # type: str, list[onnx.NodeProto]
            while name in producers and producers[name].op_type in (*VIEWS, "DequantizeLinear"):
                between.insert(0, producers[name])
                name = producers[name].input[0]
            if name in initializers:
                yield node, initializers[name], between


def constant_products(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, np.ndarray]]:
    """Products and their second factor as the product reads it."""
    initializers = {i.name: i for i in graph.initializer}
    found: list[tuple[onnx.NodeProto, np.ndarray]] = []
    for node, root, between in products(graph):
        constants = [root, *(initializers[n] for b in between for n in b.input[1:] if n in initializers)]
        output = helper.make_tensor_value_info(node.input[1], root.data_type, None)
        if not between:
            found.append((node, onnx.numpy_helper.to_array(root)))
            continue
        part = helper.make_graph(between, "weight", [], [output], constants)
        [weight] = ReferenceEvaluator(helper.make_model(part)).run(None, {})
        found.append((node, np.asarray(weight)))
    return found


def fp8_share(graph: onnx.GraphProto) -> float:
    """Share of the numbers in constant weights of products that are FP8."""
    fp8 = total = 0
    for _, root, _ in products(graph):
        size = int(np.prod(root.dims))
        total += size
        fp8 += size * (root.data_type == TensorProto.FLOAT8E4M3FN)
    return fp8 / max(total, 1)


def product_bytes(graph: onnx.GraphProto) -> int:
    """Bytes of the constant weights of products, without their scales."""
    return sum(_bytes(root) for _, root, _ in products(graph))


def weight_bytes(graph: onnx.GraphProto) -> int:
    """Bytes of all constants: weights of products, scales, embeddings, norms."""
    return sum(_bytes(i) for i in graph.initializer)


def _bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims)) * _WIDTHS.get(int(tensor.data_type), 4)
