"""New weights in the graphs that serve: what an export would make, what is refused, and what is left then."""

import dataclasses
import os
import resource
import shutil
import signal
import time

import numpy as np
import onnx
import pytest
import torch

from export.bundle import write_bundle
from export.canary_watch import roll_back_canary
from export.compare import search
from export.gate import Gate, GateError
from export.gate_requests import GateRequests
from export.lower import Lowering
from export.parity import TOLERANCE, parity_errors
from export.publish import Place
from export.publisher import Publisher
from export.refit import RefitError, refit
from export.refit_gate import RefitGate
from export.skeleton import SKELETON, SkeletonError, fill_skeletons, random_twin, write_skeletons
from export.versions import canary_of, pin
from serving.engines.ort import OrtExecutor
from serving.files import sha256
from serving.model.bundle import read_manifest, versions
from serving.model.current import current_version
from serving.ranking.tables import FOLDER
from serving.search.widths import WidthPlan
from tests import tiny
from tests.items import item_checkpoint, item_model
from tests.pipeline import checkpoint, copy_of, serving_config
from tests.ranking import reward_deployment
from tests.tiny import VALUE_TABLE, copying_model, plain_model, tiny_snapshot
from training.loop.checkpoint import NonFiniteError
from training.loop.retention import save_checkpoint
from training.preset.precision import PrecisionConfig
from training.preset.preset import Preset
from training.preset.publish import PublishConfig

PLAN = WidthPlan((4, 16, 64), 8)
GRAPHS = ("prefix", "tail_2", "tail_3", "tail_4")


@pytest.fixture
def made(pipeline, tmp_path):
    return copy_of(pipeline, tmp_path)


@pytest.fixture(scope="module")
def requests(pipeline):
    """Requests whose targets are the first ads that version 1 finds, so that recall@50 sees every change."""
    slots, profile = tiny.random_requests(24)
    drawn = GateRequests(slots, profile, tiny_snapshot(ads=4000, paused=0), None)
    reference = search(
        OrtExecutor(pipeline.bundles / "1", levels=3),
        drawn,
        plan=PLAN,
        normalise=None,
        batch_size=24,
        value_table=VALUE_TABLE,
        title="targets",
    )
    return dataclasses.replace(drawn, targets=[np.sort(f.ads[:20]) for f in reference])


def trained(made, *, seed=5):
    """Other weights of the same model, after a step more."""
    return dataclasses.replace(checkpoint(seed=seed, tokenizer_id=made.tokenizer_id), step=7)


def nudged(made, *, by=0.01):
    """Weights near those of version 1, as after some steps of training."""
    near = checkpoint(tokenizer_id=made.tokenizer_id)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in near.model.parameters():
            weight += by * weight.std().nan_to_num() * torch.randn(weight.shape)
    return near


def publisher(made, requests=None, **options):
    preset = Preset.load("configs/demo.yaml", ("serving.widths=4-8-16:6",))
    config = serving_config().model_copy(update={"graph_calls": "in_process"} | options)
    place = Place(made.bundles, made.repository, made.index, config)
    return Publisher(place, preset, lambda name: pytest.fail(f"{name} was loaded"), requests)


def left(made):
    """What is in the folder of bundles, but for locks."""
    return sorted(path.name for path in made.bundles.iterdir() if not path.name.endswith(".lock"))


def test_a_refit_is_what_an_export_of_these_weights_is(made, other_graphs):
    """Byte by byte: nothing of the old weights is left, and nothing else changed."""
    folder = refit(trained(made), made.bundles, base=1)
    old, new = read_manifest(made.bundles / "1"), read_manifest(folder)
    for stem in GRAPHS:
        assert sha256(folder / f"{stem}.onnx") == sha256(other_graphs / f"{stem}.onnx")
        assert new.sha256[f"{stem}.onnx"] != old.sha256[f"{stem}.onnx"]
    same = {name for name in old.sha256 if name.partition("/")[0] in ("tokenizer", "encoder", SKELETON)}
    assert len(same) > 8
    assert all(new.sha256[name] == old.sha256[name] for name in same)
    assert new.sha256.keys() == old.sha256.keys()
    assert (new.version, new.step, new.refit, old.refit) == (2, 7, {"base": 1}, None)
    assert current_version(made.bundles) == 1


