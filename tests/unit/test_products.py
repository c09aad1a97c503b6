"""Products with constant weights: which there are, what they multiply by, and what share of it is FP8."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.products import constant_products, fp8_share, products

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)  # [in, out]


def graph_of(nodes, *, out=3, **constants):
    """x [n, 4] to y [n, out] by some nodes and initializers."""
    return helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", out])],
        [
            c if isinstance(c, onnx.TensorProto) else numpy_helper.from_array(np.asarray(c), name)
            for name, c in constants.items()
        ],
    )


def product(weight="w", name="p"):
    return helper.make_node("MatMul", ["x", weight], ["y"], name=name)


def fp8(array, name):
    raw = np.asarray(array).astype(ml_dtypes.float8_e4m3fn).tobytes()
    return helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, np.shape(array), raw, raw=True)


VIEWS = {
    "direct": ([], {"w": WEIGHT}),
    "transpose": ([helper.make_node("Transpose", ["v"], ["w"], perm=[1, 0])], {"v": WEIGHT.T.copy()}),
    "reshape": (
        [helper.make_node("Reshape", ["v", "s"], ["w"])],
        {"v": WEIGHT.ravel(), "s": np.array([4, 3])},
    ),
    "slice": (
        [helper.make_node("Slice", ["v", "from", "to", "axes"], ["w"])],
        {
            "v": np.pad(WEIGHT, ((0, 0), (2, 1)), constant_values=99.0),
            "from": np.array([2]),
            "to": np.array([5]),
            "axes": np.array([1]),
        },
    ),
    "cast": (
        [helper.make_node("Cast", ["v"], ["w"], to=TensorProto.FLOAT)],
        {"v": WEIGHT.astype(np.float16)},
    ),
    "three": (  # the two slices read one constant
        [
            helper.make_node("Slice", ["v", "one", "five", "one"], ["a"]),
            helper.make_node("Slice", ["a", "one", "four", "zero"], ["b"]),
            helper.make_node("Transpose", ["b"], ["w"], perm=[1, 0]),
        ],
        {
            "v": np.pad(WEIGHT.T, ((1, 0), (1, 2)), constant_values=99.0),
            "zero": np.array([0]),
            "one": np.array([1]),
            "four": np.array([4]),
            "five": np.array([5]),
        },
    ),
}


@pytest.mark.parametrize("views", VIEWS)
def test_weights_are_found_through_views(views):
    nodes, constants = VIEWS[views]
    root = "w" if views == "direct" else "v"
    graph = graph_of([*nodes, product()], **constants)
    [(node, initializer, between)] = products(graph)
    assert (node.name, initializer.name) == ("p", root)
    assert [n.output[0] for n in between] == [n.output[0] for n in nodes]  # first one first
    [(node, weight)] = constant_products(graph)
    assert (node.name, weight.dtype) == ("p", np.float32)
    np.testing.assert_array_equal(weight, WEIGHT)


def test_gemm_gives_the_weight_as_it_is_read():
    """transB belongs to the product, so the weight stays [out, in]; a bias is no factor."""
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="g", transB=1)
    graph = graph_of([node], w=WEIGHT.T.copy(), b=np.ones(3, np.float32))
    [(found, weight)] = constant_products(graph)
    assert found.name == "g"
    np.testing.assert_array_equal(weight, WEIGHT.T)


def test_products_of_activations_are_not_listed():
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["scores"], name="scores"),  # a view of an input
        helper.make_node("Relu", ["w"], ["r"]),
        helper.make_node("MatMul", ["x", "r"], ["y"], name="computed"),  # constant, but no view of a constant
        helper.make_node("Add", ["w", "w"], ["unused"]),  # constant, but no product
    ]
    graph = graph_of(nodes, w=WEIGHT)
    assert list(products(graph)) == []
    assert constant_products(graph) == []
    assert fp8_share(graph) == 0


def test_fp8_weight_behind_dequantize_linear():
    values = np.array(
        [[1, -2, 0.5], [4, 448, 0], [-448, 1.75, 3], [0.25, 16, -1]], np.float32
    )  # E4M3 holds them
    scale = np.array([0.5, 2, 1], np.float32)
    graph = graph_of(
        [helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1), product()],
        q=fp8(values, "q"),
        s=scale,
    )
    [(_, initializer, between)] = products(graph)
    assert initializer.data_type == TensorProto.FLOAT8E4M3FN
    assert [n.op_type for n in between] == ["DequantizeLinear"]
    [(_, weight)] = constant_products(graph)
    np.testing.assert_array_equal(weight, values * scale)
    assert fp8_share(graph) == 1


def test_share_counts_numbers_not_products():
    """FP8 [4, 2] and FP32 [4, 3] and [2, 3]: 8 of 26; Q/DQ of an activation does not make a weight FP8."""
    graph = graph_of(
        [
            helper.make_node("DequantizeLinear", ["q", "s"], ["d"]),
            helper.make_node("MatMul", ["x", "d"], ["h"], name="a"),
            helper.make_node("MatMul", ["h", "w2"], ["z"], name="b"),
            helper.make_node("QuantizeLinear", ["x", "s", "zero"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "zero"], ["xd"]),
            helper.make_node("MatMul", ["xd", "w1"], ["k"], name="c"),
            helper.make_node("Add", ["z", "k"], ["y"]),
        ],
        q=fp8(np.ones((4, 2)), "q"),
        s=np.float32(1),
        zero=fp8(0.0, "zero"),
        w1=WEIGHT,
        w2=np.ones((2, 3), np.float32),
    )
    assert fp8_share(graph) == 8 / 26
