"""The copy path: the mixture against its formula, and the search against every SID there is."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from export.parity import parity_error
from serving.engines.ort import OrtExecutor
from serving.engines.padding import PaddedExecutor, ShapeBuckets
from serving.index.keys import pack
from serving.index.snapshot import IndexSnapshot
from serving.search.beam_search import beam_search
from serving.search.cold_start import ColdStart
from serving.search.widths import WidthPlan
from tests.tiny import (
    LEVEL_SIZES,
    VALUE_TABLE,
    copying_model,
    random_requests,
    tiny_catalogue,
    tiny_model,
    tiny_snapshot,
)
from training.data.batch import Batch
from training.model.context import EMPTY_SLOT_BIAS
from training.model.copy_path import Copies
from training.objectives.distill import Distill
from training.objectives.sid import level_log_p, sid_log_p
from training.objectives.vsl import Vsl
from training.rollout.executor import TorchExecutor
from training.rollout.score import log_p

EVERY = list(product(*map(range, LEVEL_SIZES)))
WIDE = WidthPlan((6, 30, 210), 210)
NORMALISE = [
    ("codebook", "codebook", "codebook"),
    ("codebook", "codebook", "live"),
    ("codebook", "live", "live"),
    ("live", "live", "live"),
    ("live", "codebook", "live"),
    ("live", "live", "codebook"),
]


def requests(count=4):
    """Random requests whose histories are half from the catalogue: such SIDs can be answers."""
    slots, profile = random_requests(count)
    _, sids, _ = tiny_catalogue()
    random = np.random.default_rng(1)
    from_catalogue = (random.random(slots.shape[:2]) < 0.5) & (slots[..., 3] > 0)
    slots[from_catalogue, :3] = random.choice(sids, int(from_catalogue.sum())) + 1
    return slots, profile


def search(snapshot, *, executor=None, plan=WIDE, num=1, count=4, **options):
    slots, profile = requests(count)
    return beam_search(
        executor or TorchExecutor(copying_model()),
        snapshot.trie,
        slots,
        profile,
        plan=plan,
        num_results=np.full(count, num),
        value_table=VALUE_TABLE,
        **options,
    )


def mixture_by_loops(row, *, count=4):
    """p of every prefix of one request in float64: a dict, from the unsplit model and plain loops."""
    slots, profile = requests(count)
    model = copying_model()
    with torch.no_grad():
        said = model(*map(torch.tensor, (slots[[row]], profile[[row]])), torch.tensor([EVERY]))
    levels = [x.double().softmax(-1)[0] for x in said.logits]
    parts = said.copies.logprob[0].double().exp().tolist()
    found: dict[tuple, float] = {(): 1.0}
    for i, sid in enumerate(EVERY):
        p = parts[0]
        for t in range(3):
            p *= float(levels[t][i, sid[t]])
            prefix = sid[: t + 1]
            of_history = sum(
                parts[1 + s]
                for s, slot in enumerate(slots[row].tolist())
                if slot[3] and tuple(c - 1 for c in slot[: t + 1]) == prefix
            )
            found[prefix] = p + of_history
    return found


def live_sids(snapshot):
    return sorted({tuple(s) for s in snapshot.sids_of(snapshot.leaf_ad_ids)[0].tolist()})


def plain_search(p, live, widths, *, normalise):
    """Beams of one request, best first, by dicts over the prefixes' probabilities."""
    beams = [((), 0.0)]
    for t, width in enumerate(widths):
        grown = []
        for prefix, score in beams:
            children = sorted({s[: t + 1] for s in live if s[:t] == prefix})
            total = sum(p[c] for c in children) if normalise[t] == "live" else p[prefix]
            grown += [(c, score + math.log(p[c] / total)) for c in children]
        beams = sorted(grown, key=lambda beam: -beam[1])[:width]
    return beams


def assert_beams(beams, row, expected, *, atol=2e-5):
    found = beams.leaves[row] >= 0
    assert [tuple(s) for s in beams.sids[row][found].tolist()] == [sid for sid, _ in expected]
    np.testing.assert_allclose(beams.scores[row][found], [x for _, x in expected], atol=atol)


def test_all_sids_together_have_probability_1():
    slots, profile = requests()
    scores = log_p(copying_model(), slots, profile, sids=np.array([EVERY] * 4))
    np.testing.assert_allclose(np.exp(scores.astype(np.float64)).sum(1), 1.0, rtol=1e-5)
    for row in range(4):
        p = mixture_by_loops(row)
        np.testing.assert_allclose(scores[row], [math.log(p[sid]) for sid in EVERY], atol=2e-5)


