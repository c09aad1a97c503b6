"""The rendered model repository: every config parses, fits its graph, and a bad one writes nothing."""

import hashlib
import json
import shutil

import onnx
import pytest
from tritonclient.grpc import model_config_pb2

from export import pbtxt
from export.bundle import graph_shapes
from export.engines import EngineError, EngineFolder, EngineSpec
from export.fp16 import convert_to_fp16
from export.kept import TARGETS, kept_bundles
from export.pbtxt import RenderError, check_config
from export.profiles import profiles
from export.render import ENGINES, SOURCE, render
from export.rendered import RECORD, check, rendered_for
from serving.backend.settings import ServingConfig
from serving.files import sha256
from serving.index.layout import IndexStoreError
from serving.model.bundle import BundleError, read_manifest, versions
from serving.model.current import point_current
from serving.model.placed import placed_files
from tests.model_config import settings_of
from tests.pipeline import serving_config
from tests.tiny import SPEC
from tests.unit.test_bundle import edit
from tests.unit.test_scheduler import add_version

MODELS = {
    "gr4ad",
    "ad_keys",
    "request_features",
    "beam_scheduler",
    "ad_resolver",
    "lazyar_prefix",
    "lazyar_tail_2",
    "lazyar_tail_3",
    "lazyar_tail_4",
}
TYPES = {
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.INT64: "TYPE_INT64",
}


@pytest.fixture
def bundles(pipeline, tmp_path):
    return shutil.copytree(pipeline.bundles, tmp_path / "bundles")


def rendered(bundles, folder, *, target="cpu", config=None):
    return render(
        bundles, folder, index=bundles.parent / "index", config=config or serving_config(), target=target
    )


def config_of(folder, name):
    return check_config(name, (folder / name / "config.pbtxt").read_text())


def fill_plans(bundles, *, config=None, version="10.9.0", capability="8.9", builder="tensorrt"):
    """Engines of every bundle that no TensorRT has seen, in the folder where rendering looks for them."""
    folder = EngineFolder(bundles.parent / ENGINES)
    for number in versions(bundles):
        manifest = read_manifest(bundles / str(number))
        for stem, ranges in profiles(manifest, config or serving_config()).items():
            graph = manifest.sha256[f"{stem}.onnx"]
            folder.save(EngineSpec(stem, graph, ranges, builder, version, capability), b"engine", details={})
    return folder


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_renders_configs_that_fit_their_graphs(bundles, tmp_path, target):
    fill_plans(bundles)
    folder = tmp_path / "repository"
    assert set(rendered(bundles, folder, target=target)) == MODELS
    assert {p.name for p in folder.iterdir()} == MODELS | {RECORD}
    for name in MODELS:
        parsed = config_of(folder, name)
        assert parsed.max_batch_size == 8
        if not name.startswith("lazyar"):
            continue
        graph = onnx.load(str(bundles / "1" / f"{name.removeprefix('lazyar_')}.onnx")).graph
        for side, values in ((parsed.input, graph.input), (parsed.output, graph.output)):
            expected = []
            for value in values:
                tensor = value.type.tensor_type
                dims = [d.dim_value or -1 for d in tensor.shape.dim]
                assert dims[0] == -1  # the batch, which Triton's dims leave out
                expected.append((value.name, TYPES[tensor.elem_type], dims[1:]))
            got = [
                (
                    t.name,
                    type(t)
                    .DESCRIPTOR.fields_by_name["data_type"]
                    .enum_type.values_by_number[t.data_type]
                    .name,
                    list(t.dims),
                )
                for t in side
            ]
            assert got == expected
        backend = {"cpu": "python"}.get(target, target)
        assert parsed.backend == backend
        assert parsed.version_policy.WhichOneof("policy_choice") == "all"
        files = {p.name for p in (folder / name / "1").iterdir()}
        assert (
            files
            == {
                "cpu": {"model.onnx", "model.py", "__pycache__"},
                "onnxruntime": {"model.onnx"},
                "tensorrt": {"model.plan", "engine.json"},
            }[target]
        )


