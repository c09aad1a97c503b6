"""Configs of the graph models: they fit graph, profile and padding on every target, or nothing is written."""

import json
import shutil
from itertools import product
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import export.graph_config as graph_config
from export.engines import EngineError
from export.fp16 import convert_to_fp16
from export.graph_config import GraphConfigError, check_graph, graph_values
from export.kept import check_precision
from export.pbtxt import RenderError, check_config, fill
from export.profiles import profiles
from export.render import ENGINES, render
from serving.backend.engine import shape_buckets
from serving.backend.plans import SearchPlans
from serving.backend.settings import ServingConfig
from serving.engines.ort import OrtExecutor
from serving.engines.padding import PaddedExecutor
from serving.files import sha256
from serving.index.snapshot import IndexSnapshot
from serving.model.bundle import read_manifest
from tests.model_config import settings_of
from tests.pipeline import serving_config
from tests.recording import Recorder, ShapeExecutor
from tests.searching import searched
from tests.tiny import tiny_snapshot
from tests.unit.test_render import fill_plans

STEMS = ("prefix", "tail_2", "tail_3", "tail_4")
DEPLOYMENTS = [
    ("cpu", "cpu"),
    ("onnxruntime", "cpu"),
    ("onnxruntime", "cuda"),
    ("onnxruntime", "tensorrt"),
    ("tensorrt", "cpu"),
]
LADDER = serving_config().model_copy(update={"max_widths": "6-10-20:12", "max_batch_size": 6})


@pytest.fixture
def bundles(pipeline, tmp_path):
    return shutil.copytree(pipeline.bundles, tmp_path / "bundles")


@pytest.fixture
def manifest(pipeline):
    return read_manifest(pipeline.bundles / "1")


def rendered(bundles, folder, *, target, config=LADDER):
    return render(bundles, folder, index=bundles.parent / "index", config=config, target=target)


def parse(folder, name):
    """By hand, so that a check in `check_config` is not what makes this pass."""
    text = (folder / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def config_of(stem, manifest, *, config=LADDER, target="tensorrt"):
    text = fill("graph", graph_values(stem, manifest, config=config, target=target, bundles="b"))
    return check_config(f"lazyar_{stem}", text)


def plans_of(config):
    return SearchPlans.of(config, levels=3).prepared


def type_name(number):
    return model_config_pb2.DataType.Name(number)


def kind_name(config):
    kinds = model_config_pb2.ModelInstanceGroup.Kind
    assert len(config.instance_group) == 1
    return kinds.Name(config.instance_group[0].kind), config.instance_group[0].count


def edit_manifest(bundle, change):
    """Rewrite a bundle's manifest; hashes of the graphs follow the files."""
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    content["sha256"] |= {file.name: sha256(file) for file in bundle.glob("*.onnx")}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("target", "provider"), DEPLOYMENTS)
def test_every_deployment_fits_its_graphs(bundles, tmp_path, target, provider):
    config = LADDER.model_copy(update={"execution_provider": provider, "graph_instances": 3})
    fill_plans(bundles, config=config)
    rendered(bundles, tmp_path / "r", target=target, config=config)
    ranges = profiles(read_manifest(bundles / "1"), config)
    gpu = target == "tensorrt" or (target == "onnxruntime" and provider != "cpu")
    for stem in STEMS:
        parsed = parse(tmp_path / "r", f"lazyar_{stem}")
        check_graph(parsed, bundles / "1" / f"{stem}.onnx", ranges=ranges[stem])
        assert parsed.backend == {"cpu": "python"}.get(target, target)
        assert kind_name(parsed) == ("KIND_GPU" if gpu else "KIND_CPU", 3)
        assert parsed.max_batch_size == 6
        # one version after another, while a batch of the older one is under way
        assert parsed.version_policy.WhichOneof("policy_choice") == "all"
        assert bool(parsed.optimization.cuda.graphs) == (target == "tensorrt")
        assert bool(parsed.model_warmup) == (target == "tensorrt")
        assert parsed.HasField("dynamic_batching") == (target == "tensorrt")
        accelerators = parsed.optimization.execution_accelerators.gpu_execution_accelerator
        assert [a.name for a in accelerators] == (["tensorrt"] if provider == "tensorrt" else [])
    assert kind_name(parse(tmp_path / "r", "beam_scheduler"))[0] == "KIND_CPU"
    settings = settings_of(tmp_path / "r" / "beam_scheduler" / "config.pbtxt")
    assert settings["graph_memory"] == ("device" if gpu else "host")
    assert settings["pad_shapes"] == (target == "tensorrt")


