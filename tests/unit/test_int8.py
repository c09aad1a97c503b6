"""INT8 graphs: which products are integer ones, with which numbers, and that they still serve."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import export.int8 as module
from export.int8 import FUSE, HEAD, QuantizeError, fp32_products, quantize_int8
from serving.engines.ort import OrtExecutor, open_session
from serving.model.bundle import read_manifest
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.tiny import LEVEL_SIZES, VALUE_TABLE, random_requests, tiny_snapshot

NAMES = ("prefix", "tail_2", "tail_3", "tail_4")


@pytest.fixture(scope="module")
def int8(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    quantize_int8(pipeline.bundles / "1", folder)
    return folder


def graph_of(folder, name):
    return onnx.load(str(folder / f"{name}.onnx")).graph


def constants(graph):
    return {i.name: numpy_helper.to_array(i) for i in graph.initializer}


def is_constant(graph, name):
    """Whether a tensor depends on initializers alone."""
    if any(i.name == name for i in graph.input):
        return False
    made_by = next((n for n in graph.node if name in n.output), None)
    return made_by is None or all(is_constant(graph, i) for i in made_by.input)


def integer_weights(graph):
    arrays = constants(graph)
    return {n.input[1]: arrays[n.input[1]] for n in graph.node if n.op_type == "MatMulInteger"}


def test_products_with_constant_weights_are_integer_but_for_heads_and_fuse(pipeline, int8):
    for name in NAMES:
        # The exporter works out small products of constants itself: the tiny prefix has none with W_g.
        assert sorted(fp32_products(int8 / f"{name}.onnx").values()) == [FUSE, HEAD]
        graph, source = graph_of(int8, name), graph_of(pipeline.bundles / "1", name)
        before = sum(n.op_type in ("MatMul", "Gemm") and is_constant(source, n.input[1]) for n in source.node)
        assert sum(n.op_type == "MatMulInteger" for n in graph.node) == before - 2
        assert not any(n.op_type == "Gemm" for n in graph.node)
    # By name: no product of the layers was forgotten (the prefix renames some of its weights).
    parts = (
        "query_context",
        "out_context",
        "query_self",
        "key_self",
        "value_self",
        "out_self",
        "ffn.0",
        "ffn.2",
    )
    for name, start in {"tail_2": "", "tail_3": "", "tail_4": "module."}.items():
        integer = {w.removesuffix("_quantized") for w in integer_weights(graph_of(int8, name))}
        assert integer == {f"{start}layers.0.{part}.weight" for part in parts}


def test_weights_leave_room_for_sums_of_two_in_int16(int8):
    seen = 0
    for name in NAMES:
        for weight in integer_weights(graph_of(int8, name)).values():
            assert weight.dtype == np.int8
            assert np.abs(weight).max(axis=0).tolist() == [64] * weight.shape[1]  # a scale a column
            seen += 1
    assert seen > 30
    assert 2 * 255 * 64 <= np.iinfo(np.int16).max < 2 * 255 * 127


def one_product(folder, weight, bias, *, name="w"):
    """A graph that is one Gemm, in a folder of its own."""
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", name, "b"], ["y"], name="g", transB=1)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[0]])],
        [numpy_helper.from_array(weight, name), numpy_helper.from_array(bias, "b")],
    )
    folder.mkdir()
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "one.onnx")
    return folder


def test_integer_product_equals_the_formula(tmp_path):
    random = np.random.default_rng(0)
    weight = (random.normal(size=(5, 12)) * np.arange(1, 6)[:, None]).astype(np.float32)  # [out, in]
    bias = random.normal(size=5).astype(np.float32)
    x = random.normal(size=(7, 12)).astype(np.float32) + 0.5
    quantize_int8(one_product(tmp_path / "fp32", weight, bias), tmp_path)

    step = np.abs(weight).max(axis=1) / 64  # [out]
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    q = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    expected = q @ np.rint(weight / step[:, None]).T * scale * step + bias
    got = open_session(tmp_path / "one.onnx").run(None, {"x": x})[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(got - (x @ weight.T + bias)).max() > 0.01  # and it is not the FP32 product


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("model.fuse.gate.weight", True),
        ("model.fuse.mix.weight", True),
        ("mix.weight", True),
        ("module.mix.weight", True),
        ("layers.0.out_self.weight", False),
        ("layers.0.remix.weight", False),
    ],
)
def test_fuse_goes_by_name(tmp_path, name, kept):
    weight, bias = np.ones((3, 4), np.float32), np.ones(3, np.float32)
    quantize_int8(one_product(tmp_path / "fp32", weight, bias, name=name), tmp_path)
    assert fp32_products(tmp_path / "one.onnx") == ({name: FUSE} if kept else {})
    assert len(integer_weights(graph_of(tmp_path, "one"))) == (0 if kept else 1)


@pytest.mark.parametrize("tied", [True, False])
def test_heads_go_by_what_becomes_of_them(tmp_path, tied):
    """Tied: x @ codes.T; untied: a Gemm. Both before a LogSoftmax."""
    source = one_product(tmp_path / "fp32", np.ones((3, 4), np.float32), np.ones(3, np.float32))
    model = onnx.load(str(source / "one.onnx"))
    graph = model.graph
    if tied:
        del graph.node[:]
        graph.node.append(helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]))
        graph.node.append(helper.make_node("MatMul", ["x", "t"], ["y"], name="m"))
    graph.node.append(helper.make_node("LogSoftmax", ["y"], ["z"]))
    graph.output[0].name = "z"
    onnx.save(model, source / "one.onnx")
    quantize_int8(source, tmp_path)
    assert fp32_products(tmp_path / "one.onnx") == {"w": HEAD}
    assert integer_weights(graph_of(tmp_path, "one")) == {}


def test_a_product_that_is_missed_is_an_error(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, "quantize_dynamic", lambda source, target, **_: None
    )  # leaves the FP32 copy as it is
    with pytest.raises(QuantizeError, match=r"prefix.onnx: expected INT8 weights, got FP32: .*out_self"):
        quantize_int8(pipeline.bundles / "1", tmp_path)


def test_source_is_not_changed_and_nothing_else_is_written(pipeline, int8):
    read_manifest(pipeline.bundles / "1")  # compares sha256
    assert sorted(p.name for p in int8.iterdir()) == [f"{name}.onnx" for name in NAMES]


def test_weights_take_a_quarter(pipeline, int8, tmp_path):
    for name in NAMES:
        quantized = {w: a.nbytes for w, a in integer_weights(graph_of(int8, name)).items()}
        source = constants(graph_of(pipeline.bundles / "1", name))
        assert {w: 4 * n for w, n in quantized.items()} == {
            w: source[w.removesuffix("_quantized")].nbytes for w in quantized
        }
    # Files shrink where weights are more than nodes, so not at the tiny model's 16 columns.
    source = one_product(tmp_path / "fp32", np.ones((256, 256), np.float32), np.ones(256, np.float32))
    quantize_int8(source, tmp_path)
    assert (tmp_path / "one.onnx").stat().st_size < 0.3 * (source / "one.onnx").stat().st_size


@pytest.mark.parametrize(
    "plan", [WidthPlan((4, 8, 16), 6), WidthPlan((1, 1, 1), 1), WidthPlan((6, 30, 60), 9)]
)
@pytest.mark.parametrize("count", [1, 5])
def test_beams_of_int8_graphs_are_live_distinct_and_sorted(int8, plan, count):
    slots, profile = random_requests(count)  # the first has no history
    snapshot = tiny_snapshot()
    beams = beam_search(
        OrtExecutor(int8, levels=len(LEVEL_SIZES)),
        snapshot.trie,
        slots,
        profile,
        plan=plan,
        num_results=np.full(count, 4),
        value_table=VALUE_TABLE,
    )
    assert beams.sids.shape[0] == count
    for row in range(count):
        live = beams.leaves[row] >= 0
        assert live.sum() >= 4
        leaves = snapshot.leaves_of(beams.sids[row][live])
        assert (leaves == beams.leaves[row][live]).all()
        assert len(set(leaves.tolist())) == live.sum()
        assert (np.diff(beams.scores[row][live]) <= 0).all()
        values = beams.expected_value[row][: min(beams.widths[-1], live.sum())]
        assert ((VALUE_TABLE.min() <= values) & (values <= VALUE_TABLE.max())).all()


def test_int8_graphs_stay_close_to_fp32(pipeline, int8):
    """On random weights: the logarithms of the probabilities of all codes, level by level."""
    slots, profile = random_requests(6)
    a, b = (OrtExecutor(f, levels=3).prefix(slots, profile)[0] for f in (pipeline.bundles / "1", int8))
    assert 1e-5 < np.abs(a - b).max() < 0.2
