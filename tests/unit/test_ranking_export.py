"""A bundle with a ranking stage: what is rendered for it, what a target or a preset refuses."""

import json
import re

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.graph_config import graph_values
from export.kept import kept_bundles
from export.made_from import made_from
from export.pbtxt import RenderError, check_config, fill
from export.profiles import profiles
from export.ranker import check_ranker, write_ranker
from export.render import render
from serving.backend.settings import ServingConfig
from serving.files import sha256
from serving.model.active_model import ActiveModel
from serving.model.bundle import MANIFEST, BundleError, read_manifest
from serving.model.manifest import AD_RANKER
from serving.model.placed import placed_files
from serving.ranking.features import NUMBERS
from serving.ranking.tables import FOLDER
from tests.model_config import settings_of
from tests.pipeline import serving_config
from tests.ranking import reward_deployment, tiny_reward_model
from tests.recording import FakeGraphs
from tests.tiny import SPEC
from training.preset.preset import Preset
from training.reward.reward_model import MODEL

PAST = ["past_ads", "past_behaviors", "past_times", "asked_at"]


@pytest.fixture(scope="module")
def deployment(pipeline, tmp_path_factory):
    """By a network."""
    config = serving_config().model_copy(update={"rerank": "reward"})
    return reward_deployment(pipeline, tmp_path_factory.mktemp("made"), config=config, serves="neural")


