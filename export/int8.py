"""INT8 graphs for CPUs by ONNX Runtime's dynamic quantization.

Weights are quantized once, with a scale a column; activations at run time, UINT8 with a scale a tensor;
products are summed in INT32. A tensor of activations holds all requests of a batch, so an answer can differ a
little with the batch that it was worked out in.

Weights use -64 .. 64 only (`reduce_range`). x86 CPUs without VNNI (AVX2 and the first AVX-512: Haswell to
Skylake, Zen 1 to 3) add two neighbouring products in INT16, which saturates: 2 * 255 * 127 = 64,770 > 32,767,
while 2 * 255 * 64 = 32,640 fits. So every CPU sums what the gate saw summed on the machine that exported.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from export.products import products

HEAD = "head: logits decide the order of beams and the expected value"
FUSE = (
    "Fuse: the only way in for the token; one row a request in the prefix, a fortieth of a tail's products, "
    "and half of the error if it were quantized"
)
_FUSE_WEIGHTS = re.compile(r"(^|\.)(fuse\.gate|mix)\.weight$")


class QuantizeError(RuntimeError):
    """A product with constant weights was neither quantized nor is it one of those that stay FP32."""


def quantize_int8(source: Path, target: Path) -> None:
    """Quantize every graph of a folder.

    Args:
        source: folder with FP32 graphs, `*.onnx`; not changed.
        target: folder for graphs of the same names.

    Raises:
        QuantizeError: see there.
    """
    for file in sorted(source.glob("*.onnx")):
        model = onnx.load(str(file))
        kept = [node.name for node, _, reason in _products(model.graph) if reason]
        del model.graph.value_info[:]  # the exporter's shapes contradict the ones inferred on the way
        # Quantized in place: the library writes its intermediate file beside its input.
        onnx.save(model, str(target / file.name))
        with _without_advice():
            quantize_dynamic(
                target / file.name,
                target / file.name,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                # A Gemm is renamed when it is split into MatMul and Add, before names are compared.
                nodes_to_exclude=[*kept, *(f"{name}_MatMul" for name in kept)],
                extra_options={"MatMulConstBOnly": True},
            )
        missed = [weight for weight, reason in fp32_products(target / file.name).items() if reason is None]
        if missed:
            raise QuantizeError(f"{file.name}: expected INT8 weights, got FP32: {', '.join(missed)}")


def fp32_products(file: Path) -> dict[str, str | None]:
    """Constant weights that a graph multiplies by in FP32, and why: HEAD, FUSE, or None for no reason."""
    return {weight: reason for _, weight, reason in _products(onnx.load(str(file)).graph)}


def _products(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, str, str | None]]:
    """FP32 products whose second factor is constant, the name of that weight, and why they stay FP32."""
    producers = {name: node for node in graph.node for name in node.output}
    # Names of head weights say little: small ones are folded and renamed.
    logits = {node.input[0] for node in graph.node if node.op_type == "LogSoftmax"}
    logits |= {name for out in logits if producers[out].op_type == "Add" for name in producers[out].input}
    for node, weight, _ in products(graph):
        fuse = FUSE if _FUSE_WEIGHTS.search(weight.name) else None
        yield node, weight.name, HEAD if node.output[0] in logits else fuse


@contextmanager
def _without_advice() -> Iterator[None]:
    """The library advises a pre-processing of shapes that these graphs do without, once a graph."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
