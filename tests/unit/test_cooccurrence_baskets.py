"""Baskets, Swing and the held-out measure against the double loops of their formulas."""

import importlib.util
import itertools
import json

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from training.preset.tokenizer import CooccurrenceConfig
from training.tokenizer.cooccurrence import held_out as held_out_module
from training.tokenizer.cooccurrence import swing as swing_module
from training.tokenizer.cooccurrence.baskets import Baskets, read_baskets
from training.tokenizer.cooccurrence.held_out import HeldOut, best_seller_recall_at, groups, recall_at
from training.tokenizer.cooccurrence.positives import find_positives
from training.tokenizer.cooccurrence.swing import ALPHA, swing
from training.workers import OnRay

_MISSING = [name for name in ("ray", "pyarrow", "pandas") if importlib.util.find_spec(name) is None]


def matrix(baskets, count):
    found = np.zeros((len(baskets), count), np.uint8)
    for row, basket in enumerate(baskets):
        found[row, list(basket)] = 1
    return csr_matrix(found)


def drawn(count=40, baskets=120, seed=0):
    random = np.random.default_rng(seed)
    weight = 1 / np.arange(1, count + 1)
    return [
        set(random.choice(count, random.integers(1, 9), replace=False, p=weight / weight.sum()).tolist())
        for _ in range(baskets)
    ]


def swing_by_formula(baskets, i, j):
    both = [b for b in baskets if i in b and j in b]
    return sum(1 / (ALPHA + len(u & v)) for u, v in itertools.combinations(both, 2))


def test_strength_is_the_double_loop_of_the_formula():
    baskets, count = drawn(), 40
    found = swing(matrix(baskets, count), baskets_per_content=1000, popularity_power=0.75).toarray()
    for i in range(count):
        for j in range(count):
            popularity = sum(j in b for b in baskets)
            wanted = swing_by_formula(baskets, i, j) / popularity**0.75 if i != j and popularity else 0
            assert found[i, j] == pytest.approx(wanted, rel=1e-5), (i, j)


