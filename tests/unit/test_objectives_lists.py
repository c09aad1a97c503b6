"""RSPO, DPO and GRPO, each against its formula as plain loops over Python's floats, and bad lists."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from training.data.lists import Lists
from training.objectives.dpo import Dpo
from training.objectives.grpo import Grpo, advantages
from training.objectives.list_scores import ListScores, RewardScale, ranks
from training.objectives.rspo import Rspo, _PairWeights

BETA, DELTA, TOP = 0.7, 0.3, 4.0
T = 3


def draw(random, *, count, longest, missing=0.0, ties=0.0):
    """Scored lists of 1 .. `longest` candidates; some candidates without a reference, some rewards equal."""
    n = random.integers(1, longest + 1, count)
    there = np.arange(longest) < n[:, None]
    reward = random.random((count, longest)) * TOP
    reward[random.random(reward.shape) < ties] = 1.0
    reference = -random.exponential(6, (count, longest))
    log_p = reference + random.normal(0.2, 1, reference.shape)
    reference[random.random(reference.shape) < missing] = np.nan
    return ListScores(
        sids=torch.tensor(random.integers(0, 3, (count, longest, T))),
        there=torch.tensor(there),
        log_p=torch.tensor(log_p, requires_grad=True),
        log_p_ref=torch.tensor(reference),
        reward=torch.tensor(np.where(there, reward, 0.0)),
    )


def rows(scores):
    """Each list as Python's floats, without padding: sids, log p, reference, v."""
    for b in range(len(scores.there)):
        n = int(scores.there[b].sum())
        columns = (scores.sids, scores.log_p, scores.log_p_ref, scores.reward)
        yield tuple(column[b, :n].tolist() for column in columns)


def shared(a, b):
    """Leading codes that are the same."""
    return next((t for t in range(T) if a[t] != b[t]), T)


def m_by_loops(v):
    """M_ij of a list: rows are anchors."""
    order = sorted(range(len(v)), key=lambda i: -v[i])
    rank = {i: place for place, i in enumerate(order)}
    ideal = sum((2 ** v[i] - 1) / math.log2(2 + place) for place, i in enumerate(order))
    gain = [(2**x - 1) / ideal if ideal else 0.0 for x in v]
    m = {}
    for i in range(len(v)):
        for j in range(len(v)):
            if v[j] < v[i]:
                k = abs(rank[i] - rank[j])
                discount = 1 / math.log2(1 + k) - 1 / math.log2(1 + (k + 1))
                m[i, j] = discount * abs(gain[i] - gain[j])
    return m


def rspo_by_loops(sids, log_p, reference, v, *, siblings=0.0):
    """L_RSPO of a list, and C of each anchor with a pair."""
    m, total, gates = m_by_loops(v), 0.0, []
    for i in range(len(v)):
        worse = [j for j in range(len(v)) if v[j] < v[i]]
        if not worse:
            continue
        ratios = [log_p[j] - reference[j] for j in [*worse, i]]
        known = not any(math.isnan(x) for x in ratios)
        c = 1 if known and sum(ratios) / len(ratios) < DELTA else 0
        gates.append(c)
        y = [log_p[j] - (reference[j] if c else 0.0) for j in range(len(v))]
        inner = 0.0
        for j in worse:
            weight = m[i, j] * (1 + siblings * shared(sids[i], sids[j]))
            inner += weight * math.exp(BETA * (y[j] - y[i]))
        total += math.log2(1 + inner)
    return total / len(v), gates


def dpo_by_loops(sids, log_p, reference, v, *, siblings=0.0):
    keep = [i for i in range(len(v)) if not math.isnan(reference[i])]
    total = 0.0
    for i in keep:
        inner = 0.0
        for j in keep:
            if v[j] < v[i]:
                a = BETA * ((log_p[j] - reference[j]) - (log_p[i] - reference[i]))
                inner += (1 + siblings * shared(sids[i], sids[j])) * math.exp(a)
        if inner:  # - log sigma(- log sum exp a)
            total += -math.log(1 / (1 + math.exp(math.log(inner))))
    return total / max(len(keep), 1)


def grpo_by_loops(sids, log_p, reference, v, *, epsilon=0.2, kl=0.1):
    keep = [i for i in range(len(v)) if not math.isnan(reference[i])]
    values = [v[i] for i in keep]
    if not keep or max(values) == min(values):
        return 0.0
    mean = sum(values) / len(keep)
    std = math.sqrt(sum((x - mean) ** 2 for x in values) / len(keep))
    total = 0.0
    for i in keep:
        advantage, r = (v[i] - mean) / std, math.exp(log_p[i] - reference[i])
        clipped = min(max(r, 1 - epsilon), 1 + epsilon)
        total += -min(r * advantage, clipped * advantage) + kl * (1 / r - 1 + math.log(r))
    return total / len(keep)