def test_the_history_gets_more_and_a_user_without_one_gets_the_model():
    slots, profile = requests()
    model = copying_model()
    with torch.no_grad():
        said = model(*map(torch.tensor, (slots, profile)), torch.tensor([EVERY] * 4))
    alone = sid_log_p(said.logits, torch.tensor([EVERY] * 4)).numpy()
    mixed = log_p(model, slots, profile, sids=np.array([EVERY] * 4))
    assert not slots[0].any()
    assert float(said.copies.logprob[0, 0]) == 0.0
    np.testing.assert_array_equal(mixed[0], alone[0])
    for row in range(1, 4):
        known = {tuple(s) for s in (slots[row][slots[row][:, 3] > 0, :3] - 1).tolist()}
        more = mixed[row] > alone[row]
        assert set() < {EVERY[i] for i in np.flatnonzero(more)} <= known


def test_levels_are_ratios_of_prefixes():
    slots, profile = requests()
    with torch.no_grad():
        said = copying_model()(*map(torch.tensor, (slots, profile)), torch.tensor([EVERY] * 4))
        levels = level_log_p(said.logits, torch.tensor([EVERY] * 4), copies=said.copies)
    for row in range(4):
        p = mixture_by_loops(row)
        for t in range(3):
            expected = [math.log(p[s[: t + 1]] / p[s[:t]]) for s in EVERY]
            np.testing.assert_allclose(levels[t][row].numpy(), expected, atol=2e-5)


def random_copies(sids, *, dtype=torch.float64, seed=0):
    """A mixture over slots int [B, S, T]; -1 is an empty one."""
    raw = torch.randn(len(sids), 1 + sids.shape[1], generator=torch.Generator().manual_seed(seed))
    raw[:, 1:][sids[..., 0] < 0] = EMPTY_SLOT_BIAS
    return raw.to(dtype).requires_grad_(), sids


def test_gradients_equal_differences_and_are_numbers():
    """With a target in the history, one that shares a prefix with it, one apart, and an empty history."""
    sids = torch.tensor([[[1, 2, 3], [1, 2, 4], [0, 1, 1]], [[-1, -1, -1]] * 3])
    tokens = torch.tensor([[[1, 2, 3], [1, 2, 0], [5, 4, 6]]] * 2)
    random = torch.Generator().manual_seed(1)
    logits = [torch.randn(2, 3, v, generator=random, dtype=torch.float64) for v in LEVEL_SIZES]
    raw, _ = random_copies(sids)

    def loss(raw, *logits):
        copies = Copies(raw.log_softmax(-1), sids)
        return sid_log_p(list(logits), tokens, copies=copies)

    inputs = (raw, *(x.requires_grad_() for x in logits))
    assert torch.autograd.gradcheck(loss, inputs)
    # A target that the model finds next to impossible, alone and in the history.
    for dtype in (torch.float32, torch.bfloat16):
        far = [(x.detach() * 200).to(dtype).requires_grad_() for x in logits]
        single = raw.detach().float().requires_grad_()
        total = loss(single, *far).sum()
        total.backward()
        assert total.dtype == torch.float32
        assert total.isfinite()
        assert all(x.grad.isfinite().all() for x in (single, *far))


def test_vsl_takes_the_mixture():
    slots, profile = requests()
    tokens = torch.tensor([EVERY[7:12]] * 4)
    batch = Batch(
        slots=torch.tensor(slots),
        profile=torch.tensor(profile),
        tokens=tokens,
        value=torch.zeros(4, 5, dtype=torch.long),
        weight=torch.rand(4, 5, generator=torch.Generator().manual_seed(0)),
    )
    loss = Vsl(lambda_value=0.0, lambda_mtp=0.0)(copying_model(), batch)
    expected = 0.0
    for row in range(4):
        p = mixture_by_loops(row)
        for i, sid in enumerate(tokens[row].tolist()):
            expected -= float(batch.weight[row, i]) * math.log(p[tuple(sid)])
    assert loss.total.sum.item() == pytest.approx(expected, rel=1e-5)


def test_every_weight_of_the_copy_path_learns():
    slots, profile = requests()
    model = copying_model().train()
    said = model(*map(torch.tensor, (slots, profile)), torch.tensor([EVERY[:50]] * 4))
    sid_log_p(said.logits, torch.tensor([EVERY[:50]] * 4), copies=said.copies).sum().backward()
    for name, weight in model.copy_path.named_parameters():
        assert float(weight.grad.abs().sum()) > 0, name


