"""Look-ups in tries of one to four levels against dictionaries, and the memory of a snapshot."""

from dataclasses import fields, is_dataclass, replace
from itertools import product

import numpy as np
import pytest

from serving.index.snapshot import IndexSnapshot
from serving.index.trie import Trie

LEVEL_SIZES = [(9,), (5, 4), (4, 3, 5), (3, 2, 4, 3)]
FAR = (-(1 << 31), (1 << 31) - 1)


def random_sids(seed, level_sizes, *, share=0.6):
    """Some of all SIDs, int32 [n, T] in order."""
    every = np.array(list(product(*map(range, level_sizes))), np.int32)
    return every[np.random.default_rng(seed).random(len(every)) < share]


def prefixes_of(sids):
    """A level: prefix -> node, and the prefixes by node."""
    by_node = [sorted({tuple(s[: t + 1]) for s in sids.tolist()}) for t in range(sids.shape[1])]
    return [{p: i for i, p in enumerate(level)} for level in by_node], by_node


def without_tables(trie):
    return replace(trie, child_table=(None,) * trie.levels)


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize("level_sizes", LEVEL_SIZES)
@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_children_and_counts_equal_dictionaries(level_sizes, share, tables):
    sids = random_sids(len(level_sizes), level_sizes, share=share)
    trie = Trie.from_sorted(sids) if tables else without_tables(Trie.from_sorted(sids))
    _, by_node = prefixes_of(sids)
    random = np.random.default_rng(0)
    assert (trie.levels, trie.leaves) == (len(level_sizes), len(sids))
    for t, prefixes in enumerate(by_node):
        assert trie.codes[t].tolist() == [p[-1] for p in prefixes]
        nodes = random.integers(-1, len(prefixes), (3, 7))
        below = [
            [sum(tuple(s[: t + 1]) == prefixes[i] for s in sids) if i >= 0 else 0 for i in r] for r in nodes
        ]
        assert trie.leaf_counts(t, nodes).tolist() == below
        if t == len(level_sizes) - 1:
            break
        expected = [
            [[p for p in by_node[t + 1] if i >= 0 and p[:-1] == prefixes[i]] for i in r] for r in nodes
        ]
        allowed, first = trie.children(t + 1, nodes)
        assert allowed.dtype == first.dtype == np.int32
        assert allowed.shape == (3, 7, max(len(c) for row in expected for c in row))
        for row, column in np.ndindex(nodes.shape):
            children = expected[row][column]
            padding = [-1] * (allowed.shape[2] - len(children))
            assert allowed[row, column].tolist() == [p[-1] for p in children] + padding
            if children:
                assert first[row, column] == by_node[t + 1].index(children[0])
        assert trie.children(t + 1, np.full((2, 3), -1))[0].tolist() == [[[-1]] * 3] * 2


def test_table_equals_pointers_where_both_are_large():
    """Parents with one child up to 900, so that most of a row is padding."""
    random = np.random.default_rng(0)
    pairs = np.concatenate([[(i, j) for j in range(1 + i * 29)] for i in range(32)])  # int [P, 2]
    sids = np.concatenate([np.repeat(pairs, 3, axis=0), np.tile([[0], [1], [2]], (len(pairs), 1))], axis=1)
    trie = Trie.from_sorted(sids.astype(np.int32))
    assert [table is not None for table in trie.child_table] == [False, True, False]
    nodes = random.integers(-1, 32, (4, 100))
    for beams in (nodes, np.minimum(nodes, 3), np.zeros((1, 1), int)):
        for got, expected in zip(
            trie.children(1, beams), without_tables(trie).children(1, beams), strict=True
        ):
            assert np.array_equal(got, expected)


@pytest.mark.parametrize("level_sizes", LEVEL_SIZES)
@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_find_equals_a_dictionary(level_sizes, share):
    sids = random_sids(len(level_sizes), level_sizes, share=share)
    leaf_of, trie = prefixes_of(sids)[0][-1], Trie.from_sorted(sids)
    every = list(product(*((*range(-1, size + 1), *FAR) for size in level_sizes)))
    expected = [leaf_of.get(s, -1) for s in every]
    assert trie.find(np.array(every, np.int32)).tolist() == expected
    assert trie.find(np.array(every, np.int64)).tolist() == expected
    assert trie.find(np.zeros((0, len(level_sizes)), np.int32)).tolist() == []


