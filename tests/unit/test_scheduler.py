"""The scheduler with a real index and bundles on disk, and an engine that records what it is asked."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from export.bundle import point_current
from serving.batch import SearchRequest
from serving.index.layout import IndexStoreError
from serving.index.reader import IndexReader
from serving.model import active_model
from serving.model.active_model import ActiveModel
from serving.model.bundle import BundleError
from serving.scheduler import Scheduler
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.index_files import IndexFiles
from tests.tiny import LEVEL_SIZES, VALUE_TABLE, random_slot_ads, tiny_catalogue, tiny_model
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
    active = ActiveModel(bundles, reader=reader, is_loaded=loaded)
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
        {"sha256": {"gone.onnx": "00"}},
        {
            "features": {
                "levels": 3,
                "short_slots": 4,
                "long_slots": 4,
                "profile_sizes": [3, 4],
                "max_history": 17,
            }
        },
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


def test_first_version_must_be_of_a_generation_of_the_index(deployment):
    bundles, index, tokenizer_id = deployment
    reader = IndexReader(index)
    add_version(bundles, 2, tokenizer_id="wrong")
    point_current(bundles, 2)
    with pytest.raises(
        IndexStoreError, match=f"version 2 is of tokenizer wrong: .*got wrong; ready: {tokenizer_id}"
    ):
        ActiveModel(bundles, reader=reader, is_loaded=lambda manifest: True)
    os.unlink(bundles / "CURRENT")
    with pytest.raises(BundleError, match="CURRENT: expected the version to serve"):
        ActiveModel(bundles, reader=reader, is_loaded=lambda manifest: True)


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
    scheduler._executor = Keeper(1, seen)
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
