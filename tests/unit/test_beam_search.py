"""Beam search against exhaustive enumeration and against its contracts."""

from itertools import product

import numpy as np
import pytest
import torch

from serving.index.snapshot import IndexSnapshot
from serving.search.beam_search import beam_search
from serving.search.selection import top_k
from serving.search.widths import WidthPlan
from tests.searching import check_bans, searched
from tests.tiny import LEVEL_SIZES, VALUE_TABLE, random_requests, tiny_catalogue, tiny_model, tiny_snapshot
from training.rollout.executor import TorchExecutor


def search(snapshot, *, executor=None, num=10, **options):
    return searched(executor or TorchExecutor(tiny_model()), snapshot, num=num, **options)


def exhaustive(snapshot, row, *, count=4):
    """log p of every live SID for one request, by the unsplit model; and its expected value."""
    slots, profile = random_requests(count)
    live = sorted({tuple(s) for s in snapshot.sids_of(snapshot.leaf_ad_ids)[0].tolist()})
    tokens = torch.tensor([live])
    with torch.no_grad():
        logits, *_ = tiny_model()(
            torch.tensor(slots[row : row + 1]), torch.tensor(profile[row : row + 1]), tokens
        )
    logprob = sum(logits[t].log_softmax(-1)[0, range(len(live)), tokens[0, :, t]] for t in range(3))
    value = logits[3].softmax(-1)[0] @ torch.tensor(VALUE_TABLE)
    return live, logprob.numpy(), value.numpy()


def test_equals_exhaustive_enumeration():
    snapshot = tiny_snapshot()
    beams = search(snapshot)
    for row in range(4):
        live, logprob, value = exhaustive(snapshot, row)
        order = np.argsort(-logprob, kind="stable")
        assert [tuple(s) for s in beams.sids[row][: len(live)].tolist()] == [live[i] for i in order]
        np.testing.assert_allclose(beams.scores[row][: len(live)], logprob[order], atol=1e-5)
        np.testing.assert_allclose(beams.expected_value[row][: len(live)], value[order], rtol=1e-4)


def test_narrow_beams_equal_a_plain_python_search():
    """The same greedy pruning written with dicts over the exhaustive per-level scores."""
    snapshot, plan = tiny_snapshot(), WidthPlan((3, 5, 8), 2)
    beams = search(snapshot, plan=plan, num=1)
    slots, profile = random_requests(4)
    model = tiny_model()
    live = {tuple(s) for s in snapshot.sids_of(snapshot.leaf_ad_ids)[0].tolist()}
    everything = torch.tensor([list(product(*map(range, LEVEL_SIZES)))])
    for row in range(4):
        with torch.no_grad():
            logits, *_ = model(
                torch.tensor(slots[row : row + 1]), torch.tensor(profile[row : row + 1]), everything
            )
        kept = {(): 0.0}
        for t, width in enumerate(plan.sid):
            step = {}
            for i, sid in enumerate(everything[0].tolist()):
                prefix = tuple(sid[: t + 1])
                if prefix[:-1] in kept and any(x[: t + 1] == prefix for x in live):
                    step[prefix] = kept[prefix[:-1]] + float(logits[t][0, i].log_softmax(-1)[sid[t]])
            kept = dict(sorted(step.items(), key=lambda kv: -kv[1])[:width])
        found = [tuple(s) for s in beams.sids[row].tolist() if s[0] >= 0]
        assert found == list(kept)


@pytest.mark.parametrize("num", [1, 7, 40])
def test_returns_n_results_or_all_that_exist(num):
    snapshot = tiny_snapshot()
    beams = search(snapshot, plan=WidthPlan((1, 1, 1), 1), num=num)
    assert ((beams.leaves >= 0).sum(axis=1) >= min(num, snapshot.trie.leaves)).all()
    assert np.isfinite(beams.expected_value[:, : min(num, snapshot.trie.leaves)]).all()


def test_all_beams_are_live_and_distinct():
    snapshot = tiny_snapshot()
    beams = search(snapshot, plan=WidthPlan((4, 9, 20), 3))
    for row in range(4):
        sids = beams.sids[row][beams.leaves[row] >= 0]
        assert (snapshot.leaves_of(sids) == beams.leaves[row][beams.leaves[row] >= 0]).all()
        assert len(np.unique(sids, axis=0)) == len(sids)


def test_banned_leaves_never_come_back_and_do_not_shorten_the_answer():
    check_bans(search, tiny_snapshot())


def test_empty_catalogue_gives_no_beams():
    ad_ids, sids, active = tiny_catalogue()
    snapshot = IndexSnapshot.build(ad_ids, sids, active=np.zeros_like(active), level_sizes=LEVEL_SIZES)
    assert search(snapshot).sids.shape == (4, 0, 3)


def test_one_ad_catalogue():
    snapshot = IndexSnapshot.build(
        np.array([7]), np.array([[5, 0, 6]]), active=np.array([True]), level_sizes=LEVEL_SIZES
    )
    assert (search(snapshot).sids[:, 0] == [5, 0, 6]).all()


def test_engine_that_returns_nan_yields_valid_sids():
    class Broken(TorchExecutor):
        def prefix(self, slots, profile):
            logprob, carry = super().prefix(slots, profile)
            return np.full_like(logprob, np.nan), carry

    snapshot = tiny_snapshot()
    beams = search(snapshot, executor=Broken(tiny_model()))
    assert ((beams.leaves >= 0).sum(axis=1) >= 10).all()
    assert (snapshot.leaves_of(beams.sids[0][:10]) >= 0).all()


def test_rows_of_a_batch_do_not_influence_each_other():
    snapshot = tiny_snapshot()
    slots, profile = random_requests(4)
    together = search(snapshot, plan=WidthPlan((3, 6, 12), 4))
    for row in range(4):
        alone = beam_search(
            TorchExecutor(tiny_model()),
            snapshot.trie,
            slots[row : row + 1],
            profile[row : row + 1],
            plan=WidthPlan((3, 6, 12), 4),
            num_results=np.array([10]),
            value_table=VALUE_TABLE,
        )
        count = int((together.leaves[row] >= 0).sum())
        assert (alone.sids[0] == together.sids[row][:count]).all()
        assert (alone.leaves[0] == together.leaves[row][:count]).all()


@pytest.mark.parametrize("k", [1, 3, 7, 50])
def test_top_k_breaks_ties_by_position(k):
    random = np.random.default_rng(k)
    scores = random.integers(0, 4, (20, 30)).astype(np.float32)
    scores[random.random(scores.shape) < 0.3] = -np.inf
    got = top_k(scores, k)
    for row in range(20):
        order = sorted(
            (i for i in range(30) if scores[row, i] > -np.inf), key=lambda i: (-scores[row, i], i)
        )[:k]
        assert [i for i in got[row] if i >= 0] == order