def test_ranges_of_the_onnxruntime_tensorrt_provider(manifest):
    config = LADDER.model_copy(update={"execution_provider": "tensorrt"})
    parsed = config_of("tail_2", manifest, config=config, target="onnxruntime")
    found = parsed.optimization.execution_accelerators.gpu_execution_accelerator[0].parameters
    carry = "m:{0}x4x16,context_kv:{0}x1x2x2x11x8,context_bias:{0}x11,past_kv_1:{0}x2x1x16"
    assert found["trt_profile_min_shapes"] == carry.format(1) + ",token:1x1,allowed:1x1x1"
    assert found["trt_profile_opt_shapes"] == carry.format(6) + ",token:6x4,allowed:6x4x5"
    assert found["trt_profile_max_shapes"] == carry.format(6) + ",token:6x90,allowed:6x90x5"
    assert found["precision_mode"] == "FP32"
    for precision, mode in (("fp16", "FP16"), ("fp8", "FP16"), ("int8", "FP32")):
        lower = manifest.model_copy(update={"precision": precision})
        parsed = config_of("tail_2", lower, config=config, target="onnxruntime")
        accelerator = parsed.optimization.execution_accelerators.gpu_execution_accelerator[0]
        assert accelerator.parameters["precision_mode"] == mode


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "fp8"])
def test_fp8_on_cpus_is_not_fused(manifest, precision):
    lower = manifest.model_copy(update={"precision": precision})
    for provider, level in (("cpu", -1 if precision == "fp8" else 0), ("cuda", 0), ("tensorrt", 0)):
        config = LADDER.model_copy(update={"execution_provider": provider})
        parsed = config_of("tail_2", lower, config=config, target="onnxruntime")
        assert parsed.optimization.graph.level == level


def drop(messages, at):
    del messages[at]


BAD = [
    ("wrong dtype", lambda c: setattr(c.input[0], "data_type", 9), "input m: expected .*FP32.*got .*INT64"),
    ("wrong output dtype", lambda c: setattr(c.output[0], "data_type", 10), "output logprob: .*FP32.*FP16"),
    ("missing input", lambda c: drop(c.input, 4), r"input token: expected \[.*INT32.*got none in config"),
    ("missing output", lambda c: drop(c.output, 1), "output past_kv_2: expected .* got none"),
    (
        "extra output",
        lambda c: c.output.add(name="scores", data_type=11, dims=[-1]),
        "output scores: expected none .*got .*FP32",
    ),
    ("extra input", lambda c: c.input.add(name="x", data_type=8, dims=[1]), "input x: expected none"),
    ("input twice", lambda c: c.input.add().CopyFrom(c.input[0]), "input m: expected"),
    ("wrong dim", lambda c: c.input[0].dims.__setitem__(1, 17), r"input m: .*\[4, 16\].*got .*\[4, 17\]"),
    ("fixed dim", lambda c: c.input[4].dims.__setitem__(0, 64), r"input token: .*\[-1\].*got .*\[64\]"),
    ("dim too many", lambda c: c.output[0].dims.append(1), r"output logprob: .*\[-1, -1\].*\[-1, -1, 1\]"),
]


@pytest.mark.parametrize(("change", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_config_that_does_not_fit_its_graph(pipeline, manifest, change, message):
    graph = pipeline.bundles / "1" / "tail_2.onnx"
    parsed, ranges = config_of("tail_2", manifest), profiles(manifest, LADDER)["tail_2"]
    check_graph(parsed, graph, ranges=ranges)
    change(parsed)
    with pytest.raises(GraphConfigError, match=f"lazyar_tail_2: {message}"):
        check_graph(parsed, graph, ranges=ranges)


@pytest.mark.parametrize(("target", "provider"), DEPLOYMENTS)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"inputs": lambda t: t.replace("TYPE_INT32", "TYPE_INT64")},
            "prefix: input profile: .*INT32.*INT64",
        ),
        ({"outputs": lambda t: t.replace("TYPE_FP32", "TYPE_FP16")}, "prefix: output .*FP32.*FP16"),
        ({"inputs": lambda t: t.partition(",\n")[0]}, "prefix: input profile: expected .*got none"),
        ({"outputs": lambda t: t.replace('"m"', '"n"')}, "prefix: output m: expected .*got none"),
    ],
)
def test_rendering_refuses_it_and_writes_nothing(
    bundles, tmp_path, monkeypatch, target, provider, values, message
):
    config = LADDER.model_copy(update={"execution_provider": provider})
    fill_plans(bundles, config=config)

    def wrong(stem, *arguments, **options):
        found = graph_values(stem, *arguments, **options)
        return found | {name: change(found[name]) for name, change in values.items()}

    monkeypatch.setattr("export.render.graph_values", wrong)
    with pytest.raises(GraphConfigError, match=f"lazyar_{message}"):
        rendered(bundles, tmp_path / "r", target=target, config=config)
    assert not (tmp_path / "r").exists()