def test_of_many_baskets_a_sample_counts_and_the_strongest_neighbours_are_kept(monkeypatch):
    baskets, count = drawn(), 40
    every = swing(matrix(baskets, count), baskets_per_content=1000, popularity_power=0).toarray()
    most = max(sum(0 in b for b in baskets), 1)
    sampled = swing(matrix(baskets, count), baskets_per_content=most // 2, popularity_power=0).toarray()
    assert 0 < sampled[0].sum() < every[0].sum()
    rare = [i for i in range(count) if sum(i in b for b in baskets) <= most // 2]
    assert rare
    np.testing.assert_array_equal(sampled[rare], every[rare])
    monkeypatch.setattr(swing_module, "KEPT", 3)
    kept = swing(matrix(baskets, count), baskets_per_content=1000, popularity_power=0).toarray()
    for row, whole in zip(kept, every, strict=True):
        strongest = np.sort(whole)[::-1][:3]
        np.testing.assert_array_equal(np.sort(row)[::-1][:3], strongest)
        assert (row > 0).sum() == (strongest > 0).sum()


def test_blocks_do_not_change_a_bit(monkeypatch):
    baskets = matrix(drawn(), 40)
    whole = swing(baskets, baskets_per_content=20, popularity_power=0.75)
    monkeypatch.setattr(swing_module, "_BLOCK", 7)
    cut = swing(baskets, baskets_per_content=20, popularity_power=0.75)
    assert (whole != cut).nnz == 0
    assert whole.nnz == cut.nnz > 0


def test_threads_of_others_do_not_change_a_bit():
    baskets = matrix(drawn(count=300, baskets=3000), 300)
    found = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            found.append(swing(baskets, baskets_per_content=200, popularity_power=0.75).data)
    np.testing.assert_array_equal(*found)


def test_no_baskets_give_no_strength(tmp_path):
    found = swing(csr_matrix((0, 5), dtype=np.uint8), baskets_per_content=9, popularity_power=1)
    assert found.shape == (5, 5)
    assert not found.nnz
    assert swing(csr_matrix((0, 0), dtype=np.uint8), baskets_per_content=9, popularity_power=1).shape == (
        0,
        0,
    )


@pytest.mark.slow
@pytest.mark.skipif(bool(_MISSING), reason=f"not installed (requirements-ray.txt): {', '.join(_MISSING)}")
def test_ray_gives_the_same_bits(tmp_path, monkeypatch):
    import ray

    baskets = matrix(drawn(count=300, baskets=2000), 300)
    settings = CooccurrenceConfig(baskets_per_ad=50)
    here = find_positives(baskets, settings=settings)
    monkeypatch.setattr(swing_module, "_BLOCK", 64)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        there = find_positives(baskets, settings=settings, workers=OnRay(), scratch=tmp_path)
    finally:
        ray.shutdown()
    assert here.strength.nnz == there.strength.nnz > 0
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(here.strength, name), getattr(there.strength, name))
    assert not list(tmp_path.iterdir())


def prepared(folder, rows, *, split):
    names = ["user_id", "ad_id", "timestamp", "behavior", "request_id", "split"]
    frame = pl.DataFrame(rows, schema=names, orient="row")
    frame.select(n for n in names if frame[n].null_count() < frame.height).write_parquet(
        folder / "events.parquet"
    )
    (folder / "split.json").write_text(json.dumps(split))
    return folder


def listed(baskets):
    return [baskets.ads[a:b].tolist() for a, b in itertools.pairwise(baskets.ptr)]


def test_a_basket_is_a_request_of_the_training_part(tmp_path):
    rows = [
        (1, 10, 5, "conversion", None, None),
        (1, 11, 5, "conversion", None, None),
        (1, 11, 5, "conversion", None, None),  # twice is once
        (1, 12, 6, "conversion", None, None),  # another second, another request
        (2, 13, 5, "conversion", None, None),
        (1, 14, 5, "click", None, None),  # no target
        (1, 15, 99, "conversion", None, None),  # later than training
    ]
    folder = prepared(tmp_path, rows, split={"train_end": 50})
    found = read_baskets(folder, part="train", behaviors=["conversion"])
    assert sorted(listed(found)) == [[10, 11], [12], [13]]
    assert listed(found)[-1] == [12]  # the last in time
    assert listed(read_baskets(folder, part="later", behaviors=["conversion"])) == [[15]]
    by_user = read_baskets(folder, part="train", behaviors=["conversion", "click"], basket="user")
    assert sorted(listed(by_user)) == [[10, 11, 12, 14], [13]]


def test_request_ids_say_what_is_one_request(tmp_path):
    rows = [
        (1, 10, 5, "conversion", 7, "train"),
        (1, 11, 9, "conversion", 7, "train"),
        (1, 12, 9, "conversion", 8, "train"),
        (2, 13, 9, "conversion", 7, "train"),  # the id of another user
        (1, 14, 9, "conversion", None, "train"),
        (1, 15, 9, "conversion", None, "train"),
        (1, 16, 1, "conversion", 7, "test"),
    ]
    folder = prepared(tmp_path, rows, split={"by": "column", "train_end": 9, "validation_end": 9, "end": 9})
    found = read_baskets(folder, part="train", behaviors=["conversion"])
    assert sorted(listed(found)) == [[10, 11], [12], [13], [14, 15]]
    assert listed(read_baskets(folder, part="later", behaviors=["conversion"])) == [[16]]


def test_a_split_without_an_end_is_refused(tmp_path):
    folder = prepared(tmp_path, [(1, 2, 3, "click", None, None)], split={})
    with pytest.raises(ValueError, match=r"split.json: expected train_end in unix seconds, got None"):
        read_baskets(folder, part="train", behaviors=["click"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop("behavior"), r"events.parquet: expected columns .* missing \['behavior'\]"),
        (lambda rows: rows.with_columns(behavior=pl.lit(1)), "column behavior: expected texts, got Int32"),
        (
            lambda rows: rows.with_columns(pl.col("timestamp").cast(pl.Float64)),
            "timestamp: expected integers",
        ),
        (
            lambda rows: pl.concat([rows, rows.with_columns(ad_id=pl.lit(None, pl.Int64))]),
            "events.parquet, column ad_id: expected no null, got one in row 1",
        ),
    ],
)
def test_events_of_another_shape_are_refused_with_their_place(change, message, tmp_path):
    folder = prepared(tmp_path, [(1, 2, 3, "click", None, None)], split={"train_end": 9})
    change(pl.read_parquet(folder / "events.parquet")).write_parquet(folder / "events.parquet")
    with pytest.raises(ValueError, match=message):
        read_baskets(folder, part="train", behaviors=["click"])


def test_events_without_their_parts_are_refused_where_a_column_says_them(tmp_path):
    split = {"by": "column", "train_end": 9, "validation_end": 9, "end": 9}
    folder = prepared(tmp_path, [(1, 2, 3, "click", None, None)], split=split)
    with pytest.raises(ValueError, match=r"events.parquet: expected columns .* missing \['split'\]"):
        read_baskets(folder, part="train", behaviors=["click"])


def test_ads_of_one_content_are_one_and_unknown_ads_are_left_out():
    baskets = Baskets.of([[5, 9, 7], [9], [8, 5]])
    found = baskets.contents(np.array([9, 5, 7]), np.array([1, 0, 1]), count=3)
    np.testing.assert_array_equal(found.toarray(), [[1, 1, 0], [0, 1, 0], [1, 0, 0]])
    none = baskets.contents(np.array([], np.int64), np.array([], np.int64), count=0)
    assert none.shape == (3, 0)