def test_an_item_level_that_ranks_gets_the_new_weights(made, tmp_path):
    start = item_checkpoint(item_model(), tokenizer_id=made.tokenizer_id)
    other = item_checkpoint(item_model(seed=3), tokenizer_id=made.tokenizer_id)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight += 0.01
    ranked = [
        write_bundle(c, tmp_path / name, tokenizer=None, activate=False, ranker=c.model)
        for name, c in (("old", start), ("new", other))
    ]
    folder = refit(other, tmp_path / "old", base=1)
    refitted, exported, old = (read_manifest(f) for f in (folder, ranked[1], ranked[0]))
    assert refitted.ranker == exported.ranker
    of_items = [name for name in exported.sha256 if name.startswith((FOLDER, "ad_ranker"))]
    assert len(of_items) > 1
    for name in of_items:
        assert refitted.sha256[name] == exported.sha256[name], name
    assert any(refitted.sha256[name] != old.sha256[name] for name in of_items)


@pytest.mark.parametrize(
    ("graphs", "make"),
    [("copying_graphs", lambda: copying_model(seed=3)), ("plain_graphs", lambda: random_twin(plain_model()))],
)
def test_every_option_of_a_model_has_graphs_to_fill(graphs, make, request, tmp_path):
    """Against PyTorch; a folded function of a weight would stay that of the traced model."""
    model = make()
    write_skeletons(request.getfixturevalue(graphs), tmp_path / "empty")
    (tmp_path / "filled").mkdir()
    fill_skeletons(tmp_path / "empty", model, tmp_path / "filled")
    assert parity_errors(model, tmp_path / "filled").max() <= TOLERANCE


def test_a_skeleton_has_no_weights_and_does_not_depend_on_them(pipeline, other_graphs, tmp_path):
    write_skeletons(other_graphs, tmp_path / "other")
    for stem in GRAPHS:
        ours = pipeline.bundles / "1" / SKELETON / f"{stem}.onnx"
        assert sha256(ours) == sha256(tmp_path / "other" / f"{stem}.onnx")
        constants = onnx.load(str(ours)).graph.initializer
        numbers = [c for c in constants if c.data_type == onnx.TensorProto.FLOAT and c.raw_data]
        assert all(np.prod(c.dims) == 1 for c in numbers)  # scales and limits alone


def another(made, what):
    ready = trained(made)
    if what == "tokenizer":
        return dataclasses.replace(ready, spec=dataclasses.replace(ready.spec, tokenizer_id="other"))
    if what == "architecture":
        config = ready.spec.model.model_copy(update={"heads": 4})
        return dataclasses.replace(ready, spec=dataclasses.replace(ready.spec, model=config))
    if what == "features":
        features = dataclasses.replace(ready.spec.features, max_history=17)
        return dataclasses.replace(ready, spec=dataclasses.replace(ready.spec, features=features))
    with torch.no_grad():
        ready.model.norm.weight[3] = float("nan")
    return ready


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("tokenizer", RefitError, "version 1: expected weights of tokenizer .*, got other: make export"),
        ("architecture", RefitError, "expected weights of the same architecture.*: model.heads 2 -> 4"),
        ("features", RefitError, "expected weights of the same .*: features.max_history 16 -> 17"),
        ("weights", NonFiniteError, "step 7: expected finite weights, 1 of .* are not, first norm.weight"),
    ],
)
def test_what_does_not_go_into_the_graphs_is_refused(made, what, error, message):
    before = left(made)
    with pytest.raises(error, match=message):
        publisher(made).publish(another(made, what))
    assert left(made) == before
    assert current_version(made.bundles) == 1