def test_ensemble_wires_tensors_that_exist_and_have_one_type(pipeline):
    """What a step reads is an input of the ensemble or made by a step before, of the same type and dims."""
    configs = {name: config_of(pipeline.repository, name) for name in MODELS}
    ensemble = configs["gr4ad"]
    known = {t.name: (t.data_type, list(t.dims)) for t in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        inputs = {t.name: (t.data_type, list(t.dims)) for t in configs[step.model_name].input}
        outputs = {t.name: (t.data_type, list(t.dims)) for t in configs[step.model_name].output}
        assert set(step.input_map) == set(inputs)
        for theirs, ours in step.input_map.items():
            assert known[ours] == inputs[theirs], (step.model_name, theirs)
        for theirs, ours in step.output_map.items():
            known[ours] = outputs[theirs]
    for t in ensemble.output:
        assert known[t.name] == (t.data_type, list(t.dims)), t.name
    optional = {t.name for t in ensemble.input if t.optional}
    assert optional == {t.name for t in configs["request_features"].input if t.optional}
    assert optional >= {"exclude_ad_ids", "timestamp"}


def test_one_parameter_carries_the_settings(bundles, tmp_path):
    config = ServingConfig(
        widths="3-5-7",
        max_widths="6-5-9:9",
        normalise="codebook-live-live",
        cold_start=0.5,
        max_num_ads=11,
        max_exclude=0,
        threads=3,
        slo_ms=250,
        cache="redis",
        cache_url="redis://cache:6379/1",
        ladder="6-5-9:9, 3-5-7, 3-4-5",
    )
    rendered(bundles, tmp_path / "r", config=config)
    configs = {name: tmp_path / "r" / name / "config.pbtxt" for name in MODELS if name != "gr4ad"}
    graphs = {name for name in configs if name.startswith("lazyar_")}
    for name in graphs:
        assert settings_of(configs[name]) == {
            "bundles": str(bundles.resolve()),
            "graph": name.removeprefix("lazyar_"),
            "threads": 3,
        }
    for name in configs.keys() - graphs:
        found = settings_of(configs[name])
        assert found.pop("serving") == config.model_dump() | {
            "widths": "3-5-7:7",
            "max_widths": "6-5-9:9",
            "ladder": "6-5-9:9,3-5-7:7,3-4-5:5",
        }
        assert found == {
            "bundles": str(bundles.resolve()),
            "index": str((bundles.parent / "index").resolve()),
            "features": json.loads(json.dumps(SPEC.to_json())),
            "profile_columns": {},
            "graph_memory": "host",
            "ranker": None,
            "pad_shapes": False,
        }


def test_what_the_section_leaves_open_is_resolved(bundles, tmp_path):
    rendered(bundles, tmp_path / "r", config=ServingConfig(widths="4-8-16"))
    found = settings_of(tmp_path / "r" / "beam_scheduler" / "config.pbtxt")["serving"]
    assert found["widths"] == "4-8-16:16"
    assert found["max_widths"] == "10-20-40:40"  # 2.5 times
    assert found["ladder"].startswith("10-20-40:40,")
    assert ",4-8-16:16," in found["ladder"]
    assert found["normalise"] == "codebook-codebook-codebook"
    assert None not in found.values()


def test_names_with_any_characters_arrive(pipeline, tmp_path):
    """Quotes, backslashes, placeholders, other alphabets in the folder of the bundles."""
    folder = tmp_path / "a \"b\" \\c\n 'd' ${index} $x {e} ü€\t"
    bundles = shutil.copytree(pipeline.bundles, folder / "bundles")
    rendered(bundles, tmp_path / "r")
    found = settings_of(tmp_path / "r" / "beam_scheduler" / "config.pbtxt")
    assert found["bundles"] == str(bundles.resolve())
    assert found["index"] == str(folder.resolve() / "index")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ladder": "8-16-32:6"}, "serving.ladder: .*expected the configured plan 4-8-16:6 among the rungs"),
        ({"ladder": "4-8-16:6,4-8-16:6"}, "serving.ladder: .*rungs that differ"),
        ({"ladder": "2-4-8:3,4-8-16:6"}, "serving.ladder: .*narrower"),
        ({"ladder": "4-8-16:6,wide"}, "serving.ladder: .*expected a form like"),
    ],
)
def test_ladders_that_do_not_fit(bundles, tmp_path, settings, message):
    with pytest.raises(RenderError, match=message):
        rendered(bundles, tmp_path / "r", config=ServingConfig(widths="4-8-16:6", **settings))


