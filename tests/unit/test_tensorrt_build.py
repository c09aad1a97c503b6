"""TensorRT builders: what compiles, what is said of it, what is refused, and what a stopped build leaves.

TensorRT for RTX compiles without a GPU; builder `tensorrt` is asked only for what it says where
there is none.
"""

import errno
import json
import os
import resource
import shutil
import stat
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import export.tensorrt as module
from export.builder import MODULES, Builder, BuildError, describe
from export.calibrate import Ranges
from export.engines import EngineFolder, EngineSpec
from export.fp8 import quantize_graph
from export.fp16 import convert_to_fp16
from export.products import constant_products, products
from export.profiles import ShapeRange, profiles
from export.tensorrt import build_bundles, build_engines
from serving.files import sha256
from serving.model.bundle import read_manifest
from tests.pipeline import WIDTHS, serving_config

NAMES = ("prefix", "tail_2", "tail_3", "tail_4")


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="compiling needs tensorrt_rtx (make precision-setup)")


@pytest.fixture(scope="module")
def builder(rtx):
    return Builder("tensorrt-rtx", capability="8.9")


@pytest.fixture(scope="module")
def ranges(pipeline):
    return profiles(read_manifest(pipeline.bundles / "1"), serving_config())


@pytest.fixture(scope="module")
def folders(pipeline, tmp_path_factory):
    """Graphs by precision. Compiling does not ask where ranges come from, so these are made up."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("fp8", "fp8_fp16", "fp16")}
    for name in NAMES:
        model = onnx.load(str(pipeline.bundles / "1" / f"{name}.onnx"))
        gemm = {n.name for n in model.graph.node if any(a.name == "transB" and a.i for a in n.attribute)}
        found = [Ranges(n.name, w if n.name in gemm else w.T, 3.0) for n, w in constant_products(model.graph)]
        quantize_graph(model, found, keep=(), where=name)
        onnx.save(model, str(made["fp8"] / f"{name}.onnx"))
    convert_to_fp16(pipeline.bundles / "1", made["fp16"])
    convert_to_fp16(made["fp8"], made["fp8_fp16"])
    return made | {"fp32": pipeline.bundles / "1"}


def count(file):
    return len(list(products(onnx.load(str(file)).graph)))


# What compiles.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "precision"),
    [("8.9", "fp32"), ("8.9", "fp16"), ("8.9", "fp8"), ("8.9", "fp8_fp16"), ("12.0", "fp8_fp16")],
)
def test_graphs_compile(rtx, folders, ranges, capability, precision):
    builder = Builder("tensorrt-rtx", capability=capability)
    assert builder.capability == capability
    assert builder.version == rtx.__version__
    for name in NAMES:
        file = folders[precision] / f"{name}.onnx"
        plan, cache, found = builder.build(file, ranges[name])
        assert (len(plan) > 100_000, cache) == (True, b"")
        assert found["products"] == count(file) >= 10
        assert found["fp8_products"] == (found["products"] if "fp8" in precision else 0)
        assert found["layers"]["MATRIX_MULTIPLY"] > found["products"]  # attention is a product of activations
        assert ("QUANTIZE" in found["layers"]) == ("fp8" in precision)


@pytest.mark.parametrize("side", ["activation", "weight"])
@pytest.mark.parametrize("precision", ["fp8", "fp8_fp16"])
def test_a_product_that_is_not_fp8_is_not_counted(builder, folders, ranges, tmp_path, precision, side):
    """One side out of FP8 makes it an ordinary product, whatever the other is."""
    model = onnx.load(str(folders[precision] / "tail_2.onnx"))
    graph = model.graph
    made_by = {o: n for n in graph.node for o in n.output}
    readers = [n.input[0] for n, *_ in products(graph)]
    node = next(n for n, *_ in products(graph) if readers.count(n.input[0]) == 1)
    dequantize = made_by[node.input[0 if side == "activation" else 1]]
    if side == "activation":
        node.input[0] = made_by[dequantize.input[0]].input[0]
    else:
        kind = np.float16 if precision == "fp8_fp16" else np.float32
        [weight] = [w for n, w in constant_products(graph) if n.name == node.name]
        graph.initializer.append(numpy_helper.from_array(weight.astype(kind), "plain"))
        node.input[1] = "plain"
    onnx.save(model, str(tmp_path / "tail_2.onnx"))
    *_, found = builder.build(tmp_path / "tail_2.onnx", ranges["tail_2"])
    assert (found["products"], found["fp8_products"]) == (10, 9)


@pytest.mark.parametrize(
    ("weight", "activation"), [("int8", "int8"), ("int8", "fp8"), ("fp8", "int8"), ("fp8", "fp8")]
)
def test_int8_is_dequantized_too_but_is_not_fp8(rtx, builder, tmp_path, weight, activation):
    model = one_node(helper.make_node("MatMul", ["xd", "w"], ["y"], name="p"))
    graph = model.graph
    model.opset_import[0].version = 21
    for kind in {weight, activation}:
        if kind == "int8":
            tensors = np.zeros((), np.int8), np.ones((4, 4), np.int8)
            made = [numpy_helper.from_array(t, f"{n}_int8") for t, n in zip(tensors, "zw", strict=True)]
        else:
            fp8 = TensorProto.FLOAT8E4M3FN
            made = [
                helper.make_tensor("z_fp8", fp8, [], b"\0", raw=True),
                helper.make_tensor("w_fp8", fp8, [4, 4], b"\x38" * 16, raw=True),  # 1.0
            ]
        graph.initializer.extend(made)
    graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "s"))
    for node in (
        helper.make_node("DequantizeLinear", [f"w_{weight}", "s", f"z_{weight}"], ["w"], name="dw"),
        helper.make_node("DequantizeLinear", ["xq", "s", f"z_{activation}"], ["xd"], name="dx"),
        helper.make_node("QuantizeLinear", ["x", "s", f"z_{activation}"], ["xq"], name="qx"),
    ):
        graph.node.insert(0, node)
    onnx.save(model, str(tmp_path / "mixed.onnx"))
    maker = rtx.Builder(builder._log)  # parsed only: what mixes both does not compile
    network = maker.create_network(0)
    assert rtx.OnnxParser(network, builder._log).parse_from_file(str(tmp_path / "mixed.onnx"))
    found = describe(rtx, network)
    assert (found["products"], found["fp8_products"]) == (1, int(weight == activation == "fp8"))


# What is refused.

PROFILE = {"x": ShapeRange((1, 4), (2, 4), (8, 4))}


def one_node(node=None, *, kind=TensorProto.FLOAT, out=TensorProto.FLOAT, domains=()):
    node = node or helper.make_node("Relu", ["x"], ["y"], name="r")
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", kind, ["n", 4])],
        [helper.make_tensor_value_info("y", out, ["n", 4])],
    )
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def unsupported():
    return one_node(helper.make_node("Foo", ["x"], ["y"], domain="acme", name="foo"), domains=["acme"])


def wrong_shape():
    model = one_node(helper.make_node("MatMul", ["x", "w"], ["y"], name="p"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 4), np.float32), "w"))
    return model


def shapes(*sizes):
    return {"x": ShapeRange(*sizes)}


BAD = {
    "operation": (unsupported, PROFILE, "not accepted by tensorrt-rtx .*Plugin not found"),
    "shape": (wrong_shape, PROFILE, "not accepted by tensorrt-rtx .*p"),
    "int64": (
        lambda: one_node(
            helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT), kind=TensorProto.INT64
        ),
        PROFILE,
        "input x: expected int32, got int64",
    ),
    "strings": (
        lambda: one_node(
            helper.make_node("Identity", ["x"], ["y"]), kind=TensorProto.STRING, out=TensorProto.STRING
        ),
        PROFILE,
        "not accepted by tensorrt-rtx",
    ),
    "no profile": (one_node, {}, "input x: expected a profile, got none"),
    "fixed dimension": (
        one_node,
        shapes((1, 5), (2, 5), (8, 5)),
        r"tensorrt-rtx \S+ could not build .*8.9: .*profile has min=5",
    ),
    "rank": (
        one_node,
        shapes((1, 4, 1), (2, 4, 1), (8, 4, 1)),
        r"tensorrt-rtx \S+ could not build .* has 2 dimensions but",
    ),
    "order": (one_node, shapes((4, 4), (2, 4), (8, 4)), r"tensorrt-rtx \S+ could not build .*MIN<=OPT<=MAX"),
    "negative": (one_node, shapes((-1, 4), (2, 4), (8, 4)), "input x: not a profile: ShapeRange"),
    "ragged": (one_node, shapes((1, 4), (2,), (8, 4)), r"tensorrt-rtx \S+ could not build .*Invalid optimiz"),
    "garbage": (lambda: b"\x80garbage" * 1000, PROFILE, "not accepted by tensorrt-rtx .*parse"),
    "empty": (lambda: b"", PROFILE, r"tensorrt-rtx \S+ could not build .*at least one output"),
    "missing": (lambda: None, PROFILE, "not accepted by tensorrt-rtx .*cannot be found"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_graphs_and_profiles_are_named(builder, tmp_path, case):
    make, profile, message = BAD[case]
    content = make()
    file = tmp_path / f"{case.replace(' ', '_')}.onnx"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    with pytest.raises(BuildError, match=rf"(?s)^{file}: {message}"):
        builder.build(file, profile)


def test_half_a_file(builder, pipeline, ranges, tmp_path):
    whole = (pipeline.bundles / "1" / "prefix.onnx").read_bytes()
    (tmp_path / "prefix.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BuildError, match=r"prefix.onnx: not accepted by tensorrt-rtx .*Failed to parse"):
        builder.build(tmp_path / "prefix.onnx", ranges["prefix"])


def test_a_refusal_leaves_the_builder_usable(builder, tmp_path):
    """And what it said of one graph is not said of the next."""
    file = tmp_path / "one.onnx"
    onnx.save(one_node(), str(file))
    with pytest.raises(BuildError, match="has 2 dimensions"):
        builder.build(file, shapes((1, 4, 1), (2, 4, 1), (8, 4, 1)))
    with pytest.raises(BuildError, match="profile has min=5") as caught:
        builder.build(file, shapes((1, 5), (2, 5), (8, 5)))
    assert "has 2 dimensions" not in str(caught.value)
    plan, _, found = builder.build(file, PROFILE)
    assert plan
    assert found == {"layers": {"ACTIVATION": 1}, "products": 0, "fp8_products": 0}


def test_capability_that_rtx_does_not_know(rtx):
    with pytest.raises(
        BuildError,
        match=r"tensorrt-rtx 1\S+: expected one of .*SM120.*SM89.*, got SM90; build for that device with ",
    ):
        Builder("tensorrt-rtx", capability="9.0")


@pytest.mark.parametrize(
    ("name", "hint"), [("tensorrt", r"deploy/tensorrt_setup.sh"), ("tensorrt-rtx", "make precision-setup")]
)
def test_without_the_library(monkeypatch, name, hint):
    monkeypatch.setitem(sys.modules, MODULES[name], None)
    with pytest.raises(BuildError, match=rf"builder {name} is not installed \(.*\): .*{hint}"):
        Builder(name)


def nvidia_smi(folder, monkeypatch, *lines):
    """A PATH with nothing on it but a made-up nvidia-smi; none without lines."""
    monkeypatch.setenv("PATH", str(folder))
    if lines:
        script = folder / "nvidia-smi"
        script.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), r"expected a GPU on this machine, found none \(.*nvidia-smi.*; builder tensorrt-rtx compiles"),
        (("exit 9",), r"expected a GPU on this machine, found none \(.*status 9"),
        (("true",), "expected a GPU on this machine, nvidia-smi said ''"),
    ],
)
def test_builder_tensorrt_without_a_gpu(rtx, tmp_path, monkeypatch, lines, message):
    nvidia_smi(tmp_path, monkeypatch, *lines)
    with pytest.raises(BuildError, match=message):
        Builder("tensorrt", module=rtx)


def test_builder_tensorrt_builds_for_its_own_gpu(rtx, tmp_path, monkeypatch):
    """The GPU that CUDA calls device 0, in the order of nvidia-smi."""
    nvidia_smi(
        tmp_path,
        monkeypatch,
        'case "$*" in',
        "*--id=0*) echo NVIDIA H100, 9.0;;",
        "*) echo NVIDIA L4, 8.9;;",
        "esac",
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert Builder("tensorrt", module=rtx).device == (rtx.__version__, "9.0", "NVIDIA H100")
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert Builder("tensorrt", capability="9.0", module=rtx).capability == "9.0"
    with pytest.raises(
        BuildError,
        match=r"this machine, NVIDIA H100, compute capability 9.0; expected 8.9: run it on such a GPU",
    ):
        Builder("tensorrt", capability="8.9", module=rtx)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,0")
    assert Builder("tensorrt", module=rtx).device.name == "NVIDIA L4"


def test_int8_bundles_are_not_for_tensorrt(builder, pipeline, tmp_path):
    bundles = shutil.copytree(pipeline.bundles, tmp_path / "bundles")
    manifest = json.loads((bundles / "1" / "manifest.json").read_text())
    (bundles / "1" / "manifest.json").write_text(json.dumps(manifest | {"precision": "int8"}))
    with pytest.raises(
        BuildError, match="bundles/1: precision int8 is for CPUs; export with --precision fp8"
    ):
        build_bundles(
            builder,
            bundles,
            [read_manifest(bundles / "1")],
            config=serving_config(),
            folder=EngineFolder(tmp_path / "engines"),
        )
    assert not (tmp_path / "engines").exists()


# The command line.


@pytest.fixture
def tiny_run(pipeline, tmp_path):
    """Preset and run folder."""
    run = tmp_path / "run"
    shutil.copytree(pipeline.bundles, run / "bundles")
    serving = {"widths": WIDTHS, "max_num_ads": 40, "max_exclude": 50, "max_batch_size": 8}
    preset = tmp_path / "preset.yaml"
    preset.write_text(json.dumps({"serving": serving}))
    return preset, run


def command(monkeypatch, tiny_run, *words):
    preset, run = tiny_run
    monkeypatch.setattr(sys, "argv", ["tensorrt", "--config", str(preset), "--run", str(run), *words])
    module.main()


RTX = ("--builder", "tensorrt-rtx")


def test_command_line_builds_once(builder, pipeline, ranges, tiny_run, monkeypatch, capsys):
    command(monkeypatch, tiny_run, *RTX)
    said = capsys.readouterr().out
    engines = tiny_run[1] / "engines"
    assert f"{engines}: 4 engines, tensorrt-rtx {builder.version}, SM89" in said
    assert said.count(" MB in ") == 4
    folder = EngineFolder(engines)
    assert folder.only("tensorrt-rtx") == (builder.version, "8.9", "")
    expected = set()
    for name in NAMES:
        digest = sha256(pipeline.bundles / "1" / f"{name}.onnx")
        spec = EngineSpec(name, digest, ranges[name], "tensorrt-rtx", builder.version, "8.9")
        found = folder.find(spec)
        assert found["plan_bytes"] == folder.path(spec).stat().st_size > 100_000
        assert found["plan_sha256"] == sha256(folder.path(spec))
        assert found["fp8_weight_share"] == 0
        assert found["network"]["products"] == count(pipeline.bundles / "1" / f"{name}.onnx")
        assert found["seconds"] > 0
        expected |= {folder.path(spec).name, folder.path(spec).with_suffix(".json").name}
    assert {p.name for p in engines.iterdir()} == expected

    monkeypatch.setattr(Builder, "build", lambda *_, **__: pytest.fail("built again"))
    command(monkeypatch, tiny_run, *RTX)
    said = capsys.readouterr().out
    assert [f"{name}: there already" in said for name in NAMES] == [True] * 4
    assert f"{engines}: 4 engines" in said


def quick(monkeypatch, plans):
    """A builder that hands out made-up plans, or raises what is among them."""
    left = iter(plans)

    def build(*_, **__):
        plan = next(left)
        if isinstance(plan, BaseException):
            raise plan
        return plan, b"", {"fp8_products": 0, "products": 26}

    monkeypatch.setattr(Builder, "build", build)


def test_another_profile_is_another_engine(builder, tiny_run, monkeypatch, capsys):
    quick(monkeypatch, [b"plan"] * 8)
    command(monkeypatch, tiny_run, *RTX)
    command(monkeypatch, tiny_run, *RTX, "--set", "serving.max_batch_size=9")
    assert "there already" not in capsys.readouterr().out
    assert len(list((tiny_run[1] / "engines").glob("*.plan"))) == 8


def test_a_broken_engine_is_no_engine(builder, tiny_run, monkeypatch):
    quick(monkeypatch, [b"plan"] * 4)
    command(monkeypatch, tiny_run, *RTX)
    [plan] = (tiny_run[1] / "engines").glob("tail_2-*.plan")
    plan.write_bytes(b"plam")
    with pytest.raises(
        SystemExit, match=r"error: .*tail_2-\w+.plan: expected the engine that was built .*delete both"
    ):
        command(monkeypatch, tiny_run, *RTX)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*RTX, "--capability", "9.0"), "error: builder tensorrt-rtx .* got SM90; build for that device"),
        ((*RTX, "--bundle", "7"), "error: .*bundles/7"),
        ((*RTX, "--set", "serving.nothing=1"), "error: .*unknown key 'nothing'"),
        ((*RTX, "--engines", "/dev/null/engines"), "error: .*/dev/null/engines"),
    ],
)
def test_command_line_errors(builder, tiny_run, monkeypatch, words, message):
    quick(monkeypatch, [b"plan"] * 4)
    with pytest.raises(SystemExit, match=message):
        command(monkeypatch, tiny_run, *words)
    assert not (tiny_run[1] / "engines").exists()


def test_builder_tensorrt_on_this_machine_says_what_is_missing(tiny_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(SystemExit, match="error: builder tensorrt is not installed"):
        command(monkeypatch, tiny_run)


# What a build that does not end leaves behind.


def left_in(folder):
    return sorted(p.name.partition("-")[0] + p.suffix for p in folder.iterdir())


def test_stopped_while_building(builder, tiny_run, monkeypatch, capsys):
    quick(monkeypatch, [b"plan", KeyboardInterrupt()])
    with pytest.raises(SystemExit, match="stopped; engines that were complete stay"):
        command(monkeypatch, tiny_run, *RTX)
    assert left_in(tiny_run[1] / "engines") == ["prefix.json", "prefix.plan"]
    capsys.readouterr()
    quick(monkeypatch, [b"plan"] * 3)
    command(monkeypatch, tiny_run, *RTX)
    assert capsys.readouterr().out.count("there already") == 1


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "writes", "left"),
    [
        (FULL, 0, []),
        (FULL, 1, []),
        (FULL, 2, ["prefix.json", "prefix.plan"]),
        (KeyboardInterrupt(), 0, []),
        (KeyboardInterrupt(), 1, ["prefix.plan"]),  # whole, but not an engine
        (KeyboardInterrupt(), 2, ["prefix.json", "prefix.plan"]),
    ],
)
def test_stopped_or_disk_full_while_writing(builder, tiny_run, monkeypatch, capsys, error, writes, left):
    """At the plan, at its JSON, at the next plan: no partial file, and no plan counts without its JSON."""
    sync, done = os.fsync, []

    def fails_later(descriptor):
        if len(done) == 2 * writes:  # a file's content is synced, and then its folder
            raise error
        done.append(descriptor)
        sync(descriptor)

    quick(monkeypatch, [b"plan"] * 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails_later)
        with pytest.raises(
            SystemExit,
            match="stopped; engines"
            if isinstance(error, KeyboardInterrupt)
            else r"error: .*engines/\w+-\w+\.(plan|json): [\d,]+ bytes cannot be written: .*No space left",
        ):
            command(monkeypatch, tiny_run, *RTX)
    engines = tiny_run[1] / "engines"
    assert left_in(engines) == left
    capsys.readouterr()
    quick(monkeypatch, [b"plan"] * (4 - writes // 2))
    command(monkeypatch, tiny_run, *RTX)
    assert capsys.readouterr().out.count("there already") == writes // 2


def test_a_disk_that_takes_no_more(builder, tiny_run, monkeypatch):
    """The system's own error, half-way through a file: no file may grow beyond 100 kB."""
    quick(monkeypatch, [b"p" * 50_000, b"p" * 200_000])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(
            SystemExit, match=r"tail_2-\w+.plan: 200,000 bytes cannot be written: .*too large"
        ):
            command(monkeypatch, tiny_run, *RTX)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left_in(tiny_run[1] / "engines") == ["prefix.json", "prefix.plan"]


