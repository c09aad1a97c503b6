"""The scheduler with a real index and bundles on disk, and an engine that records what it is asked."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from serving.batch import SearchRequest
from serving.engines.bls import EngineError
from serving.index.layout import IndexStoreError
from serving.index.reader import IndexReader
from serving.model import active_model
from serving.model.active_model import ActiveModel
from serving.model.bundle import BundleError
from serving.model.current import point_current
from serving.scheduler import Scheduler
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.index_files import IndexFiles
from tests.recording import FakeGraphs
from tests.tiny import LEVEL_SIZES, SPEC, VALUE_TABLE, random_slot_ads, tiny_catalogue, tiny_model
from tests.unit.test_bundle import edit
from tests.waiting import wait_until
from training.rollout.executor import TorchExecutor

PLAN = WidthPlan((4, 8, 16), 6)
NONE = np.zeros(0, np.int64)


class Recorder(TorchExecutor):
    """Knows its version, counts rows of each search, and fails on the widths told to."""

    def __init__(self, version, searches, *, fail_batch=None):
        super().__init__(tiny_model())
        self.version, self.searches, self.fail_batch = version, searches, fail_batch

    def prefix(self, slots, profile):
        self.searches.append((self.version, len(slots)))
        if len(slots) == self.fail_batch:
            raise RuntimeError("engine is gone")
        return super().prefix(slots, profile)


@pytest.fixture
def deployment(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(active_model, "RETRY_S", 0.0)
    bundles = shutil.copytree(pipeline.bundles, tmp_path / "bundles")
    shutil.copytree(pipeline.index, tmp_path / "index")
    return bundles, tmp_path / "index", pipeline.tokenizer_id


def add_version(bundles, version, **changes):
    """A bundle that differs from the first in its manifest only."""
    new = shutil.copytree(bundles / "1", bundles / str(version))
    path = new / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_version": version} | changes))


def make(deployment, *, searches=None, loaded=lambda manifest: True, fail_batch=None):
    bundles, index, tokenizer_id = deployment
    searches = [] if searches is None else searches
    reader = IndexReader(index, tokenizer_id=tokenizer_id, max_wait_s=0.0)
    active = ActiveModel(bundles, reader=reader, graphs=FakeGraphs(loaded), features=SPEC)
    return Scheduler(
        reader,
        active,
        plan=PLAN,
        make_executor=lambda m: Recorder(m.version, searches, fail_batch=fail_batch),
    )


def requests(count, *, num_ads=5, caps=None, exclude=NONE):
    ads, slots, profile, _ = random_slot_ads(count)
    return [
        SearchRequest(
            slot_ads=ads[i],
            slots=slots[i],
            profile=profile[i],
            num_ads=num_ads,
            exclude=exclude,
            width_cap=(caps or [None] * count)[i],
        )
        for i in range(count)
    ]


def checked(scheduler, asked):
    """Answers after the watch has looked at the version that CURRENT names."""
    scheduler._active._watch.look()
    return scheduler.search(asked).answers


def test_groups_by_width_and_keeps_the_order(deployment):
    searches = []
    scheduler = make(deployment, searches=searches)
    caps = [None, 2, None, 100, 2]
    answers = scheduler.search(requests(5, caps=caps)).answers
    # a cap above every width is the plan itself: three requests share its search
    assert sorted(searches) == [(1, 2), (1, 3)]
    assert [a.degraded for a in answers] == [False, True, False, False, True]
    _, _, profile, slots = random_slot_ads(5)
    snapshot = scheduler._reader.snapshot
    for i, answer in enumerate(answers):
        plan = WidthPlan((2, 2, 2), 2) if caps[i] == 2 else PLAN
        alone = beam_search(
            TorchExecutor(tiny_model()),
            snapshot.trie,
            slots[i : i + 1],
            profile[i : i + 1],
            plan=plan,
            num_results=np.array([5]),
            value_table=VALUE_TABLE,
        )
        count = int((alone.leaves[0] >= 0).sum())
        assert (answer.sids[:count] == alone.sids[0][:count]).all()
        np.testing.assert_allclose(answer.scores[:count], alone.scores[0][:count], atol=1e-5)
        assert count >= 5
        assert np.isfinite(answer.expected_value[:5]).all()
        assert (answer.model_version, answer.index_version) == (1, 1)


def test_one_failing_group_does_not_fail_the_others(deployment):
    scheduler = make(deployment, fail_batch=2)
    answers = scheduler.search(requests(5, caps=[2, None, None, None, 2])).answers
    assert [isinstance(a, Exception) for a in answers] == [True, False, False, False, True]
    assert "engine is gone" in str(answers[0])
    assert not isinstance(scheduler.search(requests(1)).answers[0], Exception)  # and the next batch is fine


def test_excluded_ads_do_not_shorten_the_answer(deployment):
    scheduler = make(deployment)
    snapshot = scheduler._reader.snapshot
    first = scheduler.search(requests(1, num_ads=8)).answers[0]
    _, ads = snapshot.ads_of_leaves(snapshot.leaves_of(first.sids[:4]))
    second = scheduler.search(requests(1, num_ads=8, exclude=ads)).answers[0]
    assert not {tuple(s) for s in first.sids[:4].tolist()} & {tuple(s) for s in second.sids.tolist()}
    assert (second.sids[:8] >= 0).all()


def test_version_follows_current_between_batches_and_back(deployment):
    bundles = deployment[0]
    scheduler = make(deployment)
    add_version(bundles, 2)
    assert scheduler.search(requests(1)).answers[0].model_version == 1  # there, but not pointed at
    point_current(bundles, 2)
    assert checked(scheduler, requests(1))[0].model_version == 2
    point_current(bundles, 1)
    assert checked(scheduler, requests(1))[0].model_version == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_id": "another"},
        {"format_version": 99},
        {"sha256": {f"{stem}.onnx": "0" * 64 for stem in ("prefix", "tail_2", "tail_3", "tail_4")}},
        {"features": dataclasses.replace(SPEC, max_history=17).to_json()},
        {"level_sizes": [5, 6, 7]},
    ],
)
def test_unusable_version_is_refused_and_the_old_one_stays(deployment, caplog, changes):
    bundles = deployment[0]
    scheduler = make(deployment)
    add_version(bundles, 2, **changes)
    point_current(bundles, 2)
    assert checked(scheduler, requests(1))[0].model_version == 1
    assert "model version 1 stays in use" in caplog.text
    add_version(bundles, 3)
    point_current(bundles, 3)
    assert checked(scheduler, requests(1))[0].model_version == 3


def test_current_that_disappears(deployment):
    scheduler = make(deployment)
    (deployment[0] / "CURRENT").unlink()
    assert scheduler.search(requests(1)).answers[0].model_version == 1
    (deployment[0] / "CURRENT").write_bytes(b"\xff")
    assert scheduler.search(requests(1)).answers[0].model_version == 1


@pytest.fixture
def start(deployment):
    """Starts as a server does, when CURRENT names what it names now."""
    reader = IndexReader(deployment[1])
    yield lambda **graphs: ActiveModel(
        deployment[0], reader=reader, graphs=FakeGraphs(**graphs), features=SPEC
    )
    reader.close()


def break_(bundles, version, how):
    """Make a version one that cannot be used."""
    if how == "file":
        (bundles / str(version) / "prefix.onnx").write_bytes(b"")
    elif how == "manifest":
        (bundles / str(version) / "manifest.json").write_text("{")
    else:
        edit(bundles / str(version), **how)


@pytest.mark.parametrize(
    "how",
    ["file", "manifest", {"tokenizer_id": "wrong"}, {"level_sizes": [6, 5, 8]}],
    ids=str,
)
def test_a_start_takes_the_last_version_that_can_be_used(deployment, start, how, caplog):
    """A supervisor starts a server again whatever CURRENT names by then."""
    bundles = deployment[0]
    for version in (2, 3):
        add_version(bundles, version)
        point_current(bundles, version)
    break_(bundles, 3, how)
    active = start()
    assert active.manifest.version == 2
    wait_until(lambda: active.refresh() or active.refused, what="a look at version 3")
    assert active.manifest.version == 2
    assert "model version 2 stays in use" in caplog.text
    shutil.rmtree(bundles / "3")
    add_version(bundles, 3)
    point_current(bundles, 3)
    wait_until(active.refresh, what="version 3, put right")
    assert (active.manifest.version, active.refused) == (3, None)


def test_a_start_without_a_readable_current_takes_what_it_named_last(deployment, start):
    bundles = deployment[0]
    add_version(bundles, 2)
    point_current(bundles, 2)
    (bundles / "CURRENT").write_text("9" * 5_000)
    active = start()
    assert active.manifest.version == 2
    assert not active.refresh()
    assert active.refused.reason == "manifest"


def test_a_start_with_no_version_that_can_be_used(deployment, start):
    bundles, _, tokenizer_id = deployment
    edit(bundles / "1", tokenizer_id="wrong")
    with pytest.raises(
        BundleError, match=f"version 1: .*is of tokenizer wrong: .*got wrong; ready: {tokenizer_id}"
    ):
        start()
    os.unlink(bundles / "CURRENT")
    os.unlink(bundles / "CURRENT.named")
    with pytest.raises(BundleError, match="CURRENT: expected the version to serve"):
        start()


def test_a_version_never_tried_is_never_taken(deployment, start):
    """Exported, and newer than what CURRENT names: nobody has said that it may serve."""
    bundles = deployment[0]
    add_version(bundles, 2)
    edit(bundles / "1", tokenizer_id="wrong")
    with pytest.raises(BundleError, match="no version can answer: version 1: "):
        start()


def test_the_first_version_is_tried_when_its_graphs_are_there(deployment, start):
    bundles, loaded, wrong = deployment[0], set(), {2}
    add_version(bundles, 2)
    point_current(bundles, 2)

    def probe(manifest):
        if manifest.version in wrong:
            raise BundleError(f"model version {manifest.version}: its graphs compute something else")

    active = start(is_loaded=lambda m: m.version in loaded, probe=probe)
    assert active.manifest.version == 2
    assert not active.refresh()  # not there yet
    loaded |= {1, 2}
    assert active.refresh()
    assert active.manifest.version == 1
    assert not active.refresh()
    assert active.refused.reason == "answers"
    wrong.clear()
    wait_until(active.refresh, what="version 2")


def test_no_version_answers_when_the_only_one_computes_something_else(deployment):
    scheduler = make(deployment)
    wrong = [True]

    def probe(manifest):
        if wrong:
            raise BundleError("prefix: expected probabilities of 6 codes")

    scheduler._active._graphs.probe = probe
    for _ in range(2):
        (answer,) = scheduler.search(requests(1)).answers
        assert isinstance(answer, BundleError)
        assert "prefix: expected probabilities of 6 codes; no version can answer" in str(answer)
    wrong.clear()
    assert scheduler.search(requests(1)).answers[0].model_version == 1


class Unloadable(Recorder):
    """Fails as the engine does when Triton has unloaded its version, in the middle of a search."""

    def __init__(self, version, searches, loaded):
        super().__init__(version, searches)
        self.loaded = loaded

    def tail(self, level, carry, **inputs):
        if self.version not in self.loaded:
            raise EngineError(f"lazyar_tail_{level} version {self.version}: is not found")
        return super().tail(level, carry, **inputs)


def unloadable(deployment, *, current):
    """A scheduler that uses version 2, with 1 and 2 loaded, and what is loaded."""
    loaded, searches = {1, 2}, []
    add_version(deployment[0], 2)
    point_current(deployment[0], 2)
    scheduler = make(deployment, loaded=lambda manifest: manifest.version in loaded)
    scheduler._make_executor = lambda m: Unloadable(m.version, searches, loaded)
    scheduler._opened.clear()
    scheduler._open()
    assert scheduler.search(requests(2)).answers[0].model_version == 2
    add_version(deployment[0], 3)
    if current == 3:
        point_current(deployment[0], 3)
    return scheduler, loaded, searches


def test_graphs_that_are_gone_fail_nobody_while_another_version_can_search(deployment):
    """Unloaded between two levels: the requests are searched again, by one version from the start."""
    scheduler, loaded, searches = unloadable(deployment, current=3)
    loaded.symmetric_difference_update({2, 3})
    before = len(searches)
    result = scheduler.search(requests(3, caps=[None, 2, None]))
    assert [a.model_version for a in result.answers] == [3] * 3
    assert result.report.failed == 0
    assert {version for version, _ in searches[before + 1 :]} <= {2, 3}
    again = scheduler.search(requests(3, caps=[None, 2, None])).answers
    for first, second in zip(result.answers, again, strict=True):
        np.testing.assert_array_equal(first.sids, second.sids)


def test_graphs_that_are_gone_without_another_version(deployment, caplog):
    scheduler, loaded, _ = unloadable(deployment, current=2)
    loaded.clear()
    for _ in range(2):
        result = scheduler.search(requests(2))
        assert [type(a) for a in result.answers] == [BundleError] * 2
        assert (
            "model version 2: its graphs are not loaded any more; no version can answer: version 1: "
            in str(result.answers[0])
        )
        assert result.report.failed == 2
    loaded.add(2)  # they are back: nothing else is needed
    assert scheduler.search(requests(1)).answers[0].model_version == 2
    loaded.symmetric_difference_update({1, 2})
    assert scheduler.search(requests(1)).answers[0].model_version == 1
    loaded.add(2)
    scheduler._active._watch.look()
    wait_until(lambda: scheduler.search(requests(1)).answers[0].model_version == 2, what="CURRENT's version")


def test_an_error_of_a_graph_that_is_loaded_is_no_reason_to_change(deployment):
    scheduler, loaded, _ = unloadable(deployment, current=2)
    scheduler._opened[2].executor._executor.loaded = set()
    (answer,) = scheduler.search(requests(1)).answers
    assert isinstance(answer, EngineError)
    assert scheduler._active.manifest.version == 2


@pytest.fixture
def two_generations(deployment):
    """An index whose second generation, "new", gives every ad another SID and is not ready yet."""
    bundles, index, tokenizer_id = deployment
    shutil.rmtree(index)
    files, ads = IndexFiles(index), list(zip(*(a.tolist() for a in tiny_catalogue()), strict=True))
    files.generation(tokenizer_id, LEVEL_SIZES)
    files.generation("new", LEVEL_SIZES, ready=False)
    mirrored = {a: tuple(v - 1 - c for v, c in zip(LEVEL_SIZES, s, strict=True)) for a, s, _ in ads}
    files.apply(
        {
            tokenizer_id: [(a, tuple(s), on, True) for a, s, on in ads],
            "new": [(a, mirrored[a], on, True) for a, _, on in ads],
        }
    )
    add_version(bundles, 2, tokenizer_id="new")
    return bundles, index, tokenizer_id, files


class Keeper(Recorder):
    """Keeps the slots that it was given."""

    def prefix(self, slots, profile):
        self.searches.append((self.version, slots.copy()))
        return TorchExecutor.prefix(self, slots, profile)


def test_version_waits_for_its_generation_and_then_all_is_of_one(two_generations, caplog):
    """Context, trie and answer of a batch are of the generation of the version that searches."""
    bundles, index, tokenizer_id, files = two_generations
    scheduler = make((bundles, index, tokenizer_id))
    seen = []
    scheduler._make_executor = lambda m: Keeper(m.version, seen)
    scheduler._opened.clear()
    scheduler._open()
    point_current(bundles, 2)
    *_, slots = random_slot_ads(3)
    for version in (1, 2):
        answers = checked(scheduler, requests(3))
        state = files.state["new" if version == 2 else tokenizer_id]
        live = {sid for sid, active in state.values() if active}
        for answer in answers:
            assert answer.model_version == version
            assert {tuple(s) for s in answer.sids.tolist() if s[0] >= 0} <= live
        expected = slots.copy()
        if version == 2:
            shown = slots[..., 0] > 0
            expected[shown, :3] = np.array(LEVEL_SIZES) + 1 - slots[shown, :3]
        assert seen[-1][0] == version
        np.testing.assert_array_equal(seen[-1][1], expected)
        if version == 1:
            assert "model version 1 stays in use: model version 2 is of tokenizer new" in caplog.text
            files._set("new", dataclasses.replace(files.meta.generations["new"], ready=True))
    assert list(scheduler._reader._followed) == ["new"]  # the old one is forgotten


def test_a_generation_that_is_gone_fails_requests_and_not_the_server(two_generations):
    bundles, index, tokenizer_id, files = two_generations
    scheduler = make((bundles, index, tokenizer_id))
    files._set("new", dataclasses.replace(files.meta.generations["new"], ready=True))
    files.drop(tokenizer_id)
    answers = scheduler.search(requests(2)).answers
    assert [type(a) for a in answers] == [IndexStoreError] * 2
    point_current(bundles, 2)
    assert [a.model_version for a in checked(scheduler, requests(2))] == [2, 2]


def test_an_unreadable_generation_is_no_reason_to_leave_the_old_one(two_generations, caplog):
    bundles, index, tokenizer_id, files = two_generations
    scheduler = make((bundles, index, tokenizer_id))
    files._set("new", dataclasses.replace(files.meta.generations["new"], ready=True))
    shutil.rmtree(files.compact("new"))
    point_current(bundles, 2)
    assert checked(scheduler, requests(1))[0].model_version == 1
    assert "expected a readable base of the index" in caplog.text


def test_changes_of_the_index_are_in_the_next_batch(two_generations):
    bundles, index, tokenizer_id, files = two_generations
    scheduler = make((bundles, index, tokenizer_id))
    files.compact(tokenizer_id)
    first = scheduler.search(requests(1, num_ads=3)).answers[0]
    best = tuple(first.sids[0].tolist())
    paused = [(a, s, False, True) for a, (s, on) in files.state[tokenizer_id].items() if on and s == best]
    version = files.apply({tokenizer_id: paused})
    second = scheduler.search(requests(1, num_ads=3)).answers[0]
    assert second.index_version == version
    assert best not in {tuple(s) for s in second.sids.tolist()}
    assert (second.sids[:3] >= 0).all()