def config_of(repository, name):
    return text_format.Parse((repository / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_a_ranker_is_a_graph_like_the_others(deployment):
    made, model = deployment
    bundle = made.bundles / "1"
    manifest = read_manifest(bundle)
    assert manifest.ranker.model_dump() == {
        "kind": "reward",
        "model_id": model.id,
        "features": model.about.features,
        "target_behaviors": ("click", "conversion"),
    }
    assert sum(name.startswith(f"{FOLDER}/") for name in manifest.sha256) == 26
    files = placed_files(made.repository, manifest)
    ranker = made.repository / f"lazyar_{AD_RANKER}" / "1" / "model.onnx"
    assert files[ranker] == manifest.sha256[f"{AD_RANKER}.onnx"] == sha256(ranker)
    parsed = config_of(made.repository, f"lazyar_{AD_RANKER}")
    tensors = {t.name: list(t.dims) for t in (*parsed.input, *parsed.output)}
    assert tensors == {"numbers": [-1, len(NUMBERS)], "mean_value": [-1], "profile": [2], "worth": [-1]}


def test_every_target_of_onnx_runtime_has_it_as_a_model(deployment, tmp_path):
    made = deployment[0]
    models = render(
        made.bundles, tmp_path / "r", index=made.index, config=serving_config(), target="onnxruntime"
    )
    assert f"lazyar_{AD_RANKER}" in models
    assert config_of(tmp_path / "r", f"lazyar_{AD_RANKER}").backend == "onnxruntime"
    assert (tmp_path / "r" / f"lazyar_{AD_RANKER}" / "1" / "model.onnx").is_file()
    alone = serving_config().model_copy(update={"graph_calls": "in_process"})
    assert f"lazyar_{AD_RANKER}" not in render(
        made.bundles, tmp_path / "r", index=made.index, config=alone, target="cpu"
    )
    assert not (tmp_path / "r" / f"lazyar_{AD_RANKER}").exists()


def test_a_request_hands_its_past_to_the_stage_where_there_is_one(deployment, pipeline):
    for repository, expected in ((deployment[0].repository, PAST), (pipeline.repository, [])):
        steps = {
            s.model_name: s for s in config_of(repository, "gr4ad").ensemble_scheduling.step
        }  # of the ensemble
        out, into = steps["request_features"].output_map, steps["ad_resolver"].input_map
        assert sorted(name for name in out if name in PAST) == sorted(expected)
        assert sorted(name for name in into if name in PAST) == sorted(expected)
        assert ("profile_codes" in into) == bool(expected)
        for model, side in (("request_features", "output"), ("ad_resolver", "input")):
            names = {t.name for t in getattr(config_of(repository, model), side)}
            assert names & set(PAST) == set(expected)
        settings = settings_of(repository / "ad_resolver" / "config.pbtxt")
        assert settings["ranker"] == ("reward" if expected else None)


def test_engines_and_cuda_graphs_know_the_pool(deployment):
    manifest = read_manifest(deployment[0].bundles / "1")
    config = ServingConfig(widths="4-8-16:6", rerank_pool=48, max_num_ads=200, max_batch_size=4)
    ranges = profiles(manifest, config)[AD_RANKER]
    assert ranges["numbers"].least == (1, 1, len(NUMBERS))
    assert ranges["numbers"].usual == (4, 48, len(NUMBERS))
    assert ranges["mean_value"].most == (4, 200)
    assert ranges["profile"].most == (4, 2)
    values = graph_values(AD_RANKER, manifest, config=config, target="tensorrt", bundles="b")
    parsed = check_config(f"lazyar_{AD_RANKER}", fill("graph", values))
    shapes = [(s.batch_size, list(s.input["numbers"].dim)) for s in parsed.optimization.cuda.graph_spec]
    assert shapes == [(batch, [48, len(NUMBERS)]) for batch in (1, 2, 4)]


def test_a_preset_that_asks_for_a_ranker_needs_a_bundle_with_one(deployment, pipeline, tmp_path):
    config = serving_config().model_copy(update={"rerank": "reward"})
    with pytest.raises(
        RenderError, match="serving.rerank: expected off, as the bundle has no ranker, got reward"
    ):
        render(pipeline.bundles, tmp_path / "r", index=pipeline.index, config=config)
    assert not (tmp_path / "r").exists()
    made = deployment[0]
    render(made.bundles, tmp_path / "r", index=made.index, config=serving_config())  # off, whoever asks


def test_tensorrt_runs_no_trees(deployment, tmp_path):
    made = deployment[0]
    assert len(kept_bundles(made.bundles, "tensorrt", index=made.index)) == 1
    (made.folder / "trees").mkdir()
    bundle = made.folder / "trees" / "1"
    for path in (made.bundles / "1").rglob("*"):
        if path.is_file() and FOLDER not in path.parts and path.name != f"{AD_RANKER}.onnx":
            target = bundle / path.relative_to(made.bundles / "1")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    write_ranker(tiny_reward_model(serves="mean"), bundle)
    content = json.loads((bundle / MANIFEST).read_text())
    content["sha256"] |= {
        str(p.relative_to(bundle)): sha256(p) for p in bundle.rglob("*") if p.is_file() and p.name != MANIFEST
    }
    (bundle / MANIFEST).write_text(json.dumps(content))
    assert len(kept_bundles(bundle.parent, "onnxruntime", index=made.index)) == 1
    message = "trees/1: expected a ranker that target tensorrt runs (reward.model: neural), got one of trees"
    with pytest.raises(RenderError, match=re.escape(message)):
        kept_bundles(bundle.parent, "tensorrt", index=made.index)


def test_a_version_without_the_ranker_of_the_repository_is_not_used(deployment, pipeline):
    class Reader:
        generations = ()

    with pytest.raises(
        BundleError, match="expected the ranker that the repository was rendered for, reward, got"
    ):
        ActiveModel(pipeline.bundles, reader=Reader(), graphs=FakeGraphs(), features=SPEC, ranker="reward")
    with pytest.raises(BundleError, match="rendered for, None, got reward; render the repository"):
        ActiveModel(deployment[0].bundles, reader=Reader(), graphs=FakeGraphs(), features=SPEC)


def test_parity_of_the_exported_stage(deployment):
    made, model = deployment
    assert check_ranker(model, made.bundles / "1", read_manifest(made.bundles / "1"), seed=3) < 1e-5
    lines = model.about.calibration["neural"]
    assert np.isfinite(lines.slope)


def test_another_reward_model_makes_another_bundle(tmp_path):
    (tmp_path / "reward").mkdir()
    preset, trained = Preset(), tmp_path / "model" / "checkpoints" / "step-1"
    options = {"preset": preset, "precision": "fp32", "fine_tuned": False, "version": 1}
    found = []
    for text in ("a", "b"):
        (tmp_path / "reward" / MODEL).write_text(text)
        found.append(
            [made_from(tmp_path, trained, ranker=ranker, **options).values for ranker in (None, "reward")]
        )
    (without, one), (again, other) = found
    assert without == again
    assert "reward model" in one
    assert one != other
