"""The graph `ad_ranker`: what a reward model says of ads, the mean over the rankers of all folds, calibrated.

Rankers are written node by node: trees have no other ONNX form than `TreeEnsembleRegressor`, and a network of
three products next to them is shorter so than exported apart and merged. Letters: B requests, n ads, F
numbers, P columns of profile and request, d width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from serving.model.manifest import AD_RANKER
from serving.ranking.features import NUMBERS
from serving.ranking.ranker import OUTPUT
from training.reward.neural import CLIP, Network, Neural
from training.reward.reward_model import RewardModel, kinds_of
from training.reward.trees import Trees
from training.tokenizer.graph_nodes import IR_VERSION, OPSET, Nodes

TREES = "ai.onnx.ml"  # domain of the operator that runs trees
_TREES_OPSET = 3


def ranker_graph(model: RewardModel) -> onnx.ModelProto:
    """Numbers float32 [B, n, F], mean value [B, n] and codes int32 [B, P] (if P > 0) to worth [B, n].

    Raises:
        ValueError: trees with splits that have no exact ONNX form.
    """
    g, kinds = Nodes(), kinds_of(model.about.serves)
    said: list[tuple[str, str]] = []  # log-odds and ratio of each ranker, [B, n]
    if "trees" in kinds:
        rankers = [ranker for ranker in model.rankers["trees"] if isinstance(ranker, Trees)]
        said += _trees(g, rankers, columns=len(model.about.categories))
    if "neural" in kinds:
        for ranker in model.rankers["neural"]:
            assert isinstance(ranker, Neural)
            said.append(_network(g, ranker.network))
    logit, ratio = (g.add("Mean", *each) for each in zip(*said, strict=True))
    line = model.about.calibration[model.about.serves]
    scaled = g.add("Mul", logit, g.constant(line.slope, np.float32))
    calibrated = g.add("Add", scaled, g.constant(line.offset, np.float32))
    # Not Sigmoid: that of ONNX Runtime is right to 1e-7 of 1, which is a thousandth of a small chance.
    one = g.constant(1, np.float32)
    p = g.add("Div", one, g.add("Add", one, g.add("Exp", g.add("Neg", calibrated))))
    value = g.add("Mul", g.add("Mul", ratio, g.constant(line.factor, np.float32)), "mean_value")
    g.add("Mul", p, value, name=OUTPUT)
    return _model(g, columns=len(model.about.categories), trees="trees" in kinds)


def _model(g: Nodes, *, columns: int, trees: bool) -> onnx.ModelProto:
    tensors: dict[str, tuple[int, list[str | int]]] = {
        "numbers": (TensorProto.FLOAT, ["batch", "ads", len(NUMBERS)]),
        "mean_value": (TensorProto.FLOAT, ["batch", "ads"]),
    }
    if columns:  # a tensor of no width is none
        tensors["profile"] = (TensorProto.INT32, ["batch", columns])
    inputs = [helper.make_tensor_value_info(name, *of) for name, of in tensors.items()]
    output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", "ads"])
    graph = helper.make_graph(g.nodes, AD_RANKER, inputs, [output], g.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    opsets += [helper.make_opsetid(TREES, _TREES_OPSET)] if trees else []
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


def _network(g: Nodes, network: Network) -> tuple[str, str]:
    """Log-odds and ratio [B, n] by one network."""
    weights = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
    centred = g.add("Sub", "numbers", g.constant(weights["mean"], np.float32))
    scaled = g.add("Div", centred, g.constant(weights["scale"], np.float32))
    x = g.add("Clip", scaled, g.constant(-CLIP, np.float32), g.constant(CLIP, np.float32))
    count = len(weights["mean"])
    first = weights["hidden.0.weight"].T  # [F + 4 P, d]: numbers, then the vector of each column
    x = g.add("MatMul", x, g.constant(first[:count], np.float32))
    for column in range(len(network.categories)):
        vectors = weights[f"categories.{column}.weight"]
        part = first[count + column * vectors.shape[1] :][: vectors.shape[1]]
        code = g.add("Gather", "profile", g.constant([column], np.int64), axis=1)  # [B, 1]
        x = g.add("Add", x, g.add("Gather", g.constant(vectors @ part, np.float32), code))  # + [B, 1, d]
    x = g.add("Relu", g.add("Add", x, g.constant(weights["hidden.0.bias"], np.float32)))
    for name, last in (("hidden.2", False), ("out", True)):
        x = g.add("MatMul", x, g.constant(weights[f"{name}.weight"].T, np.float32))
        x = g.add("Add", x, g.constant(weights[f"{name}.bias"], np.float32))
        x = x if last else g.add("Relu", x)
    return _column(g, x, 0), g.add("Exp", _column(g, x, 1))


def _column(g: Nodes, x: str, column: int) -> str:
    """Column [B, n] of x [B, n, .]."""
    return g.add("Gather", x, g.constant(column, np.int64), axis=2)


def _trees(g: Nodes, rankers: list[Trees], *, columns: int) -> list[tuple[str, str]]:
    """Log-odds and ratio [B, n] by each ranker; one node runs the trees of all."""
    rows = g.add("Shape", "mean_value")  # B, n
    table = "numbers"
    if columns:
        profile = g.add("Cast", "profile", to=TensorProto.FLOAT)
        shape = g.add("Concat", rows, g.constant([columns], np.int64), axis=0)
        each = g.add("Expand", g.add("Unsqueeze", profile, g.constant([1], np.int64)), shape)
        table = g.add("Concat", table, each, axis=2)
    flat = g.add("Reshape", table, g.constant([-1, len(NUMBERS) + columns], np.int64))
    boosters = [booster for ranker in rankers for booster in ranker.boosters]
    ensemble = _Ensemble()
    for target, booster in enumerate(boosters):
        for tree in booster.dump_model()["tree_info"]:
            ensemble.add(tree["tree_structure"], target=target)
    attributes: dict[str, Any] = ensemble.attributes() | {"n_targets": len(boosters)}
    found = g.add("TreeEnsembleRegressor", flat, domain=TREES, **attributes)
    shape = g.add("Concat", rows, g.constant([len(boosters)], np.int64), axis=0)
    found = g.add("Reshape", found, shape)
    return [
        (_column(g, found, 2 * i), g.add("Exp", _column(g, found, 2 * i + 1))) for i in range(len(rankers))
    ]


@dataclass
class _Ensemble:
    """Attributes of `TreeEnsembleRegressor`, tree by tree."""

    nodes: dict[str, list[Any]] = field(default_factory=dict)
    leaves: dict[str, list[Any]] = field(default_factory=dict)
    trees: int = 0

    def add(self, root: dict[str, Any], *, target: int) -> None:
        """A tree of `Booster.dump_model`, whose leaves add to one target."""
        nodes = list(_numbered(root))
        at = {id(node): number for number, node in enumerate(nodes)}
        for number, node in enumerate(nodes):
            leaf = "leaf_value" in node
            if leaf:
                self._put(
                    self.leaves,
                    treeids=self.trees,
                    nodeids=number,
                    ids=target,
                    weights=float(node["leaf_value"]),
                )
            elif node["decision_type"] != "<=" or node["missing_type"] == "Zero":
                raise ValueError(
                    f"{AD_RANKER}: expected splits <= of numbers none of which is missing, got "
                    f"{node['decision_type']} with missing {node['missing_type']}"
                )
            self._put(
                self.nodes,
                treeids=self.trees,
                nodeids=number,
                modes="LEAF" if leaf else "BRANCH_LEQ",
                featureids=0 if leaf else node["split_feature"],
                values=0.0 if leaf else largest_float32(node["threshold"]),
                truenodeids=0 if leaf else at[id(node["left_child"])],
                falsenodeids=0 if leaf else at[id(node["right_child"])],
            )
        self.trees += 1

    def attributes(self) -> dict[str, Any]:
        """By their names."""
        found: dict[str, Any] = {f"nodes_{name}": values for name, values in self.nodes.items()}
        found |= {f"target_{name}": values for name, values in self.leaves.items()}
        return found | {"aggregate_function": "SUM", "post_transform": "NONE"}

    @staticmethod
    def _put(into: dict[str, list[Any]], **values: Any) -> None:
        for name, value in values.items():
            into.setdefault(name, []).append(value)


def _numbered(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Nodes of a tree, each before its children."""
    yield node
    for child in ("left_child", "right_child"):
        if child in node:
            yield from _numbered(node[child])


def largest_float32(threshold: float) -> float:
    """The largest float32 that is not above a threshold: for float32 x, x <= the one is x <= the other."""
    nearest = np.float32(threshold)
    return float(nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-np.inf)))
