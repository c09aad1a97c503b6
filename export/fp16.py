"""FP16 graphs: weights, keys and values and most operations in half precision.

Norms, softmax and the scores that leave a graph stay FP32.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from serving.search.executor import COPY_LOGPROB

# Sub and Div: with Exp, ReduceSum and Max the softmax that self-attention writes out.
FP32_OPERATIONS = ("LayerNormalization", "Softmax", "LogSoftmax", "Exp", "ReduceSum", "Max", "Sub", "Div")
FP32_OUTPUTS = ("logprob", COPY_LOGPROB)


def convert_to_fp16(source: Path, target: Path) -> None:
    """Convert every graph of a folder.

    Keys, values and the other tensors that go from graph to graph become FP16 too.

    Args:
        source: folder with FP32 or FP8 graphs, `*.onnx`; may be `target`.
        target: folder for graphs of the same names.
    """
    for file in sorted(source.glob("*.onnx")):
        model = onnx.load(str(file))
        del model.graph.value_info[:]
        converted = convert_float_to_float16(
            model,
            keep_io_types=list(FP32_OUTPUTS),
            op_block_list=list(FP32_OPERATIONS),
            disable_shape_infer=False,
        )
        _drop_double_casts(converted.graph)
        onnx.save(converted, str(target / file.name))


def _drop_double_casts(graph: onnx.GraphProto) -> None:
    """The converter casts a constant once for each FP32 operation that reads it, always under one name."""
    made: set[str] = set()
    for node in list(graph.node):
        if node.op_type == "Cast" and node.output[0] in made:
            graph.node.remove(node)
        made.update(node.output)