def test_the_ladder_keeps_to_the_policy(bundles, tmp_path):
    config = ServingConfig(widths="4-8-16:6", max_widths="5-8-16:6")
    rendered(bundles, tmp_path / "r", config=config)
    found = settings_of(tmp_path / "r" / "beam_scheduler" / "config.pbtxt")["serving"]
    assert found["ladder"].startswith("5-8-16:6,4-8-16:6,")
    fixed = ServingConfig(widths="4-8-16:6", load_control="fixed")
    rendered(bundles, tmp_path / "f", config=fixed)
    assert settings_of(tmp_path / "f" / "beam_scheduler" / "config.pbtxt")["serving"]["ladder"] == "4-8-16:6"


def test_adapters_are_the_sources(pipeline):
    for name in ("request_features", "beam_scheduler", "ad_resolver", "ad_keys"):
        assert (pipeline.repository / name / "1" / "model.py").read_bytes() == (
            SOURCE / name / "1" / "model.py"
        ).read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name: "a" max_batch_size: ${size}', "a: config.pbtxt is not a Triton model config"),
        ('name: "b"', "a: expected a config of that name, got 'b'"),
        ('name: "a" maximum: 3', "a: config.pbtxt is not a Triton model config: .*maximum"),
        ('name: "a" input [', "a: config.pbtxt is not a Triton model config"),
    ],
)
def test_bad_configs(text, message):
    with pytest.raises(RenderError, match=message):
        check_config("a", text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text + "\n# ${colour}", "placeholder 'colour' has no value"),
        (lambda text: text + "\nflavour: 3", "is not a Triton model config"),
        (
            lambda text: text.replace('"ad_resolver"', '"resolver"'),
            "expected a config of that name, got 'resolver'",
        ),
    ],
)
def test_a_bad_template_writes_nothing(bundles, tmp_path, monkeypatch, change, message):
    templates = shutil.copytree(pbtxt.TEMPLATES, tmp_path / "templates")
    path = templates / "ad_resolver.pbtxt"
    path.write_text(change(path.read_text()))
    monkeypatch.setattr(pbtxt, "TEMPLATES", templates)
    with pytest.raises(RenderError, match=message):
        rendered(bundles, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_tensorrt_without_engines_refuses(bundles, tmp_path):
    with pytest.raises(
        EngineError, match=r"engines: expected engines of builder tensorrt .* found none; build"
    ):
        rendered(bundles, tmp_path / "r", target="tensorrt")
    folder = fill_plans(bundles)
    next(folder.folder.glob("tail_3-*.json")).unlink()
    with pytest.raises(EngineError, match="expected an engine of tail_3 by tensorrt 10.9.0 .* found: none"):
        rendered(bundles, tmp_path / "r", target="tensorrt")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("widths", ["4-8", "4-8-16-32:3", "4-8-x", "0-8-16", "4-8-16:0", ""])
def test_widths_that_do_not_fit(bundles, tmp_path, widths):
    with pytest.raises(RenderError, match="width plan: expected .*got"):
        rendered(bundles, tmp_path / "r", config=ServingConfig(widths=widths))
    assert not (tmp_path / "r").exists()


def test_policy_below_the_configured_widths(bundles, tmp_path):
    with pytest.raises(RenderError, match=r"serving.max_widths: expected at least .*4-8-16:6, got 4-7-16:6"):
        rendered(bundles, tmp_path / "r", config=ServingConfig(widths="4-8-16:6", max_widths="4-7-16:6"))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "normalise", ["live", "codebook-live", "codebook-live-alive", "", "live-live-live-live"]
)
def test_normalise_that_does_not_fit(bundles, tmp_path, normalise):
    with pytest.raises(RenderError, match="normalise: expected 3 of .*got"):
        rendered(bundles, tmp_path / "r", config=ServingConfig(normalise=normalise))
    assert not (tmp_path / "r").exists()