def test_a_version_of_an_older_release_has_nothing_to_fill(made):
    shutil.rmtree(made.bundles / "1" / SKELETON)
    with pytest.raises((SkeletonError, Exception), match="skeleton/"):
        refit(trained(made), made.bundles, base=1)
    assert versions(made.bundles) == [1]


def test_weights_that_find_something_else_are_refused(made, requests):
    gate = RefitGate(requests, PublishConfig(), PLAN)
    before = left(made)
    with pytest.raises(
        GateError, match=r"recall@50 of at least .*max_recall50_loss.*24 requests; not published"
    ):
        refit(trained(made), made.bundles, base=1, gate=gate)
    assert left(made) == before
    folder = refit(nudged(made), made.bundles, base=1, gate=gate)
    figures = read_manifest(folder).refit
    assert figures["base"] == 1
    assert figures["recall50"][0] > 0.3
    assert figures["recall50"][1] > 0.8 * figures["recall50"][0]
    assert 0.5 < figures["value_ratio"] < 2
    assert 0.8 < figures["overlap"]["50"] < 1


def test_what_the_version_that_serves_found_is_known(made, requests, monkeypatch):
    """It was the candidate of before; searched are the first one once, and each candidate."""
    searched, real = [], OrtExecutor.__init__

    def noted(self, folder, **options):
        searched.append(folder.name)
        real(self, folder, **options)

    gate = RefitGate(requests, PublishConfig(max_recall50_loss=1.0), PLAN)
    monkeypatch.setattr("export.refit_gate.OrtExecutor.__init__", noted)
    monkeypatch.setattr("export.bundle.check_parity", lambda *_: 0.0)
    first = refit(nudged(made), made.bundles, base=1, gate=gate)
    second = refit(nudged(made, by=0.02), made.bundles, base=2, gate=gate)
    assert searched == ["1", ".2.new", ".3.new"]
    figures = [read_manifest(folder).refit["recall50"] for folder in (first, second)]
    assert figures[1][0] == figures[0][1]


def test_expected_values_out_of_proportion_are_refused(made, requests):
    near = nudged(made)
    means = near.spec.value_buckets.means * 10
    near = dataclasses.replace(
        near,
        spec=dataclasses.replace(
            near.spec, value_buckets=dataclasses.replace(near.spec.value_buckets, means=means)
        ),
    )
    gate = RefitGate(requests, PublishConfig(), PLAN)
    with pytest.raises(GateError, match=r"within a factor of 2 .*, got one of \d.*publish.max_value_change"):
        refit(near, made.bundles, base=1, gate=gate)


def test_a_lower_precision_stays_one(made, requests):
    """INT8 of the new weights, by its own gate; an export of them makes the same graphs."""
    lenient = PrecisionConfig(min_overlap50=0.5, max_recall50_loss=0.5, max_value_error=0.5)
    lowering = Lowering("int8", Gate(requests, lenient, PLAN))
    base = refit(nudged(made), made.bundles, base=1, lowering=lowering)
    folder = refit(trained(made), made.bundles, base=int(base.name), lowering=lowering)
    manifest = read_manifest(folder)
    assert (manifest.precision, manifest.refit) == ("int8", {"base": 2})
    assert manifest.quality_precision["requests"] == 24
    again = refit(trained(made), made.bundles, base=1, lowering=lowering)
    assert all(sha256(folder / f"{s}.onnx") == sha256(again / f"{s}.onnx") for s in GRAPHS)


def test_the_ranking_stage_goes_along(pipeline, tmp_path):
    config = serving_config().model_copy(update={"rerank": "reward"})
    ranked, _ = reward_deployment(pipeline, tmp_path, config=config)
    old, new = (
        read_manifest(ranked.bundles / "1"),
        read_manifest(refit(trained(ranked), ranked.bundles, base=1)),
    )
    assert new.ranker == old.ranker
    kept = [name for name in old.sha256 if name.startswith(FOLDER) or name == "ad_ranker.onnx"]
    assert len(kept) == 27
    assert all(new.sha256[name] == old.sha256[name] for name in kept)


