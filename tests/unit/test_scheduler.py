"""The scheduler with a real index and bundles on disk, and an engine that records what it is asked."""

import json
import os
import shutil

import numpy as np
import pytest

import serving.scheduler as module
from export.bundle import point_current
from serving.beam_search import beam_search
from serving.bundle import BundleError
from serving.index.reader import IndexReader
from serving.scheduler import ActiveModel, Scheduler, SearchRequest
from serving.widths import WidthPlan
from tests.tiny import VALUE_TABLE, random_requests, tiny_model
from training.executor import TorchExecutor

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
    monkeypatch.setattr(module, "RETRY_S", 0.0)
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
    active = ActiveModel(bundles, tokenizer_id=tokenizer_id, is_loaded=loaded)
    return Scheduler(
        IndexReader(index),
        active,
        plan=PLAN,
        make_executor=lambda m: Recorder(m.version, searches, fail_batch=fail_batch),
    )


def requests(count, *, num_ads=5, caps=None, exclude=NONE):
    slots, profile = random_requests(count)
    return [
        SearchRequest(slots[i], profile[i], num_ads, exclude, width_cap=(caps or [None] * count)[i])
        for i in range(count)
    ]


def test_groups_by_width_and_keeps_the_order(deployment):
    searches = []
    scheduler = make(deployment, searches=searches)
    caps = [None, 2, None, 100, 2]
    answers = scheduler.search(requests(5, caps=caps))
    # a cap above every width is the plan itself: three requests share its search
    assert sorted(searches) == [(1, 2), (1, 3)]
    assert [a.degraded for a in answers] == [False, True, False, False, True]
    slots, profile = random_requests(5)
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
    answers = scheduler.search(requests(5, caps=[2, None, None, None, 2]))
    assert [isinstance(a, Exception) for a in answers] == [True, False, False, False, True]
    assert "engine is gone" in str(answers[0])
    assert not isinstance(scheduler.search(requests(1))[0], Exception)  # and the next batch is fine


def test_excluded_ads_do_not_shorten_the_answer(deployment):
    scheduler = make(deployment)
    snapshot = scheduler._reader.snapshot
    first = scheduler.search(requests(1, num_ads=8))[0]
    _, ads = snapshot.ads_of_leaves(snapshot.leaves_of(first.sids[:4]))
    second = scheduler.search(requests(1, num_ads=8, exclude=ads))[0]
    assert not {tuple(s) for s in first.sids[:4].tolist()} & {tuple(s) for s in second.sids.tolist()}
    assert (second.sids[:8] >= 0).all()


def test_version_follows_current_between_batches_and_back(deployment):
    bundles = deployment[0]
    scheduler = make(deployment)
    add_version(bundles, 2)
    assert scheduler.search(requests(1))[0].model_version == 1  # there, but not pointed at
    point_current(bundles, 2)
    assert scheduler.search(requests(1))[0].model_version == 2
    point_current(bundles, 1)
    assert scheduler.search(requests(1))[0].model_version == 1


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
    assert scheduler.search(requests(1))[0].model_version == 1
    assert "model version 1 stays in use" in caplog.text
    add_version(bundles, 3)
    point_current(bundles, 3)
    assert scheduler.search(requests(1))[0].model_version == 3


def test_version_whose_graphs_still_load(deployment):
    bundles, ready = deployment[0], set()
    scheduler = make(deployment, loaded=lambda manifest: manifest.version in ready)
    add_version(bundles, 2)
    point_current(bundles, 2)
    assert scheduler.search(requests(1))[0].model_version == 1
    ready.add(2)
    assert scheduler.search(requests(1))[0].model_version == 2


def test_current_that_disappears(deployment):
    scheduler = make(deployment)
    (deployment[0] / "CURRENT").unlink()
    assert scheduler.search(requests(1))[0].model_version == 1
    (deployment[0] / "CURRENT").write_bytes(b"\xff")
    assert scheduler.search(requests(1))[0].model_version == 1


def test_a_refused_version_is_not_hashed_again_for_every_batch(deployment, monkeypatch):
    bundles = deployment[0]
    monkeypatch.setattr(module, "RETRY_S", 1000.0)
    scheduler = make(deployment)
    add_version(bundles, 2, tokenizer_id="another")
    point_current(bundles, 2)
    read = []
    monkeypatch.setattr(
        module, "read_manifest", lambda *a, **k: read.append(a) or (_ for _ in ()).throw(BundleError("no"))
    )
    for _ in range(5):
        assert scheduler.search(requests(1))[0].model_version == 1
    assert len(read) == 1


def test_first_version_must_be_of_the_index_tokenizer(deployment):
    bundles, _, tokenizer_id = deployment
    with pytest.raises(BundleError, match=f"expected tokenizer wrong .*got {tokenizer_id}; build the index"):
        ActiveModel(bundles, tokenizer_id="wrong", is_loaded=lambda manifest: True)
    os.unlink(bundles / "CURRENT")
    with pytest.raises(BundleError, match="CURRENT: expected the version to serve"):
        ActiveModel(bundles, tokenizer_id=tokenizer_id, is_loaded=lambda manifest: True)