def test_pairs_need_two_baskets_and_ten_times_chance():
    baskets, count = drawn(count=60, baskets=400, seed=3), 60
    held_out = HeldOut.of(matrix(baskets, count), min_lift=3)
    holders = [sum(i in b for b in baskets) for i in range(count)]
    wanted = np.zeros((count, count), bool)
    for i, j in itertools.permutations(range(count), 2):
        both = sum(i in b and j in b for b in baskets)
        wanted[i, j] = both >= 2 and both * len(baskets) / (holders[i] * holders[j]) >= 3
    assert 10 < wanted.sum() < wanted.size / 2
    np.testing.assert_array_equal(held_out.partners.toarray().astype(bool), wanted)
    np.testing.assert_array_equal(held_out.anchors, np.flatnonzero(wanted.any(axis=1)))
    assert holders[held_out.popular[0]] == max(holders)


@pytest.mark.parametrize(("enough", "of_one"), [(2, False), (3, True)])
def test_learning_stops_by_pairs_of_one_basket_where_few_contents_have_another(enough, of_one, monkeypatch):
    monkeypatch.setattr(held_out_module, "ENOUGH", enough)
    baskets = [{4}] * 30 + [{0, 1}, {0, 1}, {2, 3}] + [{4}] * 27
    found = find_positives(matrix(baskets, 5), settings=CooccurrenceConfig(held_out=0.5)).held_out
    pairs = set(zip(*(at.tolist() for at in found.partners.nonzero()), strict=True))
    assert pairs == {(0, 1), (1, 0)} | ({(2, 3), (3, 2)} if of_one else set())


def test_recall_is_the_share_of_anchors_with_a_partner_among_the_nearest(monkeypatch):
    random = np.random.default_rng(1)
    count, ks = 50, (1, 3, 10)
    partners = np.triu(random.random((count, count)) < 0.05, 1)
    partners |= partners.T
    vectors = random.standard_normal((count, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    popular = random.permutation(count)
    held_out = HeldOut(csr_matrix(partners.astype(np.uint8)), popular)
    monkeypatch.setattr("training.tokenizer.cooccurrence.held_out._BLOCK", 7)
    found, best_seller = recall_at(vectors, held_out, ks), best_seller_recall_at(held_out, ks)
    anchors = [i for i in range(count) if partners[i].any()]
    for k in ks:
        hits = best_seller_hits = 0
        for i in anchors:
            order = sorted((j for j in range(count) if j != i), key=lambda j: -float(vectors[i] @ vectors[j]))
            hits += any(partners[i, j] for j in order[:k])
            best_seller_hits += any(partners[i, j] for j in [p for p in popular if p != i][:k])
        assert found[k] == pytest.approx(hits / len(anchors))
        assert best_seller[k] == pytest.approx(best_seller_hits / len(anchors))
    assert recall_at(vectors, held_out, (1,)) == {1: found[1]}
    assert np.isnan(recall_at(vectors, held_out, (1,), anchors=np.array([], np.int64))[1])


def test_equally_near_contents_come_in_their_order():
    """Contents of a few codes: whom R@1 finds does not depend on how many others are asked for."""
    random = np.random.default_rng(2)
    count, ks = 120, (1, 5, 10)
    vectors = np.eye(6, dtype=np.float32)[random.integers(0, 6, count)]  # similarities are 0 or 1
    partners = np.triu(random.random((count, count)) < 0.05, 1)
    partners |= partners.T
    held_out = HeldOut(csr_matrix(partners.astype(np.uint8)), np.arange(count))
    found = recall_at(vectors, held_out, ks)
    anchors = np.flatnonzero(partners.any(axis=1))
    for k in ks:
        hits = 0
        for i in anchors:
            others = [j for j in range(count) if j != i]
            nearest = sorted(others, key=lambda j: (-float(vectors[i] @ vectors[j]), j))[:k]
            hits += any(partners[i, j] for j in nearest)
        assert found[k] == recall_at(vectors, held_out, (k,))[k] == hits / len(anchors)


def test_groups_part_the_anchors():
    partners = csr_matrix(np.ones((4, 4), np.uint8) - np.eye(4, dtype=np.uint8))
    train = matrix([{0, 1, 2}] * 5 + [{3}], 4)
    found = groups(HeldOut(partners, np.arange(4)), train, kept_out=np.array([False, True, False, True]))
    assert {name: anchors.tolist() for name, anchors in found.items()} == {
        "warm": [0, 2],
        "kept out": [1],
        "few": [3],
    }


def test_positives_never_see_the_last_baskets():
    early, last = [{0, 1}, {0, 1}, {0, 1}] * 3, [{2, 3}]
    found = find_positives(matrix(early + last, 4), settings=CooccurrenceConfig(held_out=0.1))
    assert found.strength.toarray().nonzero()[0].tolist() == [0, 1]
    assert found.held_out.popular[:2].tolist() == [2, 3]
    assert found.seen.tolist() == [0, 1]