@pytest.mark.parametrize("level_sizes", [(2, 1000, 3), (700, 700), (3, 9, 64, 65)])
def test_find_among_many_children(level_sizes):
    random = np.random.default_rng(0)
    sids = np.unique(np.stack([random.integers(0, v, 3000) for v in level_sizes], axis=1), axis=0)
    leaf_of = {tuple(s): i for i, s in enumerate(sids.tolist())}
    asked = np.concatenate([sids, *(sids + random.integers(-1, 2, sids.shape) for _ in range(3))])
    expected = [leaf_of.get(tuple(s), -1) for s in asked.tolist()]
    assert min(expected) == -1
    assert Trie.from_sorted(sids).find(asked).tolist() == expected


@pytest.mark.parametrize("level_sizes", LEVEL_SIZES)
def test_nothing_is_found_in_an_empty_trie(level_sizes):
    trie = Trie.from_sorted(np.zeros((0, len(level_sizes)), np.int32))
    assert (trie.levels, trie.leaves) == (len(level_sizes), 0)
    assert [len(c) for c in trie.codes] == [0] * len(level_sizes)
    assert trie.find(np.zeros((2, len(level_sizes)), np.int32)).tolist() == [-1, -1]


@pytest.mark.parametrize("level_sizes", LEVEL_SIZES)
def test_paused_ads_are_known_but_not_in_the_trie(level_sizes):
    sids = random_sids(0, level_sizes)
    ad_ids = np.random.default_rng(1).permutation(len(sids)) * 10  # SID i is that of ad_ids[i]
    active = np.arange(len(sids)) % 3 > 0
    snapshot = IndexSnapshot.build(ad_ids, sids, active=active, level_sizes=level_sizes)
    codes, known = snapshot.sids_of(np.append(ad_ids, [-1, 5, 10 * len(sids)]))
    assert known.tolist() == [True] * len(sids) + [False] * 3
    assert codes[:-3].tolist() == sids.tolist()
    assert snapshot.trie.find(sids).tolist() == np.where(active, np.cumsum(active) - 1, -1).tolist()
    assert snapshot.leaf_ad_ids.tolist() == ad_ids[active].tolist()


def arrays_of(value):
    """Arrays in a snapshot, one that is shared once."""
    if isinstance(value, np.ndarray):
        return {id(value): value}
    if is_dataclass(value):
        value = tuple(getattr(value, field.name) for field in fields(value))
    return {k: v for part in value for k, v in arrays_of(part).items()} if isinstance(value, tuple) else {}


def every_prefix_has_one_child(random, level_sizes):
    """One SID in each of 100,000 second-level prefixes."""
    prefix = random.permutation(level_sizes[0] * level_sizes[1])[:100_000]
    return np.stack(
        [*np.divmod(prefix, level_sizes[1]), random.integers(0, level_sizes[2], len(prefix))], axis=1
    )


def uniform(random, level_sizes):
    sids = np.unique(np.stack([random.integers(0, v, 130_000) for v in level_sizes], axis=1), axis=0)
    return random.permutation(sids)[:100_000]


def few_prefixes(random, level_sizes):
    """Tables and pointers together."""
    return uniform(random, (32, 64, level_sizes[2]))


@pytest.mark.parametrize("make", [every_prefix_has_one_child, uniform, few_prefixes])
def test_snapshot_takes_40_bytes_an_ad(make):
    level_sizes = (4096, 1024, 256)
    sids = make(np.random.default_rng(0), level_sizes)
    snapshot = IndexSnapshot.build(
        np.arange(len(sids)), sids, active=np.ones(len(sids), bool), level_sizes=level_sizes
    )
    assert snapshot.trie.leaves == len(sids) == 100_000
    assert any(t is not None for t in snapshot.trie.child_table) == (make is few_prefixes)
    arrays = arrays_of(snapshot).values()
    # A view must not hide what it keeps alive.
    assert all(a.base is None or a.base.nbytes == a.nbytes for a in arrays)
    assert sum(a.nbytes for a in arrays) == snapshot.nbytes <= 40 * len(sids)
