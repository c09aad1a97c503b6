"""ONNX graphs, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8


class Nodes:
    """Nodes and constants of one graph, named as they come."""

    def __init__(self, prefix: str = "") -> None:
        """None yet; names begin with `prefix`."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._prefix = prefix

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node; returns the name of its output."""
        output = name or f"{self._prefix}{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any) -> str:
        """An initializer; returns its name."""
        name = f"{self._prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def length(self, x: str) -> str:
        """Length float64 [N, 1] of the rows of x [N, .], added from left to right."""
        axis, last = self.constant(1, np.int64), self.constant([-1], np.int64)
        sums = self.add("CumSum", self.add("Mul", x, x), axis)
        return self.add("Sqrt", self.add("Gather", sums, last, axis=1))

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        *,
        weights: Sequence[TensorProto] = (),
    ) -> onnx.ModelProto:
        """The graph, checked where it holds all it needs.

        Args:
            inputs: of the graph.
            outputs: of the graph.
            weights: initializers besides the constants, whose values lie elsewhere.
        """
        constants = [*self.constants, *weights]
        graph = helper.make_graph(self.nodes, "encoder", inputs, outputs, constants)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        if not weights:
            onnx.checker.check_model(model)
        return model