def test_graphs_in_the_scheduler_need_no_models_of_their_own(bundles, tmp_path):
    rendered(bundles, tmp_path / "r")
    assert (tmp_path / "r" / "lazyar_prefix").is_dir()
    rendered(bundles, tmp_path / "r", config=ServingConfig(graph_calls="in_process", threads=2))
    assert not list((tmp_path / "r").glob("lazyar_*"))
    found = settings_of(tmp_path / "r" / "beam_scheduler" / "config.pbtxt")["serving"]
    assert (found["graph_calls"], found["threads"]) == ("in_process", 2)
    with pytest.raises(RenderError, match="graph_calls: expected bls for target onnxruntime, got in_process"):
        rendered(
            bundles, tmp_path / "s", config=ServingConfig(graph_calls="in_process"), target="onnxruntime"
        )


def test_batching_settings(bundles, tmp_path):
    config = ServingConfig(scheduler_instances=2, queue_delay_us=500)
    rendered(bundles, tmp_path / "r", config=config)
    scheduler = config_of(tmp_path / "r", "beam_scheduler")
    assert scheduler.instance_group[0].count == 2
    assert scheduler.dynamic_batching.max_queue_delay_microseconds == 500
    for name in ("request_features", "beam_scheduler", "ad_resolver"):
        # With either, Triton lets an instance wait for the next request before it forms a batch.
        batching = config_of(tmp_path / "r", name).dynamic_batching
        assert (batching.priority_levels, batching.default_queue_policy.max_queue_size) == (0, 0)
    assert config_of(tmp_path / "r", "lazyar_prefix").instance_group[0].count == 1


def test_a_version_of_another_release_is_left_out_unless_it_serves(bundles, tmp_path, caplog):
    shutil.copytree(bundles / "1", bundles / "2")
    path = bundles / "2" / "manifest.json"
    manifest = json.loads(path.read_text()) | {"model_version": 2}
    path.write_text(json.dumps(manifest))
    old = bundles / "1" / "manifest.json"
    old.write_text(json.dumps(json.loads(old.read_text()) | {"format_version": 1}))
    point_current(bundles, 2)
    assert [m.version for m in kept_bundles(bundles, "cpu", index=tmp_path / "index")] == [2]
    assert "model version 1 is left out" in caplog.text
    point_current(bundles, 1)
    with pytest.raises(BundleError, match="expected format_version"):
        kept_bundles(bundles, "cpu", index=tmp_path / "index")