OBJECTIVES = {
    "rspo": (Rspo(beta=BETA, delta=DELTA), lambda *row: rspo_by_loops(*row)[0]),
    "rspo, siblings": (
        Rspo(beta=BETA, delta=DELTA, sibling_weight=0.5),
        lambda *row: rspo_by_loops(*row, siblings=0.5)[0],
    ),
    "dpo": (Dpo(beta=BETA), dpo_by_loops),
    "dpo, siblings": (Dpo(beta=BETA, sibling_weight=2.0), lambda *row: dpo_by_loops(*row, siblings=2.0)),
    "grpo": (Grpo(epsilon=0.2, kl_weight=0.1), grpo_by_loops),
}
ALL = [objective for objective, _ in OBJECTIVES.values()]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("missing", "ties"), [(0.0, 0.0), (0.2, 0.3)])
def test_equals_its_formula_on_a_thousand_lists(name, missing, ties):
    """In batches of five; the first hundred also one by one."""
    objective, by_loops = OBJECTIVES[name]
    random, lists = np.random.default_rng(0), 0
    for batch in range(200):
        scores = draw(random, count=5, longest=9, missing=missing, ties=ties)
        expected = [by_loops(*row) for row in rows(scores)]
        assert float(objective(scores).total.sum.detach()) == pytest.approx(sum(expected), abs=1e-9)
        for b in range(5 if batch < 20 else 0):
            one = ListScores(**{key: value[b : b + 1] for key, value in vars(scores).items()})
            assert float(objective(one).total.sum.detach()) == pytest.approx(expected[b], abs=1e-9)
        lists += sum(x > 0 for x in map(abs, expected))
    assert lists > 700  # of a thousand; the others have one candidate or equals


@pytest.mark.parametrize("objective", ALL)
def test_gradients_equal_differences(objective):
    scores = draw(np.random.default_rng(1), count=4, longest=5, missing=0.1, ties=0.2)

    def total(log_p):
        return objective(replace(scores, log_p=log_p)).total.sum

    assert torch.autograd.gradcheck(total, scores.log_p)


def test_gate_is_the_share_of_anchors_with_the_reference():
    scores = draw(np.random.default_rng(2), count=300, longest=8, missing=0.05)
    loss = Rspo(beta=BETA, delta=DELTA)(scores)
    gates = [c for row in rows(scores) for c in rspo_by_loops(*row)[1]]
    assert (float(loss.parts["gate"].sum), float(loss.parts["gate"].weight)) == (sum(gates), len(gates))
    assert 0.2 < sum(gates) / len(gates) < 0.8  # or this test would say little


def test_drift_is_the_mean_log_ratio_of_what_has_a_reference():
    scores = draw(np.random.default_rng(3), count=30, longest=8, missing=0.3)
    ratios = [p - r for _, log_p, ref, _ in rows(scores) for p, r in zip(log_p, ref, strict=True) if r == r]
    for objective in ALL:
        drift = objective(scores).parts["drift"]
        assert float(drift.sum) == pytest.approx(sum(ratios), rel=1e-12)
        assert float(drift.weight) == len(ratios)


def test_the_condition_of_the_bound_holds_on_ten_thousand_lists():
    """sum_j M_ij < 1 for every anchor, which makes RSPO an upper bound; and M is that of the loops."""
    random, largest = np.random.default_rng(4), 0.0
    for longest, count in ((2, 2000), (5, 4000), (16, 3800), (128, 200)):
        scores = draw(random, count=count, longest=longest, ties=0.1)
        m = _PairWeights.of(scores)(slice(0, longest)).exp()
        worse = (scores.reward[:, None] < scores.reward[:, :, None]) & scores.there[:, None]
        worse &= scores.there[:, :, None]
        largest = max(largest, float((m * worse).sum(-1).max()))
        for b, row in enumerate(itertools.islice(rows(scores), 10)):
            for (i, j), value in m_by_loops(row[3]).items():
                assert float(m[b, i, j]) == pytest.approx(value, abs=1e-12)
    assert 0.3 < largest < 1


