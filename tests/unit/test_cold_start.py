"""What SIDs get that the model was not trained on, against dictionaries."""

import logging
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from export.bundle import write_bundle
from serving.batch import SearchRequest
from serving.cache import LocalCache
from serving.files import sha256
from serving.index.keys import pack
from serving.index.layout import change_dtype
from serving.index.overlay import Changes, with_changes
from serving.index.reader import IndexReader
from serving.index.snapshot import IndexSnapshot
from serving.model.active_model import ActiveModel
from serving.model.bundle import BundleError, read_manifest
from serving.scheduler import Scheduler
from serving.search.beam_search import beam_search
from serving.search.cold_start import SEEN_SIDS, ColdStart
from serving.search.widths import WidthPlan
from tests.pipeline import checkpoint, exported
from tests.recording import FakeGraphs
from tests.tiny import (
    LEVEL_SIZES,
    SPEC,
    VALUE_TABLE,
    random_requests,
    random_slot_ads,
    tiny_catalogue,
    tiny_model,
    tiny_snapshot,
)
from tests.unit.test_bundle import edit
from training.loop.checkpoint import load_checkpoint, write_checkpoint
from training.rollout.executor import TorchExecutor

WIDE = WidthPlan((6, 30, 210), 210)


def search(snapshot, cold_start, *, plan=WIDE, num=40):
    slots, profile = random_requests(3)
    beams = beam_search(
        TorchExecutor(tiny_model()),
        snapshot.trie,
        slots,
        profile,
        plan=plan,
        num_results=np.full(3, num),
        value_table=VALUE_TABLE,
        cold_start=cold_start,
    )
    return [
        {tuple(sid): float(score) for sid, score in zip(s.tolist(), scores, strict=True) if sid[0] >= 0}
        for s, scores in zip(beams.sids, beams.scores, strict=True)
    ]


def live_sids(snapshot):
    return sorted({tuple(s) for s in snapshot.sids_of(snapshot.leaf_ad_ids)[0].tolist()})


def packed(sids):
    return np.sort(pack(np.array(sids, np.int32).reshape(-1, 3), LEVEL_SIZES))


def prefix_scores(snapshot):
    """log p of every prefix of two codes, by the unsplit model."""
    model, (slots, profile) = tiny_model(), random_requests(3)
    live = live_sids(snapshot)
    with torch.no_grad():
        tokens = torch.tensor([live] * 3)
        logits, *_ = model(torch.tensor(slots), torch.tensor(profile), tokens)
    first, second = (
        logits[t].log_softmax(-1)[:, range(len(live)), tokens[0, :, t]].numpy() for t in range(2)
    )
    return [
        {sid[:2]: float(a + b) for sid, a, b in zip(live, x, y, strict=True)}
        for x, y in zip(first, second, strict=True)
    ]


@pytest.mark.parametrize("share", [0.5, 1.0, 5.0])
def test_unseen_sids_get_their_part_and_seen_ones_keep_theirs(share):
    snapshot = tiny_snapshot()
    live = live_sids(snapshot)
    seen = live[::2]
    plain = search(snapshot, None)
    found = search(snapshot, ColdStart(packed(seen), LEVEL_SIZES, share))
    prefixes = prefix_scores(snapshot)
    lifted = 0
    for row in range(3):
        assert set(found[row]) == set(plain[row]) == set(live)
        for sid in live:
            siblings = sum(s[:2] == sid[:2] for s in live)
            part = prefixes[row][sid[:2]] + math.log(min(share / siblings, 1))
            expected = plain[row][sid] if sid in seen else max(plain[row][sid], part)
            lifted += expected > plain[row][sid]
            assert found[row][sid] == pytest.approx(expected, abs=1e-5)
        assert list(found[row].values()) == sorted(found[row].values(), reverse=True)
    assert lifted > 10


def test_narrow_beams_take_what_was_lifted():
    snapshot = tiny_snapshot()
    live = live_sids(snapshot)
    plain = search(snapshot, None, plan=WidthPlan((6, 30, 5), 5), num=5)
    last = list(search(snapshot, None)[0])[-1]
    seen = packed([s for s in live if s != last])
    found = search(snapshot, ColdStart(seen, LEVEL_SIZES, 1e9), plan=WidthPlan((6, 30, 40), 40), num=40)
    assert last not in plain[0]
    assert list(found[0]).index(last) < len(live) - 1


def test_all_seen_is_as_without_and_none_seen_is_even():
    snapshot = tiny_snapshot()
    live = live_sids(snapshot)
    assert search(snapshot, ColdStart(packed(live), LEVEL_SIZES, 3.0)) == search(snapshot, None)
    nothing = search(snapshot, ColdStart(packed([]), LEVEL_SIZES, 1e9))
    for row, prefixes in enumerate(prefix_scores(snapshot)):
        for sid in live:
            assert nothing[row][sid] == pytest.approx(prefixes[sid[:2]], abs=1e-5)


def test_bundle_carries_what_the_checkpoint_saw(pipeline, tmp_path):
    made = checkpoint(tokenizer_id=pipeline.tokenizer_id)
    seen = packed(live_sids(tiny_snapshot()))
    write_checkpoint(tmp_path / "c", replace(made, seen_sids=seen))
    again = load_checkpoint(tmp_path / "c")
    np.testing.assert_array_equal(again.seen_sids, seen)
    with exported(pipeline.bundles / "1"):
        bundle = write_bundle(again, tmp_path / "bundles", tokenizer=pipeline.tokenizer)
    manifest = read_manifest(bundle)
    assert SEEN_SIDS in manifest.sha256
    loaded = ColdStart.load(bundle, manifest, share=2.0)
    np.testing.assert_array_equal(loaded.seen, seen)
    assert (loaded.level_sizes, loaded.share) == (LEVEL_SIZES, 2.0)
    assert ColdStart.load(bundle, manifest, share=0.0) is None


