"""Bulk load: what it replaces, what it refuses, more ads than are written at once."""

import numpy as np
import polars as pl
import pytest

from indexer.events.event import CONTENT_FIELDS
from serving.index.layout import BASE
from tests.index_store import (
    SIZES,
    FakeEncoder,
    apply,
    as_reader_sees,
    load,
    open_store,
    pause,
    random_ads,
    results,
    sound,
    update,
)

TOK = FakeEncoder("tok")


def test_build_replaces_and_does_not_add(tmp_path):
    with open_store(tmp_path) as store:
        assert as_reader_sees(store if load(store) else store) == load(store)
        apply(store, pause(int(random_ads()[0][0]), 1))
        assert as_reader_sees(store) != load(store, seed=1) == as_reader_sees(store)
        assert store.meta.sequence == 4
        assert store.file.log_rows == {"tok": 0}
        assert sound(store)
        assert sorted(f.name for f in (tmp_path / BASE / "tok").iterdir()) == ["2", "4"]


def test_content_and_versions_of_a_build(tmp_path):
    ad_ids, sids, statuses = random_ads()
    content = {n: [f"{n} {a}" for a in ad_ids.tolist()] for n in CONTENT_FIELDS}
    for columns in (
        content,
        {n: pl.Series(c) for n, c in content.items()},
        {n: np.array(c) for n, c in content.items()},
    ):
        with open_store(tmp_path, TOK) as store:
            load(store, content=columns, versions=ad_ids * 2)
            view = store.ad(int(ad_ids[3]))
            assert view.content == {n: c[3] for n, c in content.items()}
            assert (view.status, view.sids) == (statuses[3], {"tok": tuple(sids[3].tolist())})
            assert view.status_version == view.content_version == 2 * view.ad_id
            assert results(apply(store, update(view.ad_id, 2 * view.ad_id, text="x"))) == ["stale"]
            assert results(apply(store, update(view.ad_id, 2 * view.ad_id + 1, text="x"))) == ["applied"]
            assert sound(store)


def test_a_bad_build_leaves_the_old_content(tmp_path):
    good = random_ads(seed=1)
    with open_store(tmp_path) as store:
        before = load(store)
        for change, message in (
            (lambda a, s, t: (np.append(a[1:], a[1]), s, t), "expected distinct ads, ad .* more than once"),
            (lambda a, s, t: (a, s[:, :2], t), r"expected SIDs \(40, 3\) and as many .* got \(40, 2\)"),
            (lambda a, s, t: (a, s, t[1:]), "and 39"),
            (lambda a, s, t: (a, s + 1, t), "expected one code a level below"),
            (lambda a, s, t: (a, s - 1, t), "expected one code a level below"),
            (lambda a, s, t: (a - 1000, s, t), "expected an id in 0 .. 2"),
            (lambda a, s, t: (a, s, np.where(a == a[7], "on", t)), "got 'on'"),
        ):
            ad_ids, sids, statuses = change(*good)
            with pytest.raises(ValueError, match=message):
                store.build("tok", SIZES, ad_ids=ad_ids, sids=sids, statuses=statuses)
        for options, message in (
            ({"content": {"text": ["x"] * 40}}, "expected the content column account_id of 40 ads"),
            ({"content": {name: [None] * 40 for name in CONTENT_FIELDS}}, "expected account_id as text"),
            ({"versions": -1}, "a version of 0 or more"),
        ):
            with pytest.raises(ValueError, match=message):
                load(store, **options)
        with pytest.raises(ValueError, match="tokenizer id"):
            store.build("../x", SIZES, ad_ids=good[0], sids=good[1], statuses=good[2])
        assert as_reader_sees(store) == before
        assert store.meta.sequence == 1
        assert sound(store)
        assert [f.name for f in (tmp_path / BASE / "tok").iterdir()] == ["1"]


def test_more_ads_than_are_written_at_once(tmp_path):
    generator = np.random.default_rng(0)
    ad_ids = generator.permutation(140_000)
    sids = np.stack([generator.integers(0, v, len(ad_ids)) for v in (300, 200, 5)], axis=1).astype(np.int32)
    statuses = generator.choice(["active", "paused", "deleted"], len(ad_ids))
    text = np.array([f"ad {a}" for a in ad_ids.tolist()], object)
    content = {"account_id": text, "conversion_type": text, "text": text}
    with open_store(tmp_path) as store:
        store.build("tok", (300, 200, 5), ad_ids=ad_ids, sids=sids, statuses=statuses, content=content)
        row = 100_007
        view = store.ad(int(ad_ids[row]))
        assert (view.sids["tok"], view.status) == (tuple(sids[row].tolist()), statuses[row])
        assert view.content["text"] == f"ad {view.ad_id}"
        assert sound(store)
        seen = as_reader_sees(store)
    assert seen == {
        a: (s == "active", tuple(c)) for a, c, s in zip(ad_ids.tolist(), sids.tolist(), statuses, strict=True)
    }