@pytest.mark.parametrize("objective", ALL[:4])
def test_chunks_change_nothing(objective):
    scores = draw(np.random.default_rng(5), count=3, longest=50, missing=0.01)
    results = []
    for chunk in (1, 7, 50, 128):
        scores.log_p.grad = None
        loss = replace(objective, chunk=chunk)(scores)
        loss.total.sum.backward()
        parts = {name: [x.item() for x in part] for name, part in loss.parts.items()}
        results.append((float(loss.total.sum.detach()), scores.log_p.grad.clone(), parts))
    for total, gradient, parts in results[:-1]:
        assert total == pytest.approx(results[-1][0], rel=1e-12)
        torch.testing.assert_close(gradient, results[-1][1], rtol=1e-12, atol=1e-14)
        assert parts == {name: pytest.approx(part) for name, part in results[-1][2].items()}


@pytest.mark.parametrize("objective", [ALL[0], ALL[2]])
def test_memory_of_long_lists_grows_with_their_length_and_not_with_its_square(objective):
    """What is kept for the backward pass, in bytes."""

    def kept(longest):
        scores, sizes = draw(np.random.default_rng(6), count=1, longest=longest), []

        def pack(tensor):
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            objective(scores)
        return sum(sizes)

    assert kept(128) > 128 * 128 * 8  # all pairs at once
    assert kept(1024) < 128 * 128 * 8


def test_ranks_are_those_of_sorting():
    values = torch.tensor([[1.0, 3.0, 2.0, 3.0, 9.0]])
    there = torch.tensor([[True, True, True, True, False]])
    assert ranks(values, there).tolist() == [[3, 0, 2, 1, 4]]


# Rewards and lists that are none


def lists_of(reward, *, log_p_ref="zero", flags=None):
    """Lists [B, n] of candidates with the SIDs (i, i, i)."""
    reward = torch.tensor(reward, dtype=torch.float32)
    sids = torch.arange(reward.shape[1])[None, :, None].expand(*reward.shape, T).contiguous()
    return Lists(
        sids=sids,
        reward=reward,
        flags=torch.ones(reward.shape, dtype=torch.uint8) if flags is None else torch.tensor(flags),
        ads=torch.full(reward.shape, -1),
        log_p_ref=torch.full(reward.shape, -3.0) if log_p_ref == "zero" else log_p_ref,
    )


def scored(lists, *, scale=None, seed=0):
    """Scores of random logits, which are returned with them."""
    torch.manual_seed(seed)
    shape = lists.reward.shape
    logits = [torch.randn(*shape, 6, dtype=torch.float64, requires_grad=True) for _ in range(T)]
    return logits, ListScores.of(lists, logits, scale=scale or RewardScale())


def test_log_p_is_that_of_the_logits():
    logits, scores = scored(lists_of([[1.0, 2.0, 3.0]]))
    for i in range(3):
        expected = 0.0
        for t in range(T):
            row = logits[t][0, i].tolist()
            expected += row[i] - math.log(sum(math.exp(x) for x in row))
        assert scores.log_p[0, i].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("reward", "by", "v"),
    [
        ([0.0, 5.0, 10.0], "max", [0, 2, 4]),
        ([-3.0, 5.0, 10.0], "max", [0, 2, 4]),  # worth less than nothing is worth nothing
        ([-3.0, -1.0, 0.0], "max", [0, 0, 0]),
        ([0.0, 0.0, 0.0], "max", [0, 0, 0]),
        ([7.0, 7.0, 7.0], "max", [4, 4, 4]),
        ([5.0, 6.0, 7.0], "range", [0, 2, 4]),
        ([-5.0, -6.0, -7.0], "range", [4, 2, 0]),
        ([7.0, 7.0, 7.0], "range", [0, 0, 0]),
        ([3e38, -3e38, 0.0], "range", [4, 0, 2]),  # whose difference no float32 holds
        ([1e-40, 2e-40, 4e-40], "max", [1, 2, 4]),
        ([9.0, -1.0, 9.0, 5.0, 1e9], "rank", [2, 0, 2, 1, 4]),  # share of the others that are worth less
        ([7.0, 7.0, 7.0], "rank", [0, 0, 0]),
        ([-3.0, -1.0, 2.0], "rank", [0, 0, 4]),
        ([7.0], "rank", [0]),
    ],
)
def test_rewards_are_scaled(reward, by, v):
    lists = lists_of([reward])
    got = RewardScale(by=by)(lists.reward, lists.flags != 0)
    np.testing.assert_allclose(got.tolist(), [v], rtol=1e-4)
    halved = RewardScale(by=by, top=1.0)(lists.reward, lists.flags != 0)
    np.testing.assert_allclose(halved.tolist(), [[x / 4 for x in v]], rtol=1e-4)