def test_distilling_also_teaches_who_speaks():
    slots, profile = requests()
    batch = Batch(
        slots=torch.tensor(slots),
        profile=torch.tensor(profile),
        tokens=torch.tensor([EVERY[:2]] * 4),
        value=torch.zeros(4, 2, dtype=torch.long),
        weight=torch.tensor([[1.0, 2.0]] * 4),
    )
    teacher, student = copying_model(), copying_model()
    same = Distill(teacher)(student, batch)
    assert same.total.sum.item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        student.copy_path.sentinel_bias += 1
        p, q = (
            m(batch.slots, batch.profile, batch.tokens).copies.logprob.double().numpy()
            for m in (teacher, student)
        )
    expected = 3 * sum(
        math.exp(a) * (a - b) for x, y in zip(p, q, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert expected > 0.1
    assert Distill(teacher)(student, batch).total.sum.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("widths", [(6, 30, 210), (3, 5, 8)])
def test_search_equals_a_plain_recursion(normalise, widths):
    snapshot = tiny_snapshot()
    beams = search(snapshot, plan=WidthPlan(widths, 8), normalise=normalise)
    for row in range(4):
        expected = plain_search(mixture_by_loops(row), live_sids(snapshot), widths, normalise=normalise)
        assert_beams(beams, row, expected)


def test_full_width_gives_every_live_sid_its_probability():
    snapshot = tiny_snapshot()
    beams = search(snapshot)
    for row in range(4):
        p = mixture_by_loops(row)
        expected = sorted(((sid, math.log(p[sid])) for sid in live_sids(snapshot)), key=lambda x: -x[1])
        assert_beams(beams, row, expected)


def test_rows_of_a_batch_do_not_influence_each_other():
    snapshot, (slots, profile) = tiny_snapshot(), requests()
    options = {"plan": WidthPlan((3, 6, 12), 4), "value_table": VALUE_TABLE}
    executor = TorchExecutor(copying_model())
    together = beam_search(executor, snapshot.trie, slots, profile, num_results=np.full(4, 3), **options)
    for row in range(4):
        one = slice(row, row + 1)
        alone = beam_search(
            executor, snapshot.trie, slots[one], profile[one], num_results=np.array([3]), **options
        )
        count = int((together.leaves[row] >= 0).sum())
        np.testing.assert_array_equal(alone.sids[0], together.sids[row][:count])
        np.testing.assert_allclose(alone.scores[0], together.scores[row][:count], atol=1e-5)


def test_a_user_without_a_history_is_answered_as_by_the_model_alone():
    """Bit for bit, whoever shares the batch."""
    model = copying_model()
    plain = tiny_model()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("copy_path.")})
    for normalise in NORMALISE:
        options = {"plan": WidthPlan((3, 6, 12), 4), "normalise": normalise}
        mixed = search(tiny_snapshot(), executor=TorchExecutor(model), **options)
        alone = search(tiny_snapshot(), executor=TorchExecutor(plain), **options)
        for name in ("sids", "scores", "expected_value"):
            np.testing.assert_array_equal(getattr(mixed, name)[0], getattr(alone, name)[0])
        assert not np.array_equal(mixed.scores[1:], alone.scores[1:])


class Sure(TorchExecutor):
    """A model that finds every code but 0 next to impossible, and a history that gets half of all."""

    def prefix(self, slots, profile):
        logprob, carry = super().prefix(slots, profile)
        filled = slots[..., 3] > 0
        weights = np.where(filled, 0.5 / np.maximum(filled.sum(1, keepdims=True), 1), 1e-30)
        copies = np.log(np.concatenate([np.full((len(slots), 1), 0.5), weights], axis=1))
        return self.sure(logprob), {**carry, "copy_logprob": copies.astype(np.float32)}

    def tail(self, level, carry, *, parents, token, allowed):
        logprob, carry = super().tail(level, carry, parents=parents, token=token, allowed=allowed)
        return (np.where(allowed == 0, 0.0, -60.0) if level < 4 else logprob).astype(np.float32), carry

    @staticmethod
    def sure(logprob):
        return np.where(np.arange(logprob.shape[-1]) == 0, 0.0, -60.0).astype(np.float32) + 0 * logprob


def grid(sids):
    """An index in which each of these SIDs is one ad's."""
    return IndexSnapshot.build(
        np.arange(len(sids)), np.array(sids), active=np.ones(len(sids), bool), level_sizes=LEVEL_SIZES
    )


