"""Answers by value against a plain sort of all beams that have one: whatever search, batch and cache did."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.backend.resolve import resolve
from serving.index.keys import pack
from serving.index.snapshot import IndexSnapshot
from serving.search.beam_search import beam_search
from serving.search.cold_start import ColdStart
from serving.search.widths import WidthPlan
from tests.path_executor import PathExecutor

SIZES = (5, 6, 7)
VALUES = np.array([0.1, 1.0, 5.0, 40.0], np.float32)
NONE = np.zeros(0, np.int64)


def snapshot_of(random, ads):
    """Ads of which many share a SID, a sixth of them paused."""
    sids = random.integers(0, SIZES, (ads, 3)).astype(np.int32)
    sids = sids[random.integers(0, ads, ads)]
    ids = np.sort(random.choice(10_000, ads, replace=False)).astype(np.int64)
    return IndexSnapshot.build(ids, sids, active=random.random(ads) > 1 / 6, level_sizes=SIZES), ids, sids


def search(executor, snapshot, requests, *, plan, num_ads, exclude, normalise, cold_start):
    return beam_search(
        executor,
        snapshot.trie,
        np.array(requests, np.int32)[:, None, None],
        np.zeros((len(requests), 0), np.int32),
        plan=plan,
        num_results=np.array(num_ads),
        value_table=VALUES,
        banned=[snapshot.banned_leaves(e) for e in exclude],
        normalise=normalise,
        cold_start=cold_start,
    )


def plain_values(executor, request, sids):
    """E[v] of each SID, by the engine's scores of its whole path."""
    return [float(np.exp(executor.logprob(request, tuple(sid)).astype(float)) @ VALUES) for sid in sids]


def plain_answer(snapshot, sids, worth, *, num_ads, exclude):
    """Ads of the SIDs, the worthiest first, those of one SID by id."""
    answer = []
    for _, _, sid in sorted((-w, at, sid) for at, (w, sid) in enumerate(zip(worth, sids, strict=True))):
        ads = snapshot.ads_of_sids(np.array([sid], np.int32))[1].tolist()
        answer += [ad for ad in sorted(ads) if ad not in exclude]
    return answer[:num_ads]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    ads=st.integers(1, 150),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 30), st.integers(1, 60), st.integers(1, 70)),
    num_ads=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    live=st.sampled_from(["codebook codebook codebook", "codebook codebook live", "codebook live live"]),
    share=st.sampled_from([0.0, 1.0]),
)
def test_an_answer_is_the_sort_of_its_own_beams_whatever_else_is_in_the_batch(
    seed, ads, widths, num_ads, live, share
):
    random = np.random.default_rng(seed)
    snapshot, ids, sids = snapshot_of(random, ads)
    plan = WidthPlan(widths[:3], widths[3])
    seen = np.unique(pack(sids[random.random(ads) < 0.5], SIZES))
    options = {
        "plan": plan,
        "normalise": tuple(live.split()),
        "cold_start": ColdStart(seen, SIZES, share) if share else None,
    }
    requests = list(range(len(num_ads)))
    exclude = [random.choice(ids, random.integers(0, min(ads, 20) + 1), replace=False) for _ in requests]
    executor = PathExecutor(SIZES)
    together = search(executor, snapshot, requests, num_ads=num_ads, exclude=exclude, **options)
    for row, k in enumerate(num_ads):
        alone = search(executor, snapshot, [row], num_ads=[k], exclude=[exclude[row]], **options)
        beams = int((alone.leaves[0] >= 0).sum())
        sids, with_value = alone.sids[0][:beams].tolist(), min(beams, max(plan.value, k))
        values = alone.expected_value[0][:beams].tolist()
        np.testing.assert_allclose(
            values[:with_value], plain_values(executor, row, sids)[:with_value], rtol=1e-4
        )
        worth = [math.exp(s) * v for s, v in zip(alone.scores[0][:beams].tolist(), values, strict=True)]
        worth[with_value:] = [-math.inf] * (beams - with_value)
        banned = set(exclude[row].tolist())
        expected = plain_answer(snapshot, sids, worth, num_ads=k, exclude=banned)
        found = resolve(
            snapshot,
            together.sids[row],
            scores=together.scores[row],
            expected_value=together.expected_value[row],
            num_ads=k,
            exclude=exclude[row],
            rank_by="value",
        )
        assert found.ad_ids.tolist() == expected + [-1] * (k - len(expected))
        assert len(expected) == min(k, len(np.setdiff1d(snapshot.leaf_ad_ids, exclude[row])))
        assert (found.expected_value[: len(expected)] > 0).all()  # none came from behind the value width