def test_no_bundle_or_a_corrupted_one(bundles, tmp_path):
    (bundles / "1" / "tail_2.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="tail_2.onnx: expected sha256"):
        rendered(bundles, tmp_path / "r")
    (bundles / "1" / "manifest.json").unlink()
    with pytest.raises(
        RenderError, match="expected at least one bundle, found none; run `make train export`"
    ):
        rendered(bundles, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def version_folders(folder):
    found = [{p.name for p in model.iterdir() if p.is_dir()} for model in folder.glob("lazyar_*")]
    assert all(f == found[0] for f in found)
    return found[0]


def test_the_last_two_versions_stay_and_the_one_that_serves(bundles, tmp_path):
    folder = tmp_path / "r"
    for version in (2, 3):
        add_version(bundles, version)
        point_current(bundles, version)
        rendered(bundles, folder)
    assert version_folders(folder) == {"2", "3"}
    add_version(bundles, 4)
    point_current(bundles, 1)  # rolled back: what serves must be loadable after a restart
    rendered(bundles, folder)
    assert version_folders(folder) == {"1", "3", "4"}


@pytest.fixture
def index(pipeline, bundles):
    """An index whose only generation is that of version 1, where `rendered` looks for it."""
    return shutil.copytree(pipeline.index, bundles.parent / "index")


def publish(bundles, folder, version, **changes):
    """As `make export` does: CURRENT moves when the repository is ready."""
    add_version(bundles, version, **changes)
    render(bundles, folder, index=bundles.parent / "index", config=serving_config(), serving=version)
    point_current(bundles, version)


def test_the_version_in_use_stays_while_the_index_is_not_ready_for_those_after_it(bundles, index, tmp_path):
    """Two bundles in a row of another tokenizer: every server is still at version 1."""
    folder = tmp_path / "r"
    rendered(bundles, folder)
    for version in (2, 3, 4):
        publish(bundles, folder, version, tokenizer_id=f"new-{version}")
        assert "1" in version_folders(folder)
    assert version_folders(folder) == {"1", "2", "3", "4"}
    publish(bundles, folder, 5)  # of the first tokenizer again
    publish(bundles, folder, 6)
    assert version_folders(folder) == {"5", "6"}


def test_a_version_that_servers_refuse_is_not_taken_for_the_one_in_use(bundles, index, tmp_path, caplog):
    folder = tmp_path / "r"
    publish(bundles, folder, 2)
    publish(bundles, folder, 3)
    (bundles / "3" / "prefix.onnx").write_bytes(b"damaged")
    publish(bundles, folder, 4, tokenizer_id="new")
    publish(bundles, folder, 5, tokenizer_id="new")
    assert version_folders(folder) == {"2", "4", "5"}
    assert "model version 3 is left out: " in caplog.text


def test_what_a_roll_back_left_is_kept_where_it_may_be_in_use(bundles, index, tmp_path):
    """CURRENT went back to a version of a tokenizer that the index no longer has: servers stay at 3."""
    folder = tmp_path / "r"
    publish(bundles, folder, 2, tokenizer_id="dropped")
    publish(bundles, folder, 3)
    point_current(bundles, 2)
    publish(bundles, folder, 4, tokenizer_id="new")
    publish(bundles, folder, 5, tokenizer_id="new")
    assert version_folders(folder) == {"2", "3", "4", "5"}


@pytest.mark.parametrize("damage", [None, b"", b"x", b"\xff"])
def test_a_history_that_is_gone_keeps_too_much_rather_than_too_little(bundles, index, tmp_path, damage):
    folder = tmp_path / "r"
    for version in (2, 3):
        publish(bundles, folder, version, tokenizer_id="new")
    history = bundles / "CURRENT.named"
    history.unlink() if damage is None else history.write_bytes(damage)
    publish(bundles, folder, 4, tokenizer_id="new")
    assert "1" in version_folders(folder)


def test_an_index_that_does_not_say_what_it_holds_stops_the_rendering(bundles, index, tmp_path):
    folder = tmp_path / "r"
    rendered(bundles, folder)
    data = index / "store" / "data.mdb"
    data.write_bytes(data.read_bytes()[:4096])
    for version in (2, 3):
        add_version(bundles, version)
    with pytest.raises(IndexStoreError, match="index"):
        rendered(bundles, folder)
    assert version_folders(folder) == {"1"}


def test_what_is_as_it_should_be_is_not_written_again(bundles, tmp_path):
    """Triton loads every version again of a model of which a file was written again."""
    folder = tmp_path / "r"

    def stamps():
        files = [p for p in folder.rglob("*") if p.is_file() and p.name != RECORD]
        return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}

    rendered(bundles, folder)
    first = stamps()
    add_version(bundles, 2)
    point_current(bundles, 2)
    rendered(bundles, folder)
    assert {path: stamp for path, stamp in stamps().items() if "/2/" not in str(path)} == first
    graph = folder / "lazyar_tail_2" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    (folder / "lazyar_tail_3" / "2" / "model.plan").write_bytes(b"of another target")
    rendered(bundles, folder)
    assert sha256(graph) == read_manifest(bundles / "1").sha256["tail_2.onnx"]
    assert not (folder / "lazyar_tail_3" / "2" / "model.plan").exists()


def test_a_version_of_other_features_is_left_out(bundles, tmp_path, caplog):
    """request_features makes one context for all versions of a repository."""
    add_version(bundles, 2, features=SPEC.to_json() | {"max_history": 17})
    point_current(bundles, 2)
    rendered(bundles, tmp_path / "r")
    assert version_folders(tmp_path / "r") == {"2"}
    assert "model version 1 is left out: its features are not those of version 2" in caplog.text


def test_what_triton_loads_is_known_by_its_digest(bundles, tmp_path):
    manifest = read_manifest(bundles / "1")
    for target in ("cpu", "onnxruntime"):
        rendered(bundles, tmp_path / target, target=target)
        found = placed_files(tmp_path / target, manifest)
        assert found == {
            tmp_path / target / f"lazyar_{stem}" / "1" / "model.onnx": manifest.sha256[f"{stem}.onnx"]
            for stem in manifest.graphs
        }
        assert all(sha256(path) == digest for path, digest in found.items())
    fill_plans(bundles)
    folder = tmp_path / "tensorrt"
    rendered(bundles, folder, target="tensorrt")
    found = placed_files(folder, manifest)
    assert set(found) == {folder / f"lazyar_{stem}" / "1" / "model.plan" for stem in manifest.graphs}
    assert set(found.values()) == {hashlib.sha256(b"engine").hexdigest()}
    description = folder / "lazyar_prefix" / "1" / "engine.json"
    good = json.loads(description.read_text())
    for content in ({**good, "graph_sha256": "0" * 64}, {"graph_sha256": good["graph_sha256"]}, [], None):
        description.write_text(json.dumps(content)) if content is not None else description.unlink()
        with pytest.raises(BundleError, match="lazyar_prefix/1/engine.json: expected"):
            placed_files(folder, manifest)


def test_a_version_of_another_precision_is_left_out(bundles, tmp_path, caplog):
    """All versions of a graph share one config: keys and values in FP16 do not fit one of FP32."""
    add_version(bundles, 2)
    convert_to_fp16(bundles / "2", bundles / "2")
    graphs = graph_shapes(bundles / "2")
    files = {f"{stem}.onnx": sha256(bundles / "2" / f"{stem}.onnx") for stem in graphs}
    before = read_manifest(bundles / "2", verify=False).sha256
    edit(bundles / "2", precision="fp16", graphs=graphs, sha256=before | files)
    point_current(bundles, 2)
    folder = tmp_path / "r"
    rendered(bundles, folder, target="onnxruntime")
    assert version_folders(folder) == {"2"}
    assert "model version 1 (fp32) is left out: its tensors are not those of version 2 (fp16)" in caplog.text
    assert config_of(folder, "lazyar_tail_2").input[0].data_type == model_config_pb2.TYPE_FP16
    with pytest.raises(RenderError, match=r"bundles/2: expected a precision that target cpu runs"):
        rendered(bundles, tmp_path / "s", target="cpu")
    point_current(bundles, 1)
    rendered(bundles, tmp_path / "t", target="cpu")
    assert version_folders(tmp_path / "t") == {"1"}


# Whether it is what is asked for


def asked(bundles, **changes):
    config = serving_config().model_copy(update=changes)
    return rendered_for(config, bundles=bundles, index=bundles.parent / "index")


def test_a_repository_knows_what_it_was_rendered_for(bundles, tmp_path):
    """`make serve PRESET=other` used to serve whatever had been rendered last."""
    folder = tmp_path / "r"
    with pytest.raises(ValueError, match="expected a rendered model repository, got none; run `make export`"):
        check(folder, asked(bundles))
    rendered(bundles, folder)
    check(folder, asked(bundles))
    with pytest.raises(ValueError, match=r"another preset .* serving.max_num_ads \d+ -> 7; .*`make export`"):
        check(folder, asked(bundles, max_num_ads=7))
    other = tmp_path / "other" / "bundles"
    with pytest.raises(ValueError, match=r"bundles \S+ -> \S+/other/bundles, index \S+ -> \S+/other/index"):
        check(folder, asked(other))


def test_a_repository_that_was_half_rendered_is_none(bundles, tmp_path, monkeypatch):
    folder = tmp_path / "r"
    rendered(bundles, folder)
    monkeypatch.setattr("export.render.write_file", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rendered(bundles, folder, config=serving_config().model_copy(update={"max_num_ads": 7}))
    with pytest.raises(ValueError, match="got none"):
        check(folder, asked(bundles))