def test_a_wrong_table_of_types_is_caught(bundles, tmp_path, monkeypatch):
    """Types come from the manifest on the one side and from the ONNX file on the other."""
    edit_manifest(bundles / "1", lambda c: c["graphs"]["tail_3"]["inputs"][0].__setitem__(1, "FLOAT16"))
    with pytest.raises(GraphConfigError, match="lazyar_tail_3: input m: expected .*FP32.*got .*FP16"):
        rendered(bundles, tmp_path / "r", target="onnxruntime")
    assert not (tmp_path / "r").exists()


def test_a_type_that_serving_does_not_know(bundles, tmp_path):
    path = bundles / "1" / "tail_3.onnx"
    model = onnx.load(str(path))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    onnx.save(model, str(path))
    edit_manifest(bundles / "1", lambda content: None)
    with pytest.raises(GraphConfigError, match="lazyar_tail_3: input m: expected .*none that serving knows"):
        rendered(bundles, tmp_path / "r", target="onnxruntime")
    assert not (tmp_path / "r").exists()


def specs_of(parsed):
    """CUDA graphs of a config: {(input, shape with the batch), ...} each."""
    return [
        frozenset((name, (spec.batch_size, *shape.dim)) for name, shape in spec.input.items())
        for spec in parsed.optimization.cuda.graph_spec
    ]


def large(manifest):
    """The tiny graphs with codebooks that have several buckets of children."""
    return manifest.model_copy(update={"level_sizes": (6, 40, 130)})


def test_one_cuda_graph_a_rung_batch_and_children(manifest):
    """By hand: rungs 4-8-16:6 and 6-10-20:12, batches up to 6, codebooks of 40 and 130."""
    wide, ranges = large(manifest), profiles(large(manifest), LADDER)
    rung, batches = ((4, 8, 6), (6, 10, 12)), (1, 2, 4, 6)
    children = {"tail_2": (8, 32, 40), "tail_3": (8, 32, 128, 130), "tail_4": (4,)}
    for stem in STEMS:
        parsed = config_of(stem, wide)
        specs = specs_of(parsed)
        if stem == "prefix":
            expected = [{"slots": (b, 8, 6), "profile": (b, 2)} for b in batches]
        else:
            level, expected = int(stem[-1]), []
            for widths, b, c in product(rung, batches, children[stem]):
                n = widths[level - 2]
                shapes = {
                    "m": (b, 4, 16),
                    "context_kv": (b, 1, 2, 2, 11, 8),
                    "context_bias": (b, 11),
                    "past_kv_1": (b, 2, 1, 16),
                    "token": (b, n),
                    "allowed": (b, n, c),
                }
                for j in range(2, level):
                    shapes |= {f"past_kv_{j}": (b, 2, widths[j - 2], 16), f"parent_{j}": (b, n)}
                expected.append(shapes)
        assert len(specs) == len(expected)
        assert set(specs) == {frozenset(shapes.items()) for shapes in expected}
        for spec in specs:
            assert all(ranges[stem][name].holds(shape) for name, shape in spec)


def test_rungs_that_share_widths_give_no_graph_twice(manifest):
    config = LADDER.model_copy(update={"max_widths": "4-8-20:12"})
    for stem, count in (("prefix", 4), ("tail_2", 4), ("tail_3", 4), ("tail_4", 8)):
        specs = specs_of(config_of(stem, manifest, config=config))
        assert len(specs) == len(set(specs)) == count
    assert len(plans_of(LADDER.model_copy(update={"max_widths": LADDER.widths}))) == 1
    assert len(plans_of(LADDER.model_copy(update={"max_widths": None}))) == 1


def check_produced(calls, manifest):
    """Every padded call is one of a CUDA graph; returns the graphs that were used."""
    specs = {stem: set(specs_of(config_of(stem, manifest))) for stem in STEMS}
    used = {(stem, frozenset(shapes.items())) for stem, shapes in calls}
    for stem, shapes in used:
        assert shapes in specs[stem], (stem, sorted(shapes))
    return used, {(stem, spec) for stem in STEMS for spec in specs[stem]}