def test_a_sid_of_the_history_survives_by_its_mass_alone():
    slots, profile = random_requests(2)
    slots[:] = 0
    slots[:, 0] = [5, 4, 3, 1, 1, 1]  # SID (4, 3, 2)
    slots[1, 1] = [6, 5, 7, 1, 1, 1]  # (5, 4, 6), which is no ad
    live = [s for s in EVERY if s != (5, 4, 6)]
    snapshot, options = grid(live), {"plan": WidthPlan((2, 2, 2), 1), "value_table": VALUE_TABLE}
    beams = beam_search(
        Sure(copying_model()), snapshot.trie, slots, profile, num_results=np.full(2, 1), **options
    )
    assert beams.sids[0].tolist() == [[0, 0, 0], [4, 3, 2]]
    np.testing.assert_allclose(np.exp(beams.scores[0]), [0.5, 0.5], rtol=1e-5)
    by_sid = {tuple(s): math.exp(x) for s, x in zip(beams.sids[1].tolist(), beams.scores[1], strict=True)}
    assert by_sid[(0, 0, 0)] == pytest.approx(0.5, rel=1e-5)
    assert (5, 4, 6) not in by_sid


def test_bans_hold_and_the_answer_is_as_long():
    snapshot = tiny_snapshot()
    free = search(snapshot, num=10)
    banned = [np.sort(free.leaves[row][:k]) for row, k in enumerate((0, 3, 10, snapshot.trie.leaves))]
    beams = search(snapshot, plan=WidthPlan((1, 2, 10), 1), num=10, banned=banned)
    for row, ban in enumerate(banned):
        leaves = beams.leaves[row][beams.leaves[row] >= 0]
        assert not np.isin(leaves, ban).any()
        assert len(leaves) >= min(10, snapshot.trie.leaves - len(ban))


@pytest.mark.parametrize("share", [0.5, 5.0])
def test_unseen_sids_get_a_part_of_what_the_model_gives_the_prefix(share):
    snapshot, (slots, profile) = tiny_snapshot(), requests()
    live = live_sids(snapshot)
    seen = live[::2]
    keys = np.sort(pack(np.array(seen, np.int32), LEVEL_SIZES))
    beams = search(snapshot, num=300, cold_start=ColdStart(keys, LEVEL_SIZES, share))
    with torch.no_grad():
        said = copying_model()(*map(torch.tensor, (slots, profile)), torch.tensor([live] * 4))
        levels = level_log_p(said.logits, torch.tensor([live] * 4))
    of_model = (said.copies.logprob[:, :1] + levels[0] + levels[1]).numpy()  # [B, live]
    for row in range(4):
        p, lifted = mixture_by_loops(row), 0
        found = {tuple(s): x for s, x in zip(beams.sids[row].tolist(), beams.scores[row], strict=True)}
        for i, sid in enumerate(live):
            siblings = sum(s[:2] == sid[:2] for s in live)
            part = of_model[row, i] + math.log(min(share / siblings, 1))
            expected = math.log(p[sid]) if sid in seen else max(math.log(p[sid]), part)
            lifted += expected > math.log(p[sid]) + 1e-4
            assert found[sid] == pytest.approx(expected, abs=2e-5)
        assert lifted > 3


def test_graphs_equal_the_model(copying_graphs):
    assert parity_error(copying_model(), copying_graphs) < 1e-4
    for normalise in NORMALISE[:3]:
        plan = WidthPlan((4, 8, 16), 6)
        onnx, model = (
            search(tiny_snapshot(), executor=executor, plan=plan, normalise=normalise)
            for executor in (OrtExecutor(copying_graphs, levels=3), TorchExecutor(copying_model()))
        )
        np.testing.assert_array_equal(onnx.sids, model.sids)
        np.testing.assert_allclose(onnx.scores, model.scores, atol=2e-5)


def test_parity_looks_at_the_copy_path(copying_graphs):
    changed = copying_model()
    with torch.no_grad():
        changed.copy_path.sentinel_bias += 0.01
    assert parity_error(changed, copying_graphs) > 1e-3


def test_padding_changes_nothing(copying_graphs):
    plan = WidthPlan((4, 8, 16), 6)
    buckets = ShapeBuckets.of((plan,), level_sizes=LEVEL_SIZES, value_buckets=4, max_batch=8)
    inner = OrtExecutor(copying_graphs, levels=3)
    found, expected = (
        search(tiny_snapshot(), executor=executor, plan=plan, count=3)
        for executor in (PaddedExecutor(inner, buckets), inner)
    )
    np.testing.assert_array_equal(found.sids, expected.sids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_a_specification_of_an_older_release_has_no_copy_path():
    config = tiny_model().config
    assert "copy_path" in config.model_dump()
    older = {k: v for k, v in config.model_dump().items() if k != "copy_path"}
    assert type(config)(**older).copy_path is False
