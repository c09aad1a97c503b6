"""Generations: one more, filled while events go on or loaded with given SIDs; one less."""

import numpy as np
import pytest

from indexer.store.generations import drop_generation, fill
from serving.index.layout import BASE, IndexStoreError
from tests.index_store import (
    FakeEncoder,
    apply,
    as_reader_sees,
    create,
    delete,
    empty_store,
    load,
    open_store,
    pause,
    results,
    sound,
    update,
)

TOK, NEW = FakeEncoder("tok"), FakeEncoder("new", (7, 2))


def sid(ad_id: int, text: str) -> tuple[int, ...]:
    return TOK.sid(ad_id, "a", "buy", text)


def test_a_generation_is_filled_while_events_go_on(tmp_path):
    with empty_store(tmp_path) as store:
        apply(store, *(create(i, 1) for i in range(10)), pause(3, 2))
        store.add_encoder(FakeEncoder("new", (7, 2)))
        assert fill(store.file, NEW, limit=4) == 6
        apply(store, update(1, 2, text="filled"), update(8, 2, text="not yet"))
        apply(store, delete(2, 3), create(20, 1))
        assert store.meta.generations["new"].ready is False
    encoder = FakeEncoder("new", (7, 2))
    with open_store(tmp_path, TOK, encoder) as store:
        sequence = store.meta.sequence
        assert [fill(store.file, encoder, limit=4) for _ in range(3)] == [1, 1, 0]
        assert encoder.calls == [[4, 5, 6, 7], [9]]  # progress survived; 8 and 20 came by events
        assert store.meta.sequence == sequence + 1
        assert fill(store.file, encoder) == 0
        texts = {i: "text" for i in (*range(10), 20)} | {1: "filled", 8: "not yet"}
        expected = {i: (i not in (2, 3), NEW.sid(i, "a", "buy", t)) for i, t in texts.items()}
        assert as_reader_sees(store, "new") == expected
        apply(store, update(5, 4, text="both"))
        assert store.ad(5).sids == {"tok": sid(5, "both"), "new": NEW.sid(5, "a", "buy", "both")}
        assert as_reader_sees(store, "new")[5] == (True, NEW.sid(5, "a", "buy", "both"))
        assert sound(store)
        drop_generation(store.file, "tok")
        assert store.ad(5).sids.keys() == {"new"}
        assert not (tmp_path / BASE / "tok").exists()
        assert sound(store)
        with pytest.raises(IndexStoreError, match="new is the only generation that is ready"):
            drop_generation(store.file, "new")
        with pytest.raises(IndexStoreError, match="no generation tok, only new"):
            drop_generation(store.file, "tok")
        store.add_encoder(TOK)
        while fill(store.file, TOK):
            pass
        assert as_reader_sees(store)[5] == (True, sid(5, "both"))


def test_ads_without_content_stop_a_generation(tmp_path):
    with open_store(tmp_path, TOK) as store:
        load(store)
        apply(store, create(5000, 1))
        with pytest.raises(
            IndexStoreError, match=r"40 of 41 ads came with given SIDs .* build the generation with"
        ):
            store.add_encoder(NEW)
        assert store.meta.generations.keys() == {"tok"}


def test_a_second_generation_with_given_sids(tmp_path):
    with open_store(tmp_path, TOK) as store:
        before = load(store)
        paused = next(a for a, (active, _) in before.items() if active)
        apply(store, pause(paused, 1))
        ad_ids = np.array(list(before))
        sids = np.stack([ad_ids % 7, ad_ids % 2], axis=1).astype(np.int32)
        new = {"sids": sids, "statuses": np.full(len(ad_ids), "active")}
        store.build("new", (7, 2), ad_ids=ad_ids, **new)
        expected = {a: (active and a != paused, (a % 7, a % 2)) for a, (active, _) in before.items()}
        assert as_reader_sees(store, "new") == expected  # the store knows the statuses better
        assert as_reader_sees(store)[paused] == (False, before[paused][1])
        assert sound(store)
        for ads, message in (
            (ad_ids[1:], "1 in the index have no SID"),
            (ad_ids + 1000, "are not in the index|have no SID"),
        ):
            with pytest.raises(ValueError, match=message):
                store.build("new", (7, 2), ad_ids=ads, **{n: v[: len(ads)] for n, v in new.items()})
        store.build("new", (7, 2), ad_ids=ad_ids[1:], **{n: v[1:] for n, v in new.items()}, replace_all=True)
        assert store.meta.generations.keys() == {"new"}
        assert len(as_reader_sees(store, "new")) == 39
        assert not (tmp_path / BASE / "tok").exists()
        assert sound(store)
    with open_store(tmp_path) as store:
        assert sound(store)


class Picky(FakeEncoder):
    """Takes ads with an embedding only."""

    def refusal(self, content: dict) -> str | None:
        return None if "embedding" in content else "expected an embedding"


def test_a_generation_that_wants_other_content_holds_nothing_up_and_waits_for_it(tmp_path):
    with empty_store(tmp_path) as store:
        apply(store, create(1, 1), create(2, 1))
        picky = Picky("new", (7, 2))
        store.add_encoder(picky)
        with pytest.raises(IndexStoreError, match="encoder new: ad 1: expected an embedding"):
            fill(store.file, picky)
        # The generation that answers takes texts, and so do the events.
        assert results(apply(store, create(3, 1), update(2, 2, embedding=[1.0, 2.0]))) == ["applied"] * 2
        assert set(store.ad(3).sids) == {"tok"}
        assert set(store.ad(2).sids) == {"tok", "new"}
        for ad in (1, 3):
            apply(store, update(ad, 2, embedding=[0.5, ad]))
        while fill(store.file, picky):
            pass
        outcomes = apply(store, create(4, 1), update(3, 3, text="more words"))
        assert results(outcomes) == ["wrong_content", "applied"]
        assert store.ad(4) is None
        assert set(store.ad(3).sids) == {"tok", "new"}
        assert sound(store)
