"""Search with a copy path: against every SID there is, a plain recursion, and its contracts."""

import math

import numpy as np
import pytest

from serving.index.keys import pack
from serving.index.snapshot import IndexSnapshot
from serving.search.beam_search import beam_search
from serving.search.cold_start import ColdStart
from serving.search.copy_path import SHARE
from serving.search.widths import WidthPlan
from tests.copying import EVERY, NORMALISE, live_sids, mixture_by_loops, parts_by_loops, requests, search
from tests.searching import check_bans
from tests.tiny import (
    COPYING_SPEC,
    LEVEL_SIZES,
    SPEC,
    VALUE_TABLE,
    copying_model,
    random_requests,
    tiny_model,
    tiny_snapshot,
)
from training.rollout.executor import TorchExecutor


def plain_search(parts, live, widths, *, normalise):
    """Beams of one request, best first, by dicts over the prefixes' probabilities."""
    p, of_model = parts
    beams = [((), 0.0)]
    for t, width in enumerate(widths):
        share, grown = SHARE ** (len(widths) - 1 - t), []
        for prefix, score in beams:
            children = sorted({s[: t + 1] for s in live if s[:t] == prefix})
            total = sum(p[c] for c in children) if normalise[t] == "live" else p[prefix] if prefix else 1
            grown += [(c, score + math.log(p[c] / total)) for c in children]
        more = {c: math.log((of_model[c] + (p[c] - of_model[c]) / share) / p[c]) for c, _ in grown}
        beams = sorted(grown, key=lambda beam: -beam[1] - more[beam[0]])[:width]
    return beams


def assert_beams(beams, row, expected, *, atol=2e-5):
    found = beams.leaves[row] >= 0
    assert [tuple(s) for s in beams.sids[row][found].tolist()] == [sid for sid, _ in expected]
    np.testing.assert_allclose(beams.scores[row][found], [x for _, x in expected], atol=atol)


@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("widths", [(6, 30, 210), (3, 5, 8)])
def test_search_equals_a_plain_recursion(normalise, widths):
    snapshot = tiny_snapshot()
    beams = search(snapshot, plan=WidthPlan(widths, 8), normalise=normalise)
    for row in range(4):
        live = live_sids(snapshot)
        expected = plain_search(parts_by_loops(row, live=live), live, widths, normalise=normalise)
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
    """A model that finds every code but 0 next to impossible, and habits that get half of all."""

    def prefix(self, slots, profile):
        logprob, carry = super().prefix(slots, profile)
        filled = slots[:, SPEC.slots :, 3] > 0
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
    slots, profile = random_requests(2, spec=COPYING_SPEC)
    slots[:] = 0
    slots[:, SPEC.slots] = [5, 4, 3, 1, 1, 1]  # SID (4, 3, 2)
    slots[1, SPEC.slots + 1] = [6, 5, 7, 1, 1, 1]  # (5, 4, 6), which is no ad
    live = [s for s in EVERY if s != (5, 4, 6)]
    snapshot, options = grid(live), {"plan": WidthPlan((2, 2, 2), 1), "value_table": VALUE_TABLE}
    beams = beam_search(
        Sure(copying_model()), snapshot.trie, slots, profile, num_results=np.full(2, 1), **options
    )
    assert sorted(beams.sids[0].tolist()) == [[0, 0, 0], [4, 3, 2]]
    np.testing.assert_allclose(np.exp(beams.scores[0]), [0.5, 0.5], rtol=1e-5)
    by_sid = {tuple(s): math.exp(x) for s, x in zip(beams.sids[1].tolist(), beams.scores[1], strict=True)}
    assert by_sid[(0, 0, 0)] == pytest.approx(0.5, rel=1e-5)
    assert (5, 4, 6) not in by_sid


def test_a_habit_is_not_pruned_by_prefixes_that_many_sids_share():
    """Of two prefixes the likelier is one of 35 SIDs, none of them as likely as the habit below the other."""

    class Even(Sure):
        def prefix(self, slots, profile):
            logprob, carry = super().prefix(slots, profile)
            copies = np.full((len(slots), 1 + COPYING_SPEC.habits), -1e4)
            copies[:, 0], copies[:, 1] = math.log(0.9), math.log(0.1)
            return logprob, {**carry, "copy_logprob": copies.astype(np.float32)}

        def tail(self, level, carry, *, parents, token, allowed):
            logprob, carry = super().tail(level, carry, parents=parents, token=token, allowed=allowed)
            codes = LEVEL_SIZES[level - 1] if level < 4 else 1
            return logprob if level == 4 else np.full_like(logprob, -math.log(codes)), carry

    slots, profile = random_requests(1, spec=COPYING_SPEC)
    slots[:] = 0
    slots[:, SPEC.slots] = [5, 4, 3, 1, 1, 1]
    beams = beam_search(
        Even(copying_model()),
        grid(EVERY).trie,
        slots,
        profile,
        plan=WidthPlan((1, 1, 1), 1),
        num_results=np.array([1]),
        value_table=VALUE_TABLE,
    )
    assert beams.sids[0, 0].tolist() == [4, 3, 2]
    np.testing.assert_allclose(np.exp(beams.scores[0, 0]), 0.1, rtol=1e-4)


def test_bans_hold_and_the_answer_is_as_long():
    check_bans(search, tiny_snapshot())


@pytest.mark.parametrize("share", [0.5, 5.0])
def test_unseen_sids_get_a_part_of_their_prefix_and_of_what_habits_give_it(share):
    snapshot = tiny_snapshot()
    live = live_sids(snapshot)
    seen = live[::2]
    keys = np.sort(pack(np.array(seen, np.int32), LEVEL_SIZES))
    beams = search(snapshot, num=300, cold_start=ColdStart(keys, LEVEL_SIZES, share))
    for row in range(4):
        p, of_model = parts_by_loops(row, live=live)
        found = {tuple(s): x for s, x in zip(beams.sids[row].tolist(), beams.scores[row], strict=True)}
        lifted, beyond = 0, 0
        for sid in live:
            part = math.log(min(share / sum(s[:2] == sid[:2] for s in live), 1))
            of_prefix = math.log(p[sid[:2]]) + part
            expected = math.log(p[sid]) if sid in seen else max(math.log(p[sid]), of_prefix)
            lifted += expected > math.log(p[sid]) + 1e-4
            beyond += expected > math.log(p[sid]) + 1e-4 and p[sid[:2]] > 1.5 * of_model[sid[:2]]
            assert found[sid] == pytest.approx(expected, abs=2e-5)
        assert lifted > 3
        assert beyond or row == 0  # of prefixes that habits stand behind; request 0 has no history
