"""A base with changes on top answers as a snapshot built from the plain state, whatever changed."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.index.layout import change_dtype
from serving.index.overlay import Changes, OverlaySnapshot, with_changes
from serving.index.snapshot import IndexSnapshot
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.path_executor import PathExecutor

VALUES = np.array([1.0, 2.0, 5.0, 9.0], np.float32)
ADS = 30
EVERY_AD = np.arange(-2, ADS + 3)
SIZES = [(3, 2, 4), (2, 3), (6,), (2, 2, 2, 3)]


def state_snapshot(state, level_sizes):
    """`IndexSnapshot.build` of {ad: (sid, active)}."""
    ads = sorted(state)
    return IndexSnapshot.build(
        np.array(ads, np.int64),
        np.array([state[a][0] for a in ads], np.int32).reshape(len(ads), len(level_sizes)),
        active=np.array([state[a][1] for a in ads], bool),
        level_sizes=level_sizes,
    )


def rows_of(changes, levels):
    """[(ad, sid, active, known)] as they lie in the log."""
    rows = np.zeros(len(changes), change_dtype(levels))
    for row, (ad, sid, active, known) in zip(rows, changes, strict=True):
        row["ad_id"], row["codes"], row["active"], row["known"] = ad, sid, active, known
    return rows


def apply(state, changes):
    for ad, sid, active, known in changes:
        if known:
            state[ad] = (sid, bool(active))
        else:
            state.pop(ad, None)


def nodes_by_prefix(trie):
    """A level: prefix -> node, by walking down from the roots; children of one node at a time and of all."""
    codes, nodes = trie.roots
    levels = [{(int(c),): int(n) for c, n in zip(codes, nodes, strict=True)}]
    for t in range(1, trie.levels):
        found = {}
        prefixes = list(levels[-1])
        beams = np.array([[*(levels[-1][p] for p in prefixes), -1]])  # the last is padding
        children = trie.children(t, beams)
        at = np.arange(children.allowed[0].size)[None]
        ids = children.nodes(at).reshape(children.allowed[0].shape)
        assert (children.allowed[0, -1] == -1).all()
        for i, prefix in enumerate(prefixes):
            alone = trie.children(t, beams[:, i : i + 1]).allowed[0, 0]
            got = [(int(c), int(n)) for c, n in zip(children.allowed[0, i], ids[i], strict=True) if c >= 0]
            assert sorted(alone[alone >= 0].tolist()) == sorted(c for c, _ in got)
            assert len({c for c, _ in got}) == len(got)
            found |= {(*prefix, c): n for c, n in got}
        levels.append(found)
    return levels


def check_same(snapshot, state, level_sizes):
    """Every question a request asks, against dictionaries."""
    live = {}
    for ad, (sid, active) in sorted(state.items()):
        if active:
            live.setdefault(sid, []).append(ad)
    trie = snapshot.trie
    assert (trie.levels, trie.leaves) == (len(level_sizes), len(live))
    codes, known = snapshot.sids_of(EVERY_AD)
    assert known.tolist() == [a in state for a in EVERY_AD.tolist()]
    assert all(tuple(codes[i].tolist()) == state[a][0] for i, a in enumerate(EVERY_AD.tolist()) if a in state)
    assert snapshot.ad_ids.tolist() == sorted(state)
    assert sorted(snapshot.leaf_ad_ids.tolist()) == sorted(a for ads in live.values() for a in ads)

    every = list(product(*(range(-1, v + 1) for v in level_sizes)))
    leaves = snapshot.leaves_of(np.array(every, np.int32))
    assert [s for s, leaf in zip(every, leaves.tolist(), strict=True) if leaf >= 0] == sorted(live)
    rows, ads = snapshot.ads_of_leaves(leaves)
    found = {}
    for row, ad in zip(rows.tolist(), ads.tolist(), strict=True):
        found.setdefault(every[row], []).append(ad)
    assert found == live
    assert rows.tolist() == sorted(rows.tolist())
    for got, expected in zip(snapshot.ads_of_sids(np.array(every, np.int32)), (rows, ads), strict=True):
        assert got.tolist() == expected.tolist()

    if not live:
        return
    prefixes = nodes_by_prefix(trie)
    for t, nodes in enumerate(prefixes):
        below = {}
        for sid in live:
            below[sid[: t + 1]] = below.get(sid[: t + 1], 0) + 1
        assert set(nodes) == set(below)
        assert len(set(nodes.values())) == len(nodes)  # one number a prefix
        ids = np.array([[*nodes.values(), -1]])
        assert trie.leaf_counts(t, ids)[0].tolist() == [*(below[p] for p in nodes), 0]
        assert trie.code(t, ids)[0, :-1].tolist() == [p[-1] for p in nodes]
    leaf_of = dict(zip(every, leaves.tolist(), strict=True))
    assert all(leaf_of[sid] == leaf for sid, leaf in prefixes[-1].items())


def search(snapshot, level_sizes, *, normalise, num, banned, plan):
    executor = PathExecutor(level_sizes)
    beams = beam_search(
        executor,
        snapshot.trie,
        np.array([3, 8], np.int32)[:, None, None],
        np.zeros((2, 0), np.int32),
        plan=plan,
        num_results=np.full(2, num),
        value_table=VALUES,
        banned=[snapshot.banned_leaves(banned), snapshot.banned_leaves(banned[:0])],
        normalise=normalise,
    )
    return beams


def check_same_beams(got, expected):
    np.testing.assert_array_equal(got.sids, expected.sids)
    np.testing.assert_allclose(got.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(got.expected_value, expected.expected_value, rtol=1e-4)
    np.testing.assert_array_equal(got.widths, expected.widths)


@st.composite
def histories(draw):
    """Level sizes, a base, and steps of changes; the SIDs are few, so that everything happens to them."""
    level_sizes = draw(st.sampled_from(SIZES))
    sid = st.tuples(*(st.integers(0, v - 1) for v in level_sizes))
    ad = st.integers(0, ADS - 1)
    state = draw(st.dictionaries(ad, st.tuples(sid, st.sampled_from([True, True, False])), max_size=25))
    change = st.tuples(ad, sid, st.booleans(), st.sampled_from([True, True, True, False]))
    steps = draw(st.lists(st.lists(change, max_size=12), min_size=1, max_size=5))
    wipe = draw(st.sampled_from(["nothing", "everything", "a prefix"]))
    if wipe != "nothing":
        gone, now = draw(st.integers(0, level_sizes[0] - 1)), dict(state)
        for step in steps:
            apply(now, step)
        paused = [(a, s, False, True) for a, (s, _) in now.items() if wipe == "everything" or s[0] == gone]
        steps.append(paused)
    return level_sizes, state, steps


@settings(max_examples=250, deadline=None, derandomize=True)
@given(histories(), st.data())
def test_answers_as_a_snapshot_built_anew(history, data):
    level_sizes, state, steps = history
    base = state_snapshot(state, level_sizes)
    changes, state = Changes.none(), dict(state)
    for version, step in enumerate(steps, start=1):
        changes = changes.with_rows(rows_of(step, len(level_sizes)), level_sizes)
        apply(state, step)
        snapshot = with_changes(base, changes, version=version)
        assert snapshot.version == version
        check_same(snapshot, state, level_sizes)
        fresh = state_snapshot(state, level_sizes)
        exclude = np.array(data.draw(st.lists(st.integers(-1, ADS), max_size=15)), np.int64)
        banned = {
            tuple(s)
            for s in fresh.trie.sids(
                fresh.trie.levels - 1,
                fresh.banned_leaves(exclude)[None],
                parents=ancestors(fresh, fresh.banned_leaves(exclude)),
            )[0].tolist()
        }
        leaf_of = snapshot.leaves_of(np.array(sorted(banned), np.int32).reshape(-1, len(level_sizes)))
        assert sorted(leaf_of.tolist()) == snapshot.banned_leaves(exclude).tolist()


def ancestors(snapshot, leaves):
    """Nodes of each level but the last, [1, n], above leaves of a plain trie."""
    found = []
    for ptr in reversed(snapshot.trie.child_ptr[1:]):
        leaves = np.searchsorted(ptr, leaves, side="right") - 1
        found.insert(0, leaves[None])
    return found


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    histories(),
    st.sampled_from(["codebook", "live", "mixed"]),
    st.integers(1, 12),
    st.lists(st.integers(0, ADS), max_size=15),
    st.lists(st.integers(1, 9), min_size=5, max_size=5),
)
def test_beams_are_those_of_a_snapshot_built_anew(history, kind, num, exclude, widths):
    level_sizes, state, steps = history
    base, changes, state = state_snapshot(state, level_sizes), Changes.none(), dict(state)
    for step in steps:
        changes = changes.with_rows(rows_of(step, len(level_sizes)), level_sizes)
        apply(state, step)
    levels = len(level_sizes)
    options = {
        "normalise": {"mixed": ("codebook",) + ("live",) * (levels - 1)}.get(kind, (kind,) * levels),
        "num": num,
        "banned": np.array(exclude, np.int64),
        "plan": WidthPlan(tuple(widths[:levels]), widths[-1]),
    }
    got = search(with_changes(base, changes, version=1), level_sizes, **options)
    check_same_beams(got, search(state_snapshot(state, level_sizes), level_sizes, **options))


def test_without_changes_it_is_the_base_itself():
    base = state_snapshot({1: ((0, 0, 0), True)}, SIZES[0])
    assert with_changes(base, Changes.none(), version=base.version) is base
    later = with_changes(base, Changes.none(), version=7)
    assert (later.version, later.trie) == (7, base.trie)


@pytest.mark.parametrize("many", [3000])
def test_many_changes_on_a_large_base(many):
    """Windows wider than any of the base, tables beside pointers, SIDs looked up by the thousand."""
    sizes, random = (8, 40, 60), np.random.default_rng(0)
    count = 6000
    sids = np.stack([random.integers(0, v, count) for v in (8, 40, 12)], axis=1)
    state = {a: (tuple(s), bool(random.random() < 0.8)) for a, s in enumerate(sids.tolist())}
    base = state_snapshot(state, sizes)
    ads = random.choice(np.arange(count + 900), many, replace=False).tolist()
    codes = np.stack([random.integers(0, v, many) for v in (4, 40, 60)], axis=1).tolist()
    step = [
        (a, tuple(c), random.random() < 0.5, random.random() < 0.9) for a, c in zip(ads, codes, strict=True)
    ]
    changes = Changes.none().with_rows(rows_of(step, 3), sizes)
    apply(state, step)
    snapshot, fresh = with_changes(base, changes, version=1), state_snapshot(state, sizes)
    assert isinstance(snapshot, OverlaySnapshot)
    every = np.array(list(product(*map(range, sizes))), np.int32)
    live = fresh.leaves_of(every) >= 0
    assert np.array_equal(snapshot.leaves_of(every) >= 0, live)
    assert snapshot.trie.leaves == fresh.trie.leaves == int(live.sum())
    for got, expected in zip(
        snapshot.ads_of_leaves(snapshot.leaves_of(every)),
        fresh.ads_of_leaves(fresh.leaves_of(every)),
        strict=True,
    ):
        assert np.array_equal(got, expected)
    levels = nodes_by_prefix(snapshot.trie)
    for t, nodes in enumerate(levels):
        below = np.unique(every[live][:, : t + 1], axis=0, return_counts=True)
        expected = dict(zip(map(tuple, below[0].tolist()), below[1].tolist(), strict=True))
        counts = snapshot.trie.leaf_counts(t, np.array(list(nodes.values())))
        assert dict(zip(nodes, counts.tolist(), strict=True)) == expected


@pytest.mark.parametrize("bad", [(0, 2, 0), (3, 0, 0), (0, 0, -1)])
def test_codes_of_no_level_are_refused(bad):
    rows = rows_of([(1, (0, 0, 0), True, True), (2, bad, True, True)], 3)
    with pytest.raises(ValueError, match="SID 1: expected one code a level below"):
        Changes.none().with_rows(rows, SIZES[0])
    forgotten = rows_of([(2, bad, False, False)], 3)  # its codes mean nothing
    assert Changes.none().with_rows(forgotten, SIZES[0]).known.tolist() == [False]
