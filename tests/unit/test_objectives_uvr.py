"""UVR against its formula as plain loops in float64, and what two terms of one pass are."""

import math

import numpy as np
import pytest
import torch

from tests.unit.test_objectives_lists import DELTA, T, m_by_loops, rspo_by_loops
from training.data.batch import Batch
from training.data.lists import Lists
from training.objectives.balance import Balanced
from training.objectives.dpo import Dpo
from training.objectives.joint import Joint
from training.objectives.list_scores import RewardScale
from training.objectives.rspo import Rspo
from training.objectives.uvr import Uvr
from training.objectives.vsl import Vsl

SIZES, BUCKETS, BETA = (4, 5, 6), 3, 0.7
VSL = Vsl(lambda_value=0.2, lambda_mtp=0.7)
UVR = Uvr(VSL, Rspo(beta=BETA, delta=DELTA), RewardScale())


def draw(seed, *, requests=2, targets=2, candidates=5):
    """A batch with padding of both kinds, and a model: logits that depend on request and SID alone."""
    random = np.random.default_rng(seed)
    levels = (*SIZES, BUCKETS)
    tables = [torch.tensor(random.normal(size=(requests, *levels[: t + 1]))) for t in range(T + 1)]
    mtp = [torch.tensor(random.normal(size=(requests, v))) for v in levels]

    def codes(n):
        return np.stack([random.integers(0, v, (requests, n)) for v in SIZES], -1)

    sids = codes(candidates)
    tokens = codes(targets)
    tokens[:, 0] = sids[:, 1]  # a target that is in the list; the others are seldom
    weight = random.random((requests, targets))
    weight[0, 1] = 0
    flags = np.ones((requests, candidates), np.uint8)
    flags[1, random.integers(1, candidates + 1) :] = 0
    batch = Batch(
        slots=torch.zeros(requests, 1, 1),
        profile=torch.zeros(requests, 1),
        tokens=torch.tensor(tokens),
        value=torch.tensor(random.integers(0, BUCKETS, (requests, targets))),
        weight=torch.tensor(weight),
        lists=Lists(
            sids=torch.tensor(sids),
            reward=torch.tensor(random.exponential(3, flags.shape)).float(),
            flags=torch.tensor(flags),
            ads=torch.full(flags.shape, -1),
            log_p_ref=torch.tensor(-random.exponential(5, flags.shape)),
        ),
    )
    return tables, mtp, batch


def model_of(tables, mtp):
    """Teacher-forced logits of any SIDs: level t looks up the codes before it."""

    def model(slots, profile, tokens):
        request = torch.arange(len(tokens))[:, None].expand(tokens.shape[:2])
        logits = [tables[t][(request, *(tokens[..., s] for s in range(t)))] for t in range(T + 1)]
        return logits, mtp

    return model


def log_softmax(logits, code):
    return logits[code] - math.log(sum(math.exp(x) for x in logits))


def log_p_of(tables, b, sid):
    return sum(log_softmax(tables[t][(b, *sid[:t])].tolist(), sid[t]) for t in range(T))


def uvr_by_loops(tables, mtp, batch):
    """Sums of w_VSL w L_VSL over targets, and of the mean over candidates of (1 - A) L_RSPO over lists."""
    of_targets, of_lists = 0.0, 0.0
    lists = batch.lists
    for b in range(len(batch.tokens)):
        n = int((lists.flags[b] > 0).sum())
        sids = lists.sids[b, :n].tolist()
        reward = lists.reward[b, :n].tolist()
        v = [4 * x / max(reward) for x in reward]
        log_p = [log_p_of(tables, b, sid) for sid in sids]
        place = {}
        for name, key in (("model", log_p), ("reward", v)):
            order = sorted(range(n), key=lambda i, key=key: -key[i])
            place[name] = {i: rank for rank, i in enumerate(order)}
        a = [abs(place["model"][i] - place["reward"][i]) / max(n - 1, 1) for i in range(n)]
        reference = lists.log_p_ref[b, :n].tolist()
        for i in range(n):
            of_lists += (1 - a[i]) * anchor_by_loops(i, log_p, reference, v) / n
        for i, target in enumerate(batch.tokens[b].tolist()):
            sid = -log_p_of(tables, b, target)
            value = -log_softmax(tables[T][(b, *target)].tolist(), int(batch.value[b, i]))
            skip = -sum(log_softmax(mtp[t][b].tolist(), target[t]) for t in range(T))
            w = 1.0
            if target in sids:
                at = sids.index(target)
                w = (1 + v[at]) ** a[at]
            of_targets += float(batch.weight[b, i]) * w * (sid + 0.2 * value + 0.7 * skip)
    return of_targets, of_lists