def test_padded_searches_make_exactly_the_shapes_of_the_cuda_graphs(pipeline, manifest):
    """Real graphs: each rung, each number of requests."""
    recorder = Recorder(OrtExecutor(pipeline.bundles / "1", levels=3))
    executor = PaddedExecutor(recorder, shape_buckets(manifest, LADDER))
    for plan in plans_of(LADDER):
        for count in range(1, 7):
            searched(executor, tiny_snapshot(), plan=plan, count=count)
    used, prepared = check_produced(recorder.calls, manifest)
    assert used == prepared


def test_padded_searches_use_every_bucket_of_children(manifest):
    """Catalogues whose fullest prefix has from one child to the whole codebook."""
    wide = large(manifest)
    recorder = Recorder(ShapeExecutor(wide, level_sizes=wide.level_sizes))
    executor = PaddedExecutor(recorder, shape_buckets(wide, LADDER))
    for second, third in ((2, 3), (8, 8), (9, 9), (32, 32), (33, 128), (40, 129), (40, 130)):
        sids = np.array(list(product(range(6), range(second), range(third))), np.int32)
        snapshot = IndexSnapshot.build(
            np.arange(len(sids), dtype=np.int64),
            sids,
            active=np.ones(len(sids), bool),
            level_sizes=wide.level_sizes,
        )
        for plan in plans_of(LADDER):
            for count in (1, 2, 3, 5):
                searched(executor, snapshot, plan=plan, count=count)
    used, prepared = check_produced(recorder.calls, wide)
    assert used == prepared


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: setattr(spec, "batch_size", 7), r"expected ShapeRange.*, got \(7, "),
        (lambda spec: spec.input["token"].dim.__setitem__(0, 91), r"token: expected .*got \(1, 91\)"),
        (lambda spec: spec.input["allowed"].dim.append(1), r"allowed: expected .*got \(1, 4, 5, 1\)"),
        (lambda spec: spec.input["other"].dim.append(1), r"other: expected no profile, got \(1, 1\)"),
    ],
)
def test_a_cuda_graph_outside_the_profile(pipeline, manifest, change, message):
    graph, ranges = pipeline.bundles / "1" / "tail_2.onnx", profiles(manifest, LADDER)["tail_2"]
    parsed = config_of("tail_2", manifest)
    change(parsed.optimization.cuda.graph_spec[0])
    with pytest.raises(GraphConfigError, match=f"lazyar_tail_2: CUDA graph: input .*{message}"):
        check_graph(parsed, graph, ranges=ranges)


def test_cuda_graphs_without_a_profile(pipeline, manifest):
    with pytest.raises(GraphConfigError, match="CUDA graph: input .*: expected no profile, got"):
        check_graph(config_of("prefix", manifest), pipeline.bundles / "1" / "prefix.onnx", ranges=None)


def test_rendering_refuses_a_rung_wider_than_the_profile(bundles, tmp_path, monkeypatch):
    """Profiles of one configuration, rungs of another."""
    config = LADDER.model_copy(update={"max_num_ads": 5, "max_exclude": 0})
    fill_plans(bundles, config=config)
    wide = config.model_copy(update={"max_widths": "6-10-21:12"})
    others = SimpleNamespace(of=lambda config, *, levels: SearchPlans.of(wide, levels=levels))
    monkeypatch.setattr(graph_config, "SearchPlans", others)
    rendered(bundles, tmp_path / "r", target="tensorrt", config=config)  # no tail scores the last level's 21
    wide = config.model_copy(update={"max_widths": "6-13-20:12"})
    with pytest.raises(GraphConfigError, match=r"lazyar_tail_[34]: CUDA graph: input .*expected.*got .*13"):
        rendered(bundles, tmp_path / "s", target="tensorrt", config=config)
    assert not (tmp_path / "s").exists()


def test_warm_up_has_every_input(manifest):
    for stem in STEMS:
        parsed = config_of(stem, large(manifest))
        specs = parsed.optimization.cuda.graph_spec
        assert len(parsed.model_warmup) == len(specs)
        assert len({w.name for w in parsed.model_warmup}) == len(specs)
        inputs = {t.name: t for t in parsed.input}
        for sample, spec in zip(parsed.model_warmup, specs, strict=True):
            assert sample.batch_size == spec.batch_size
            assert set(sample.inputs) == set(inputs)
            for name, values in sample.inputs.items():
                assert values.data_type == inputs[name].data_type
                assert list(values.dims) == list(spec.input[name].dim)
                assert all(d in (-1, v) for d, v in zip(inputs[name].dims, values.dims, strict=True))
                assert values.zero_data