def test_a_disk_that_is_full_changes_nothing(made):
    before, limits = left(made), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            publisher(made).publish(trained(made))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left(made) == before
    assert publisher(made).publish(trained(made)) == 2


def test_a_publish_that_fails_leaves_no_version(made, monkeypatch):
    """The bundle was whole, and CURRENT could not move."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.publish.point_current", full)
    before = left(made)
    with pytest.raises(OSError, match="No space"):
        publisher(made).publish(trained(made))
    assert left(made) == before


def test_a_publisher_that_is_killed_leaves_nothing_half_done(made, requests):
    """At moments all over a publish: what CURRENT names is whole, and the next publish works."""
    began = time.monotonic()
    publisher(made, requests).publish(nudged(made))
    lasts = time.monotonic() - began
    for at in np.linspace(0.05, 1.0, 6):
        child = os.fork()
        if child == 0:
            try:
                publisher(made, requests).publish(nudged(made))
            finally:
                os._exit(0)
        time.sleep(at * lasts)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        read_manifest(made.bundles / str(current_version(made.bundles)))
        for version in versions(made.bundles):
            read_manifest(made.bundles / str(version))
    assert publisher(made, requests).publish(nudged(made)) == max(versions(made.bundles))
    assert not [name for name in left(made) if name.startswith(".")]


def test_new_checkpoints_are_followed(made, tmp_path):
    """One that is refused is told of, and the next one is published."""
    model, said = tmp_path / "model", []
    to_come = [another(made, "tokenizer"), nudged(made)]

    def save(ready, step):
        return save_checkpoint(model, dataclasses.replace(ready, step=step), keep=9)

    def say(text):
        said.append(text)
        if not to_come:
            raise KeyboardInterrupt
        save(to_come.pop(0), 10 + len(said))

    save(trained(made), 7)
    with pytest.raises(KeyboardInterrupt):
        publisher(made).follow(model, say=say, errors=(RefitError,))
    assert [text.partition(":")[0] for text in said] == [
        "version 2 serves",
        f"{model / 'checkpoints' / 'step-000011'} is not published",
        "version 3 serves",
    ]
    assert "expected weights of tokenizer" in said[1]
    assert current_version(made.bundles) == 3
    assert read_manifest(made.bundles / "3").step == 12


def test_while_there_is_a_canary_the_next_one_waits(made, tmp_path):
    """It would never live to be judged; then the latest checkpoint follows."""
    model, said, looks = tmp_path / "model", [], []
    preset = Preset.load("configs/demo.yaml", ("serving.widths=4-8-16:6", "publish.canary_share=0.5"))

    class Watch:
        def look(self):
            looks.append(canary_of(made.bundles))
            if len(looks) < 3:
                save_checkpoint(model, dataclasses.replace(trained(made), step=7 + len(looks)), keep=9)
            if len(looks) == 4:
                return roll_back_canary(made.bundles, looks[-1], reason="it earns less")
            return None

    def say(text):
        said.append(text)
        if len(said) == 3:
            raise KeyboardInterrupt

    follower = dataclasses.replace(publisher(made), preset=preset)
    with pytest.raises(KeyboardInterrupt):
        follower.follow(model, say=say, errors=(RefitError,), watch=Watch())
    assert [text.partition(":")[0] for text in said] == [
        "version 2 is a canary",
        "canary 2 rolled back",
        "version 3 is a canary",
    ]
    assert [canary and canary.version for canary in looks] == [None, 2, 2, 2]
    assert current_version(made.bundles) == 1
    assert read_manifest(made.bundles / "3").step == 9


def test_what_is_pinned_is_not_refitted_away(made):
    pin(made.bundles, 1)
    with pytest.raises(Exception, match="version 2: expected version 1, which is pinned"):
        publisher(made).publish(trained(made))
    assert versions(made.bundles) == [1]
    pin(made.bundles, None)
    assert publisher(made).publish(trained(made)) == 2
    assert current_version(made.bundles) == 2
