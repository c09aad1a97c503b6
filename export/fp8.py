"""FP8 graphs: explicit QuantizeLinear and DequantizeLinear (E4M3) around products with constant weights.

Weights are stored in FP8 with a scale an output channel, activations are quantized at run time with one
calibrated scale a tensor. Everything else stays as it is: attention between activations, softmax, norms.
"""

from __future__ import annotations

import fnmatch
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.calibrate import E4M3_MAX, Ranges
from export.int8 import QuantizeError
from export.products import constant_products

OPSET = 21  # the first whose Q/DQ and Cast know FP8 in every place TensorRT reads them


def quantize_fp8(
    source: Path, target: Path, ranges: dict[str, list[Ranges]], *, keep: tuple[str, ...] = ()
) -> None:
    """Quantize every graph of a folder.

    Args:
        source: folder with FP32 graphs, `*.onnx`; not changed.
        target: folder for graphs of the same names.
        ranges: of every graph.
        keep: patterns ("head.*", "layers.0.ffn.?.weight") of weights that stay as they are.

    Raises:
        QuantizeError: a constant weight has no calibrated range.
    """
    for file in sorted(source.glob("*.onnx")):
        model = onnx.load(str(file))
        quantize_graph(model, ranges[file.stem], keep=keep, where=file.name)
        onnx.save(model, str(target / file.name))


def quantize_graph(
    model: onnx.ModelProto, ranges: list[Ranges], *, keep: tuple[str, ...], where: str
) -> None:
    """Quantize one graph in place, see `quantize_fp8`."""
    graph = model.graph
    # The exporter renames and transposes weights, so they are found by their numbers. Of equal ones the
    # largest range counts: it holds the activations of all.
    ranges = sorted(ranges, key=lambda r: r.activation)
    known = {r.weight.tobytes(): r for r in ranges} | {
        np.ascontiguousarray(r.weight.T).tobytes(): r for r in ranges
    }
    activations: dict[str, str] = {}  # input of a product -> its quantized form
    missed = []
    for node, weight in constant_products(graph):
        found = known.get(np.ascontiguousarray(weight).tobytes())
        if found is None:
            missed.append(f"{node.name} {list(weight.shape)}")
            continue
        if any(fnmatch.fnmatch(found.name, pattern) for pattern in keep):
            continue
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        _quantize_weight(graph, node, weight, axis=0 if transposed else 1)
        if node.input[0] not in activations:
            activations[node.input[0]] = _quantize_activation(graph, node, scale=_scale(found.activation))
        node.input[0] = activations[node.input[0]]
    if missed:
        raise QuantizeError(
            f"{where}: expected a calibrated range for every weight, none for {', '.join(missed)}"
        )
    _drop_unused(graph)
    del graph.value_info[:]
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = max(opset.version, OPSET)


def _scale(largest: float | np.ndarray) -> np.ndarray:
    """Scale that maps `largest` to the largest E4M3 number; one that FP16 holds too, so both agree."""
    scale = np.asarray(largest, np.float32) / E4M3_MAX
    return np.maximum(scale, np.finfo(np.float16).tiny).astype(np.float16).astype(np.float32)


def _quantize_weight(graph: onnx.GraphProto, node: onnx.NodeProto, weight: np.ndarray, *, axis: int) -> None:
    scale = _scale(np.abs(weight).max(axis=1 - axis))
    shape = [-1, 1] if axis == 0 else [1, -1]
    quantized = np.clip(weight / scale.reshape(shape), -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn)
    name = f"{node.name}_weight"
    tensor = helper.make_tensor(
        f"{name}_fp8", TensorProto.FLOAT8E4M3FN, weight.shape, quantized.tobytes(), raw=True
    )
    graph.initializer.extend([tensor, numpy_helper.from_array(scale, f"{name}_scale")])
    dequantize = helper.make_node(
        "DequantizeLinear", [tensor.name, f"{name}_scale"], [f"{name}_dq"], name=f"{name}_dq", axis=axis
    )
    graph.node.insert(_position(graph, node), dequantize)
    node.input[1] = f"{name}_dq"


def _quantize_activation(graph: onnx.GraphProto, node: onnx.NodeProto, *, scale: np.ndarray) -> str:
    name = f"{node.name}_input"
    zero = helper.make_tensor(f"{name}_zero", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
    graph.initializer.extend([numpy_helper.from_array(scale, f"{name}_scale"), zero])
    at = _position(graph, node)
    quantize = helper.make_node(
        "QuantizeLinear", [node.input[0], f"{name}_scale", zero.name], [f"{name}_q"], name=f"{name}_q"
    )
    dequantize = helper.make_node(
        "DequantizeLinear", [f"{name}_q", f"{name}_scale", zero.name], [f"{name}_dq"], name=f"{name}_dq"
    )
    graph.node.insert(at, dequantize)
    graph.node.insert(at, quantize)
    return f"{name}_dq"


def _position(graph: onnx.GraphProto, node: onnx.NodeProto) -> int:
    return next(i for i, n in enumerate(graph.node) if n.name == node.name and n.output == node.output)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Nodes and initializers that nothing reads any more."""
    while True:
        used = {name for n in graph.node for name in n.input} | {o.name for o in graph.output}
        unused = [n for n in graph.node if not used.intersection(n.output)]
        if not unused:
            break
        for node in unused:
            graph.node.remove(node)
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