def test_without_cuda_graphs_nothing_is_padded(bundles, tmp_path):
    config = LADDER.model_copy(update={"cuda_graphs": False})
    fill_plans(bundles, config=config)
    rendered(bundles, tmp_path / "r", target="tensorrt", config=config)
    parsed = parse(tmp_path / "r", "lazyar_tail_2")
    assert not parsed.optimization.cuda.graphs
    assert not parsed.optimization.cuda.graph_spec
    assert parsed.model_warmup
    assert settings_of(tmp_path / "r" / "beam_scheduler" / "config.pbtxt")["pad_shapes"] is False


def test_half_precision_graphs(bundles, tmp_path):
    """What goes from graph to graph is FP16, codes stay INT32, the scores that leave it FP32."""
    convert_to_fp16(bundles / "1", bundles / "1")

    def describe(content):
        content["precision"] = "fp16"
        for stem, sides in content["graphs"].items():
            graph = onnx.load(str(bundles / "1" / f"{stem}.onnx")).graph
            for side, values in (("inputs", graph.input), ("outputs", graph.output)):
                for line, value in zip(sides[side], values, strict=True):
                    assert line[0] == value.name
                    line[1] = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)

    edit_manifest(bundles / "1", describe)
    fill_plans(bundles, config=LADDER)
    for target in ("onnxruntime", "tensorrt"):
        rendered(bundles, tmp_path / target, target=target)
        for stem in STEMS:
            parsed = parse(tmp_path / target, f"lazyar_{stem}")
            for tensor in (*parsed.input, *parsed.output):
                whole = tensor.name in ("slots", "profile", "token", "allowed") or "parent" in tensor.name
                kind = "TYPE_INT32" if whole else "TYPE_FP32" if tensor.name == "logprob" else "TYPE_FP16"
                assert type_name(tensor.data_type) == kind, (stem, tensor.name)
            for sample in parsed.model_warmup:
                for name, values in sample.inputs.items():
                    assert type_name(values.data_type) == type_name(
                        next(t.data_type for t in parsed.input if t.name == name)
                    )
    with pytest.raises(RenderError, match="expected a precision that target cpu runs .*got fp16"):
        rendered(bundles, tmp_path / "cpu", target="cpu")
    assert not (tmp_path / "cpu").exists()


@pytest.mark.parametrize(
    ("target", "known"),
    [
        ("cpu", {"fp32", "int8"}),
        ("onnxruntime", {"fp32", "fp16", "int8", "fp8"}),
        ("tensorrt", {"fp32", "fp16", "fp8"}),
    ],
)
def test_precisions_of_a_target(bundles, tmp_path, target, known):
    for precision in ("fp32", "fp16", "int8", "fp8"):
        if precision in known:
            check_precision(precision, target)
            continue
        with pytest.raises(RenderError, match=f"^here: expected .*target {target} runs .*, got {precision}"):
            check_precision(precision, target, where="here: ")
        edit_manifest(bundles / "1", lambda content, precision=precision: content.update(precision=precision))
        with pytest.raises(RenderError, match=f"bundles/1: expected .*target {target} runs .*{precision}"):
            rendered(bundles, tmp_path / "r", target=target)
        assert not (tmp_path / "r").exists()
    with pytest.raises(RenderError, match=r"\(targets: cpu, onnxruntime\); use such a target"):
        check_precision("int8", "tensorrt")


def test_engines_of_other_limits_or_broken_ones(bundles, tmp_path):
    fill_plans(bundles, config=LADDER)
    wider = LADDER.model_copy(update={"max_exclude": 51})
    with pytest.raises(EngineError, match="expected an engine of .* has other profiles"):
        rendered(bundles, tmp_path / "r", target="tensorrt", config=wider)
    assert not (tmp_path / "r").exists()
    plan = next((bundles.parent / ENGINES).glob("tail_3-*.plan"))
    plan.write_bytes(plan.read_bytes()[:3])
    with pytest.raises(EngineError, match=r"tail_3-\w+.plan: expected the engine that was built"):
        rendered(bundles, tmp_path / "r", target="tensorrt")
    assert not (tmp_path / "r").exists()


def test_defaults_give_few_cuda_graphs(manifest):
    """Each takes memory and seconds of start-up: default settings, codebooks of 256 as in the presets."""
    wide = manifest.model_copy(update={"level_sizes": (256, 256, 256)})
    counts = {stem: len(specs_of(config_of(stem, wide, config=ServingConfig()))) for stem in STEMS}
    assert counts == {"prefix": 4, "tail_2": 48, "tail_3": 48, "tail_4": 12}  # three plans of the ladder