def test_shares_of_what_is_worth_less_are_of_the_list_alone():
    """Padding, and what has no number for a reward, is no other candidate."""
    reward = torch.tensor([[5.0, 3.0, 0.0, 9.0], [2.0, 1.0, 3.0, 4.0]])
    there = torch.tensor([[True, True, False, False], [True] * 4])
    got = RewardScale(by="rank", top=3.0)(reward, there)
    np.testing.assert_allclose(got.tolist(), [[3, 0, 0, 0], [1, 0, 2, 3]])


BAD = {
    "a list of one": [[5.0]],
    "all equal": [[5.0, 5.0, 5.0]],
    "all nothing": [[0.0, 0.0, 0.0]],
    "all below nothing": [[-1.0, -2.0, -math.inf]],
    "no number at all": [[math.nan, math.inf, -math.inf]],
}


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("name", BAD)
def test_a_list_without_differences_teaches_nothing(objective, name):
    logits, scores = scored(lists_of(BAD[name]))
    loss = objective(scores)
    loss.total.sum.backward()
    assert float(loss.total.sum.detach()) == 0
    assert float(loss.total.weight) == 0  # and it is not counted as a list
    assert all(float(x.grad.abs().sum()) == 0 for x in logits)


@pytest.mark.parametrize("objective", ALL)
def test_a_reward_that_is_no_number_is_no_candidate(objective):
    """And padding is none, whatever stands there."""
    reward = [[1.0, 3.0, 2.0]]
    logits, scores = scored(lists_of(reward))
    expected = objective(scores)
    for bad in (math.nan, math.inf, -math.inf, 100.0):
        padded = lists_of([[*reward[0], bad]], flags=[[1, 1, 1, 0 if bad == 100.0 else 1]])
        more = [torch.cat([x.detach(), torch.zeros(1, 1, 6)], dim=1).requires_grad_() for x in logits]
        loss = objective(ListScores.of(padded, more, scale=RewardScale()))
        torch.testing.assert_close(loss.total, expected.total, rtol=1e-12, atol=0)
        assert {n: p.sum.item() for n, p in loss.parts.items()} == pytest.approx(
            {n: p.sum.item() for n, p in expected.parts.items()}
        )
        loss.total.sum.backward()
        assert all(float(x.grad[0, 3].abs().sum()) == 0 for x in more)
        assert all(x.grad.isfinite().all() and float(x.grad.abs().sum()) > 0 for x in more)


def test_without_any_reference():
    """RSPO does without; what stands on a ratio has nothing to say."""
    _, scores = scored(lists_of([[1.0, 3.0, 2.0]], log_p_ref=None))
    loss = Rspo(beta=BETA, delta=DELTA)(scores)
    [row] = rows(scores)
    assert float(loss.total.sum.detach()) == pytest.approx(rspo_by_loops(*row)[0], rel=1e-12)
    assert float(loss.parts["gate"].sum) == 0
    for objective in (Dpo(beta=BETA), Grpo(epsilon=0.2, kl_weight=0.1)):
        logits, scores = scored(lists_of([[1.0, 3.0, 2.0]], log_p_ref=None))
        loss = objective(scores)
        loss.total.sum.backward()
        assert [x.item() for x in loss.total] == [0, 0]
        assert all(float(x.grad.abs().sum()) == 0 for x in logits)


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("apart", [1e3, 1e30])
def test_models_far_from_their_reference_have_finite_losses(objective, apart):
    """In float32, where exp(89) is infinite."""
    scores = draw(np.random.default_rng(7), count=5, longest=6)
    far = torch.where(torch.rand(5, 6) < 0.5, -apart, 0.0).float().requires_grad_()
    loss = objective(replace(scores, log_p=far, log_p_ref=scores.log_p_ref.float()))
    loss.total.sum.backward()
    assert loss.total.sum.isfinite()
    assert far.grad.isfinite().all()


def test_advantages_have_mean_0_and_deviation_1():
    scores = draw(np.random.default_rng(8), count=20, longest=9)
    got = advantages(scores.reward, scores.there)
    for b, (_, _, _, v) in enumerate(rows(scores)):
        if len(v) > 1:
            expected = (np.array(v) - np.mean(v)) / np.std(v)
            np.testing.assert_allclose(got[b, : len(v)].numpy(), expected, rtol=1e-9)
        assert float(got[b, len(v) :].abs().sum()) == 0


def test_the_better_candidate_rises():
    """Gradient descent raises what is worth more above what is worth less, with each of them."""
    for objective in ALL:
        scores = draw(np.random.default_rng(9), count=1, longest=2)
        full = replace(scores, there=torch.ones(1, 2, dtype=bool), reward=torch.tensor([[0.0, 4.0]]).double())
        objective(full).total.sum.backward()
        assert float(scores.log_p.grad[0, 1]) < 0 < float(scores.log_p.grad[0, 0])
