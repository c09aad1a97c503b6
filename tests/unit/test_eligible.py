"""What a request may be shown, against dictionaries and scores of all ads, whatever changed since."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.backend.resolve import resolve
from serving.index.audience_table import AudienceTable
from serving.index.base import read_base, write_base
from serving.index.eligible import NO_TERMS, Terms
from serving.index.overlay import Changes, with_changes
from serving.index.snapshot import IndexSnapshot
from serving.search.beam_search import beam_search
from serving.search.per_account import within_cap
from serving.search.widths import WidthPlan
from tests.audiences import TEXTS, is_in, some_audiences, some_terms
from tests.path_executor import PathExecutor
from tests.unit.test_index_overlay import ADS, SIZES, VALUES, nodes_by_prefix, rows_of

TABLE, ACCOUNTS = some_audiences(), 4


@st.composite
def histories(draw):
    """Level sizes, a base {ad: (sid, active, audience, account)}, steps of such changes (None: forgotten)."""
    sizes = draw(st.sampled_from(SIZES))
    sid = st.tuples(*(st.integers(0, v - 1) for v in sizes))
    values = (sid, st.sampled_from([True, True, False]), st.integers(0, len(TEXTS)), st.integers(0, ACCOUNTS))
    ad = st.tuples(*values)
    base = draw(st.dictionaries(st.integers(0, ADS - 1), ad, max_size=25))
    change = st.tuples(st.integers(0, ADS - 1), st.one_of(ad, ad, ad, st.none()))
    return sizes, base, draw(st.lists(st.lists(change, max_size=10), max_size=3))


def built(state, sizes):
    ads = sorted(state)
    columns = [np.array([state[a][i] for a in ads]) for i in range(1, 4)]
    return IndexSnapshot.build(
        np.array(ads, np.int64),
        np.array([state[a][0] for a in ads], np.int32).reshape(len(ads), len(sizes)),
        active=columns[0].astype(bool),
        level_sizes=sizes,
        audiences=columns[1].astype(np.int32),
        accounts=columns[2].astype(np.int64),
        table=TABLE,
    )


def played(history):
    """The snapshot of a base and its changes, and the ads as they are in the end."""
    sizes, state, steps = history
    base, changes, state = built(state, sizes), Changes.none(), dict(state)
    for step in steps:
        rows = rows_of(
            [(a, v[0] if v else (0,) * len(sizes), bool(v and v[1]), v is not None) for a, v in step],
            len(sizes),
        )
        for row, (ad, v) in zip(rows, step, strict=True):
            row["audience"], row["account"] = v[2:] if v else (0, 0)
            state[ad] = v
        changes = changes.with_rows(rows, sizes)
    return with_changes(base, changes, version=7, audiences=TABLE), {a: v for a, v in state.items() if v}


def may_see(state, terms):
    """SID -> ads that a request may be shown."""
    found = {}
    for ad, (sid, active, audience, account) in sorted(state.items()):
        if active and is_in(audience, terms) and account not in terms.excluded_accounts:
            found.setdefault(sid, []).append(ad)
    return found


@settings(max_examples=200, deadline=None, derandomize=True)
@given(histories(), st.integers(0, 2**32 - 1))
def test_nodes_and_ads_are_those_of_the_eligible(history, seed):
    sizes, snapshot, (_, state) = history[0], *(lambda p: (p[0], p))(played(history))
    for terms in [NO_TERMS, *some_terms(np.random.default_rng(seed), 4)]:
        live = may_see(state, terms)
        known = np.array(sorted(state), np.int64)
        expected = [
            is_in(state[a][2], terms) and state[a][3] not in terms.excluded_accounts for a in known.tolist()
        ]
        assert snapshot.shown(known, terms).tolist() == expected
        audiences, accounts = snapshot.traits_of(known)
        assert audiences.tolist() == [state[a][2] for a in known.tolist()]
        assert accounts.tolist() == [state[a][3] for a in known.tolist()]
        if not snapshot.trie.leaves:
            continue
        for again in range(2):  # computed, then remembered
            eligible = snapshot.eligible(terms)
            for t, nodes in enumerate(nodes_by_prefix(snapshot.trie)):
                below = {}
                for sid in live:
                    below[sid[: t + 1]] = below.get(sid[: t + 1], 0) + 1
                ids = np.array([*nodes.values(), -1])
                assert eligible.count(t, ids).tolist() == [*(below.get(p, 0) for p in nodes), 0], again
                assert eligible.mask(t, ids[:-1]).tolist() == [p in below for p in nodes]
        exclude = np.random.default_rng(seed).integers(0, ADS, 6)
        every = np.array(list(product(*map(range, sizes))), np.int32)
        leaves = snapshot.leaves_of(every).tolist()
        active = {s for a, (s, *_) in state.items() if a in exclude.tolist()} & {
            s for s, on, *_ in state.values() if on
        }
        banned = [
            leaf
            for sid, leaf in zip(map(tuple, every.tolist()), leaves, strict=True)
            if sid in active and not set(live.get(sid, ())) - set(exclude.tolist())
        ]
        assert snapshot.banned_leaves(exclude, terms).tolist() == sorted(banned)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(histories(), st.integers(0, 2**32 - 1), st.integers(1, 9), st.booleans())
def test_answers_are_those_of_scoring_every_ad(history, seed, num, wide):
    """And narrow searches find as many ads as are asked for, or all that there are."""
    sizes, snapshot, state = history[0], *played(history)
    random = np.random.default_rng(seed)
    terms, cap = some_terms(random, 2), int(random.choice([0, 1, 2]))
    executor = PathExecutor(sizes)
    widths = (200,) * len(sizes) if wide else tuple(int(w) for w in random.integers(1, 4, len(sizes)))
    options = dict(value_table=VALUES, eligible=[snapshot.eligible(t) for t in terms])
    beams = beam_search(
        executor,
        snapshot.trie,
        np.array([3, 8], np.int32)[:, None, None],
        np.zeros((2, 0), np.int32),
        plan=WidthPlan(widths, 1),
        num_results=np.full(2, num),
        **options,
    )
    for row, request in enumerate((3, 8)):
        live = may_see(state, terms[row])
        scored = {
            sid: sum(float(executor.logprob(request, sid[:t])[sid[t]]) for t in range(len(sizes)))
            for sid in live
        }
        expected = [ad for sid in sorted(live, key=lambda s: -scored[s]) for ad in live[sid]]
        got = resolve(
            snapshot,
            beams.sids[row],
            scores=beams.scores[row],
            expected_value=beams.expected_value[row],
            num_ads=num,
            exclude=np.zeros(0, np.int64),
            terms=terms[row],
            max_per_account=cap if wide else 0,
        ).ad_ids
        found = got[got >= 0].tolist()
        if not wide:
            assert len(found) == min(num, len(expected))
            assert set(found) <= set(expected)
            continue
        taken, kept = {}, []
        for ad in expected:
            account = state[ad][3]
            taken[account] = taken.get(account, 0) + 1
            if not cap or account == 0 or taken[account] <= cap:
                kept.append(ad)
        assert found == kept[:num]


def test_ads_of_one_sid_are_shown_to_those_who_may_see_them():
    sids = np.array([[0, 0], [0, 0], [1, 1]], np.int32)
    snapshot = IndexSnapshot.build(
        np.arange(3),
        sids,
        active=np.ones(3, bool),
        level_sizes=(2, 2),
        audiences=np.array([1, 0, 1]),
        table=TABLE,
    )
    old, young = Terms.of({"age": "old"}), Terms.of({"age": "young"})
    assert snapshot.eligible(old).leaves.tolist() == [True, True, False]
    assert snapshot.eligible(young).leaves.tolist() == [True, False, False]
    assert snapshot.shown(np.arange(3), young).tolist() == [False, True, False]


def test_without_audiences_there_is_nothing_to_do():
    snapshot = IndexSnapshot.build(
        np.arange(2), np.array([[0], [1]], np.int32), active=np.ones(2, bool), level_sizes=(2,)
    )
    assert snapshot.eligible(Terms.of({"age": "old"}, now=5)) is None
    assert snapshot.ad_audiences is None
    assert snapshot.ad_accounts is None


def test_a_base_keeps_audiences_and_accounts(tmp_path):
    state = {a: ((a % 3, a % 2, a % 4), True, a % 5, a % 3) for a in range(20)}
    snapshot = built(state, SIZES[0])
    write_base(snapshot, tmp_path / "base")
    read = read_base(tmp_path / "base")
    for mine, theirs in zip(read.traits_of(np.arange(20)), snapshot.traits_of(np.arange(20)), strict=True):
        assert mine.tolist() == theirs.tolist()
    assert read.audiences is None  # they lie in the store
    plain = IndexSnapshot.build(
        np.arange(2), np.array([[0], [1]], np.int32), active=np.ones(2, bool), level_sizes=(2,)
    )
    write_base(plain, tmp_path / "plain")
    assert not {f.stem for f in (tmp_path / "plain").iterdir()} & {
        "ad_audiences",
        "ad_accounts",
        "account_ids",
    }


def test_an_audience_that_the_table_does_not_know_is_nobodys():
    snapshot = IndexSnapshot.build(
        np.arange(2),
        np.array([[0], [1]], np.int32),
        active=np.ones(2, bool),
        level_sizes=(2,),
        audiences=np.array([0, 9]),
        table=AudienceTable().now({1: '{"end":5}'}),
    )
    assert snapshot.eligible(NO_TERMS).leaves.tolist() == [True, False, False]
    assert snapshot.shown(np.arange(2), NO_TERMS).tolist() == [True, False]


@pytest.mark.parametrize(("most", "kept"), [(1, [1, 1, 1, 0, 0, 1, 0]), (2, [1, 1, 1, 1, 0, 1, 1])])
def test_the_best_of_each_account_stay(most, kept):
    accounts = np.array([7, 0, 9, 7, 7, 0, 9])
    assert within_cap(accounts, most).tolist() == [bool(k) for k in kept]