def test_timing_cache_is_handed_on(builder, pipeline, ranges, tmp_path, monkeypatch):
    """Builder tensorrt times kernels: what it learnt of one graph is there for the next, and the next run."""
    given = []

    def build(*_, timing_cache):
        given.append(timing_cache)
        return b"plan", b"cache %d" % len(given), {"fp8_products": 0, "products": 26}

    monkeypatch.setattr(builder, "build", build)
    graphs = {name: pipeline.bundles / "1" / f"{name}.onnx" for name in NAMES[:3]}
    folder = EngineFolder(tmp_path / "engines")
    build_engines(builder, graphs, ranges, folder=folder)
    assert given == [b"", b"cache 1", b"cache 2"]
    build_engines(builder, graphs, ranges, folder=folder)  # all are there
    graphs = {"tail_4": pipeline.bundles / "1" / "tail_4.onnx"}
    build_engines(builder, graphs, ranges, folder=folder)
    assert given[3:] == [b"cache 3"]
    timing = tmp_path / "engines" / f"tensorrt-rtx-{builder.version}-SM89.timing"
    assert timing.read_bytes() == b"cache 4"


def test_a_product_that_fell_out_of_fp8_is_refused(builder, tiny_run, monkeypatch):
    """The network that TensorRT parsed must have as many FP8 products as the file has FP8 weights."""
    quick(monkeypatch, [b"plan"] * 4)
    monkeypatch.setattr(module, "products", lambda _: [(None, TensorProto(data_type=17), [])])
    with pytest.raises(SystemExit, match=r"error: .*onnx: expected 1 products in FP8, .* made 0 of 26"):
        command(monkeypatch, tiny_run, *RTX)
    assert not (tiny_run[1] / "engines").exists()