def test_a_bundle_that_does_not_say_what_it_saw(pipeline):
    bundle = pipeline.bundles / "1"
    assert ColdStart.load(bundle, read_manifest(bundle), share=1.0) is None


@pytest.mark.parametrize(
    "content",
    [
        np.array([3, 2, 5]),
        np.array([1, 1]),
        np.array([[1, 2]]),
        np.array([1.0, 2.0]),
        np.array([{"a": 1}], dtype=object),
        b"no array",
        b"",
    ],
)
def test_unusable_file_is_named_and_the_search_goes_on(pipeline, tmp_path, caplog, content):
    bundles = shutil.copytree(pipeline.bundles, tmp_path / "bundles")
    path = bundles / "1" / SEEN_SIDS
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    sums = read_manifest(bundles / "1", verify=False).sha256
    edit(bundles / "1", sha256=sums | {SEEN_SIDS: sha256(path)})
    with pytest.raises(BundleError, match=f"{path}: (expected ascending int64|not readable)"):
        ColdStart.load(bundles / "1", read_manifest(bundles / "1"), share=1.0)
    index = shutil.copytree(pipeline.index, tmp_path / "index")
    reader = IndexReader(index, tokenizer_id=pipeline.tokenizer_id)
    with caplog.at_level(logging.ERROR):
        scheduler = make_scheduler(
            bundles, reader, make_cold_start=lambda m: ColdStart.load(bundles / "1", m, share=1.0)
        )
    assert SEEN_SIDS in caplog.text
    assert len(scheduler.search([search_request()]).answers[0].sids) >= 5
    reader.close()


def make_scheduler(bundles, reader, **options):
    return Scheduler(
        reader,
        ActiveModel(bundles, reader=reader, graphs=FakeGraphs(), features=SPEC),
        plan=WIDE,
        make_executor=lambda m: TorchExecutor(tiny_model()),
        **options,
    )


def search_request():
    slot_ads, slots, profile, _ = random_slot_ads(1)
    return SearchRequest(
        slot_ads=slot_ads[0],
        slots=slots[0],
        profile=profile[0],
        num_ads=5,
        exclude=np.zeros(0, np.int64),
    )


def test_schedulers_use_it_and_do_not_share_cached_beams_with_those_that_do_not(pipeline):
    reader = IndexReader(pipeline.index, tokenizer_id=pipeline.tokenizer_id)
    cache = LocalCache(ttl_s=60.0, max_bytes=1 << 20)
    found = []
    for share in (0.0, 1e9, 0.0):
        cold_start = ColdStart(packed([]), LEVEL_SIZES, share) if share else None
        scheduler = make_scheduler(
            pipeline.bundles, reader, cache=cache, make_cold_start=lambda m, c=cold_start: c
        )
        answers, report = scheduler.search([search_request()])
        found += answers
        assert report.hits == (len(found) == 3)
    assert found[1].scores.sum() > found[0].scores.sum() + 1.0
    np.testing.assert_array_equal(found[2].scores, found[0].scores)
    reader.close()


@pytest.mark.parametrize("seed", range(12))
def test_looking_only_at_what_can_win_changes_nothing(seed):
    """Against the same search that looks at everything, with bans, live levels and an overlay."""
    random = np.random.default_rng(seed)
    ad_ids, sids, active = tiny_catalogue(ads=150, seed=seed)
    base = IndexSnapshot.build(
        ad_ids[:100], sids[:100], active=active[:100], level_sizes=LEVEL_SIZES, version=1
    )
    rows = np.zeros(50, change_dtype(3))
    rows["ad_id"], rows["codes"], rows["known"], rows["active"] = ad_ids[100:], sids[100:], 1, active[100:]
    snapshot = with_changes(base, Changes.none().with_rows(rows, LEVEL_SIZES), version=2)
    live = live_sids(snapshot)
    seen = packed([live[i] for i in random.permutation(len(live))[: len(live) // 2]])
    slots, profile = random_requests(3)
    excluded = [random.choice(ad_ids, n, replace=False) for n in (0, 5, 30)]
    num = int(random.integers(1, 12))

    def found(cold_start):
        return beam_search(
            TorchExecutor(tiny_model()),
            snapshot.trie,
            slots,
            profile,
            plan=WidthPlan(tuple(random_plan), 3),
            num_results=np.full(3, num),
            value_table=VALUE_TABLE,
            banned=[snapshot.banned_leaves(e) for e in excluded],
            normalise=[("codebook",) * 3, ("codebook", "codebook", "live")][seed % 2],
            cold_start=cold_start,
        )

    random_plan = random.integers(1, 12, 3).tolist()
    share = float(10 ** random.uniform(-1, 2))
    got, everything = found(ColdStart(seen, LEVEL_SIZES, share)), found(Thorough(seen, LEVEL_SIZES, share))
    np.testing.assert_array_equal(got.sids, everything.sids)
    np.testing.assert_array_equal(got.scores, everything.scores)
    for row, ban in enumerate(snapshot.banned_leaves(e) for e in excluded):
        assert not np.isin(got.leaves[row], ban).any()


class Thorough(ColdStart):
    """Lifts all that is unseen."""

    def lift(self, candidates, **options):
        return super().lift(candidates, **(options | {"within": 10**9}))