def anchor_by_loops(i, log_p, reference, v):
    """L_RSPO of one anchor."""
    m, worse = m_by_loops(v), [j for j in range(len(v)) if v[j] < v[i]]
    if not worse:
        return 0.0
    ratios = [log_p[j] - reference[j] for j in [*worse, i]]
    c = 1 if sum(ratios) / len(ratios) < DELTA else 0
    y = [p - c * r for p, r in zip(log_p, reference, strict=True)]
    return math.log2(1 + sum(m[i, j] * math.exp(BETA * (y[j] - y[i])) for j in worse))


def test_uvr_equals_its_formula_on_a_thousand_lists():
    for seed in range(500):
        tables, mtp, batch = draw(seed)
        targets, lists = UVR(model_of(tables, mtp), batch)
        expected = uvr_by_loops(tables, mtp, batch)
        assert targets.total.sum.item() == pytest.approx(expected[0], abs=1e-9)
        assert lists.total.sum.item() == pytest.approx(expected[1], abs=1e-9)
        assert targets.total.weight.item() == pytest.approx(float(batch.weight.sum()), rel=1e-12)


def test_uvr_is_its_two_terms_balanced():
    tables, mtp, batch = draw(0)
    of_targets, of_lists = uvr_by_loops(tables, mtp, batch)
    loss = Balanced(UVR, 30.0)(model_of(tables, mtp), batch)
    assert loss.total.sum.item() == pytest.approx(of_targets + 30 * of_lists, rel=1e-12)
    assert tuple(loss.parts) == Balanced(UVR, 30.0).names == UVR.names


@pytest.mark.parametrize("terms", [UVR, Joint(VSL, Dpo(beta=BETA), RewardScale(by="range", top=1.0))])
def test_gradients_equal_differences(terms):
    tables, mtp, batch = draw(1)
    inputs = [x.requires_grad_() for x in (*tables, *mtp)]

    def total(*flat):
        return Balanced(terms, 3.0)(model_of(flat[: T + 1], flat[T + 1 :]), batch).total.sum

    assert torch.autograd.gradcheck(total, inputs)


def test_vsl_and_lists_are_rated_apart():
    """One pass of both gives what a pass of each gives."""
    tables, mtp, batch = draw(2, requests=4, targets=3, candidates=6)
    model, joint = model_of(tables, mtp), Joint(VSL, Rspo(beta=BETA, delta=DELTA), RewardScale())
    targets, lists = joint(model, batch)
    alone = VSL(model, batch)
    assert targets.total.sum.item() == alone.total.sum.item()
    assert {n: p.sum.item() for n, p in targets.parts.items()} == {
        n: p.sum.item() for n, p in alone.parts.items()
    }
    expected = 0.0
    for b in range(4):
        n = int((batch.lists.flags[b] > 0).sum())
        sids, reward = batch.lists.sids[b, :n].tolist(), batch.lists.reward[b, :n].tolist()
        log_p = [log_p_of(tables, b, sid) for sid in sids]
        v = [4 * x / max(reward) for x in reward]
        expected += rspo_by_loops(sids, log_p, batch.lists.log_p_ref[b, :n].tolist(), v)[0]
    assert lists.total.sum.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("terms", [UVR, Joint(VSL, Dpo(beta=BETA), RewardScale())])
@pytest.mark.parametrize("empty", ["no lists", "no candidates", "padding"])
def test_a_batch_without_candidates_is_that_of_vsl(terms, empty):
    tables, mtp, batch = draw(3)
    lists = {
        "no lists": None,
        "no candidates": batch.lists.map(lambda x: x[:, :0]),
        "padding": Lists(**{**vars(batch.lists), "flags": torch.zeros_like(batch.lists.flags)}),
    }[empty]
    batch = Batch(**{**vars(batch), "lists": lists})
    model = model_of(tables, mtp)
    loss, alone = Balanced(terms, 50.0)(model, batch), VSL(model, batch)
    assert loss.total.sum.item() == pytest.approx(alone.total.sum.item(), rel=1e-12)
    assert loss.total.weight.item() == alone.total.weight.item()
    assert tuple(loss.parts) == terms.names
    assert loss.parts["list"].weight.item() == 0
