"""The index store: events, bulk load, generations, compaction, snapshots; damage, full disks and crashes."""

import hashlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import lmdb
import numpy as np
import polars as pl
import pytest

import indexer.__main__ as command
from indexer.events.event import AdEvent, EventError
from indexer.store.backups import MANIFEST, restore, snapshot
from indexer.store.compaction import Compactor, compact
from indexer.store.dead_letters import MAX_WAITING, RAW_BYTES, Incoming
from indexer.store.generations import add_generation, drop_generation, fill
from indexer.store.index_store import IndexStore, IndexStoreError, Neighbour
from indexer.store.verify import verify
from serving.index.base import read_base
from serving.index.layout import BASE, DEAD, INDEX_KEY, META, STORE, WAITING, base_folder, generation_tables
from tests.index_store import (
    SIZES,
    FakeEncoder,
    apply,
    as_reader_sees,
    build,
    create,
    empty_store,
    reverse_table,
)

FORK = multiprocessing.get_context("fork")
TOK, NEW = FakeEncoder("tok"), FakeEncoder("new", (7, 2))


@pytest.fixture
def store(tmp_path):
    with empty_store(tmp_path / "index") as opened:
        yield opened


def results(outcomes) -> list[str]:
    return [o.reason or o.result for o in outcomes]


def sound(store: IndexStore) -> bool:
    assert verify(store.path, environment=store.environment) == []
    return True


def sid(ad_id: int, text: str = "text", account_id: str = "a") -> tuple[int, ...]:
    return TOK.sid(ad_id, account_id, "buy", text)


# Events


def test_the_life_of_an_ad(store):
    assert results(apply(store, create(7, 1))) == ["applied"]
    assert as_reader_sees(store) == {7: (True, sid(7))}
    apply(store, AdEvent("pause", 7, 2))
    assert as_reader_sees(store) == {7: (False, sid(7))}
    assert reverse_table(store) == set()
    apply(store, AdEvent("update", 7, 3, text="other"))  # paused ads move as well
    assert as_reader_sees(store) == {7: (False, sid(7, "other"))}
    apply(store, AdEvent("resume", 7, 4))
    assert reverse_table(store) == {(sid(7, "other"), 7)}
    apply(store, AdEvent("delete", 7, 5))
    assert as_reader_sees(store) == {7: (False, sid(7, "other"))}
    apply(store, create(7, 6, "third"))
    assert as_reader_sees(store) == {7: (True, sid(7, "third"))}
    view = store.ad(7)
    assert (view.status, view.status_version, view.content_version) == ("active", 6, 6)
    assert view.content == {"account_id": "a", "conversion_type": "buy", "text": "third"}
    assert store.ad(8) is None
    assert sound(store)


def test_what_is_known_already_is_stale_and_leaves_the_sequence(store):
    events = [create(1, 5), AdEvent("pause", 1, 6), AdEvent("update", 1, 7, text="x")]
    assert results(apply(store, *events)) == ["applied"] * 3
    sequence, view = store.meta.sequence, store.ad(1)
    again = apply(
        store, *events, *events, AdEvent("update", 1, 6, account_id="other"), AdEvent("resume", 1, 5)
    )
    assert results(again) == ["stale"] * 8
    assert {o.sequence for o in again} == {sequence} == {store.meta.sequence}
    assert store.ad(1) == view
    assert store.counters()["stale.create"] == 2
    assert store.dead_letters() == []


def test_a_transaction_counts_once_and_logs_only_what_readers_see(store):
    apply(store, create(1, 1), create(2, 1), AdEvent("pause", 2, 2))
    assert store.meta.sequence == 2
    assert store.log_rows == {"tok": 2}
    apply(store, AdEvent("delete", 2, 3))  # paused before, so readers see no change
    assert (store.meta.sequence, store.log_rows) == (3, {"tok": 2})
    apply(store, AdEvent("update", 2, 4, text="text"))  # the same content, the same SID
    assert (store.meta.sequence, store.log_rows) == (4, {"tok": 2})
    apply(store, AdEvent("pause", 9, 1), offset=3)
    assert (store.meta.sequence, store.offset("test")) == (4, b"3")
    assert sound(store)


def test_one_call_of_the_encoder_a_batch(tmp_path):
    encoder = FakeEncoder()
    with empty_store(tmp_path, encoder) as store:
        updates = [AdEvent("update", i, 2, text="later") for i in range(3)]
        apply(store, *(create(i, 1) for i in range(5)), *updates, AdEvent("pause", 4, 2))
    assert encoder.calls == [[0, 1, 2, 3, 4]]


def test_events_that_come_too_early_wait(store):
    early = apply(store, AdEvent("pause", 1, 5), AdEvent("update", 1, 4, text="new"), AdEvent("delete", 1, 3))
    assert results(early) == ["unknown_ad"] * 3
    assert [(x.reason, x.waiting) for x in store.dead_letters()] == [("unknown_ad", True)] * 3
    assert store.meta.sequence == 1
    assert results(apply(store, create(1, 1))) == ["applied"]
    assert store.ad(1).status == "paused"
    assert store.ad(1).content["text"] == "new"
    assert as_reader_sees(store) == {1: (False, sid(1, "new"))}
    assert store.dead_letters() == []
    counters = store.counters()
    assert (counters["recovered.pause"], counters["recovered.update"]) == (1, 1)
    assert sound(store)


def test_waiting_updates_are_applied_in_version_order(store):
    for event in (AdEvent("update", 1, 4, text="new"), AdEvent("update", 1, 3, account_id="b")):
        apply(store, event)
    apply(store, AdEvent("update", 1, 5, conversion_type="sell"))
    apply(store, create(1, 1))
    assert store.ad(1).content == {"account_id": "b", "conversion_type": "sell", "text": "new"}
    assert store.dead_letters() == []


def test_a_create_that_overtakes_the_delete_waits(store):
    apply(store, create(1, 1))
    assert results(apply(store, create(1, 3, "again"))) == ["duplicate_create"]
    assert store.ad(1).content["text"] == "text"
    assert results(apply(store, AdEvent("delete", 1, 2))) == ["applied"]
    assert store.ad(1).status == "active"
    assert store.ad(1).content["text"] == "again"
    assert store.dead_letters() == []


def test_an_event_that_waits_only_within_its_batch_was_applied(store):
    assert results(apply(store, AdEvent("pause", 1, 2), create(1, 1))) == ["applied", "applied"]
    counters = store.counters()
    assert counters["applied.pause"] == 1
    assert "rejected.unknown_ad" not in counters
    assert store.dead_letters() == []


def test_redelivery_of_a_waiting_event_adds_no_dead_letter(store):
    for _ in range(3):
        assert results(apply(store, AdEvent("pause", 1, 2))) == ["unknown_ad"]
    assert len(store.dead_letters()) == 1


def test_dead_letters_tell_what_came(tmp_path):
    raw = b"\xff{no json" + b"x" * RAW_BYTES
    with empty_store(tmp_path, now=lambda: 1234.5) as store:
        (outcome,) = store.apply([Incoming(EventError("invalid_json", "expected UTF-8"), raw, "files")])
        assert (outcome.result, outcome.reason, outcome.message) == (
            "rejected",
            "invalid_json",
            "expected UTF-8",
        )
        (letter,) = store.dead_letters()
        assert (letter.source, letter.reason, letter.message) == ("files", "invalid_json", "expected UTF-8")
        assert letter.raw_bytes == raw[:RAW_BYTES]
        assert (letter.length, letter.time, letter.waiting, letter.event) == (len(raw), 1234, False, None)
        assert letter.sha256 == hashlib.sha256(raw).hexdigest()
        assert store.counters() == {"dead_letters": 1, "rejected.invalid_json": 1}
        assert store.meta.sequence == 1


def test_unknown_accounts_are_tried_again_on_demand(tmp_path):
    with empty_store(tmp_path, accounts={"a"}) as store:
        assert results(apply(store, create(1, 1), create(2, 1, account_id="b"))) == [
            "applied",
            "unknown_account",
        ]
        assert results(apply(store, AdEvent("update", 1, 2, account_id="b"))) == ["unknown_account"]
        assert results(apply(store, AdEvent("update", 1, 3, text="x"))) == ["applied"]
        assert results(store.replay()) == ["unknown_account"] * 1 + ["stale"]
    with IndexStore(tmp_path, encoders={"tok": TOK}, accounts={"a", "b"}) as store:
        (letter,) = store.dead_letters()
        assert results(store.replay([letter.number])) == ["applied"]
        assert as_reader_sees(store) == {1: (True, sid(1, "x")), 2: (True, sid(2, account_id="b"))}
        assert store.dead_letters() == []
        with pytest.raises(ValueError, match="expected the number of a dead letter, got 77"):
            store.replay([77])


def test_without_an_encoder_only_the_status_changes(tmp_path):
    with empty_store(tmp_path) as store:
        apply(store, create(1, 1), AdEvent("pause", 2, 9))
    with IndexStore(tmp_path) as store:
        early = AdEvent("update", 3, 2, text="x")
        outcomes = apply(
            store, create(2, 1), AdEvent("update", 1, 2, text="x"), AdEvent("pause", 1, 2), early
        )
        assert results(outcomes) == ["no_encoder", "no_encoder", "applied", "unknown_ad"]
        assert "expected an encoder of tok, got none" in outcomes[0].message
        assert as_reader_sees(store) == {1: (False, sid(1))}
        assert sound(store)
    with IndexStore(tmp_path, encoders={"tok": TOK}) as store:
        store.replay()
        assert as_reader_sees(store) == {1: (False, sid(1, "x")), 2: (False, sid(2))}
        assert [x.event["ad_id"] for x in store.dead_letters()] == [3]


def test_ads_with_given_sids_need_their_whole_content(store):
    build(store, {1: ((0, 1, 2), "active")}, TOK)
    assert results(apply(store, AdEvent("update", 1, 1, text="x"))) == ["no_content"]
    assert results(apply(store, AdEvent("pause", 1, 1))) == ["applied"]
    assert as_reader_sees(store) == {1: (False, (0, 1, 2))}
    assert results(apply(store, AdEvent("update", 1, 2, "a", "buy", "x"))) == ["applied"]
    assert as_reader_sees(store) == {1: (False, sid(1, "x"))}


def test_the_oldest_dead_letters_make_room(tmp_path):
    with empty_store(tmp_path, max_dead_letters=3) as store:
        apply(store, *(AdEvent("pause", i, 1) for i in range(5)))
        assert [x.event["ad_id"] for x in store.dead_letters()] == [2, 3, 4]
        assert [x.number for x in store.dead_letters(after=2, limit=1)] == [3]
        assert store.counters()["dead_letters_forgotten"] == 2
        assert sound(store)
        store.drop_dead_letters([2, 4])
        assert [x.number for x in store.dead_letters()] == [3]
        assert sound(store)
        assert apply(store, create(4, 0))[0].result == "applied"
        assert store.ad(4).status == "active"  # what was dropped is not tried again


def test_one_ad_cannot_make_everything_wait(store):
    apply(store, *(AdEvent("pause", 1, v) for v in range(1, MAX_WAITING + 10)))
    letters = store.dead_letters()
    assert (len(letters), sum(x.waiting for x in letters)) == (MAX_WAITING + 9, MAX_WAITING)
    assert sound(store)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda n: 1 / 0, "failed on 1 ads, first ad 1: ZeroDivisionError"),
        (lambda n: np.zeros((n, 2), np.int32), r"expected integers \(1, 3\), got int32 \(1, 2\)"),
        (lambda n: np.zeros((n, 3)), "got float64"),
        (lambda n: np.full((n, 3), 3), r"expected codes below \(4, 3, 5\) for ad 1, got \[3, 3, 3\]"),
        (lambda n: np.full((n, 3), -1), "expected codes below"),
    ],
)
def test_an_encoder_that_is_wrong_changes_nothing(tmp_path, answer, message):
    encoder = FakeEncoder()
    with empty_store(tmp_path, encoder) as store:
        encoder.encode = lambda ad_ids, **_: answer(len(ad_ids))
        with pytest.raises(IndexStoreError, match=message):
            apply(store, create(1, 1), offset=5)
        assert (store.ad(1), store.offset("test"), store.counters(), store.meta.sequence) == (
            None,
            None,
            {},
            1,
        )
        del encoder.encode
        assert results(apply(store, create(1, 1))) == ["applied"]
        assert sound(store)


def test_encoders_must_be_those_of_the_generations(tmp_path):
    empty_store(tmp_path).close()
    for name, encoder in (("tok", FakeEncoder("tok", (4, 3))), ("tok", NEW)):
        with pytest.raises(IndexStoreError, match="expected an encoder of tok with levels"):
            IndexStore(tmp_path, encoders={name: encoder})
    empty_store(tmp_path).close()  # the refusal let go of the lock


def test_neighbours(store):
    sids = {1: (0, 1, 2), 2: (0, 1, 2), 3: (0, 1, 3), 4: (0, 2, 2), 5: (1, 1, 2), 6: (0, 1, 2)}
    build(store, {a: (s, "paused" if a == 6 else "active") for a, s in sids.items()}, TOK)
    everything = [Neighbour(2, 3), Neighbour(3, 2), Neighbour(4, 1)]
    assert store.neighbours(1, "tok") == everything
    assert store.neighbours(1, "tok", limit=2) == everything[:2]
    assert store.neighbours(6, "tok", limit=1) == [Neighbour(1, 3)]  # of a paused ad
    assert store.neighbours(9, "tok") == store.neighbours(1, "none") == []


# Bulk load


def random_ads(count: int = 40, seed: int = 0):
    generator = np.random.default_rng(seed)
    ad_ids = generator.choice(max(1000, count), count, replace=False).astype(np.int64)
    sids = np.stack([generator.integers(0, v, count) for v in SIZES], axis=1).astype(np.int32)
    return ad_ids, sids, generator.choice(["active", "paused", "deleted"], count)


def load(store: IndexStore, seed: int = 0, count: int = 40, **options) -> dict:
    ad_ids, sids, statuses = random_ads(count, seed)
    store.build("tok", SIZES, ad_ids=ad_ids, sids=sids, statuses=statuses, **options)
    return {
        a: (s == "active", tuple(c)) for a, c, s in zip(ad_ids.tolist(), sids.tolist(), statuses, strict=True)
    }


def test_build_replaces_and_does_not_add(tmp_path):
    with IndexStore(tmp_path) as store:
        assert as_reader_sees(store if load(store) else store) == load(store)
        apply(store, AdEvent("pause", int(random_ads()[0][0]), 1))
        assert as_reader_sees(store) != load(store, seed=1) == as_reader_sees(store)
        assert store.meta.sequence == 4
        assert store.log_rows == {"tok": 0}
        assert sound(store)
        assert sorted(f.name for f in (tmp_path / BASE / "tok").iterdir()) == ["2", "4"]


def test_content_and_versions_of_a_build(tmp_path):
    ad_ids, sids, statuses = random_ads()
    content = {n: [f"{n} {a}" for a in ad_ids.tolist()] for n in ("account_id", "conversion_type", "text")}
    for columns in (
        content,
        {n: pl.Series(c) for n, c in content.items()},
        {n: np.array(c) for n, c in content.items()},
    ):
        with IndexStore(tmp_path, encoders={"tok": TOK}) as store:
            load(store, content=columns, versions=ad_ids * 2)
            view = store.ad(int(ad_ids[3]))
            assert view.content == {n: c[3] for n, c in content.items()}
            assert (view.status, view.sids) == (statuses[3], {"tok": tuple(sids[3].tolist())})
            assert view.status_version == view.content_version == 2 * view.ad_id
            assert results(apply(store, AdEvent("update", view.ad_id, 2 * view.ad_id, text="x"))) == ["stale"]
            assert results(apply(store, AdEvent("update", view.ad_id, 2 * view.ad_id + 1, text="x"))) == [
                "applied"
            ]
            assert sound(store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, s, t: (np.append(a[1:], a[1]), s, t), "expected distinct ads, ad .* more than once"),
        (lambda a, s, t: (a, s[:, :2], t), r"expected SIDs \(40, 3\) and as many statuses, got \(40, 2\)"),
        (lambda a, s, t: (a, s, t[1:]), "and 39"),
        (lambda a, s, t: (a, s + 1, t), "expected one code a level below"),
        (lambda a, s, t: (a, s - 1, t), "expected one code a level below"),
        (lambda a, s, t: (a - 1000, s, t), "expected an id in 0 .. 2"),
        (lambda a, s, t: (a, s, np.where(a == a[7], "on", t)), "got 'on'"),
    ],
)
def test_a_bad_build_leaves_the_old_content(tmp_path, change, message):
    with IndexStore(tmp_path) as store:
        before = load(store)
        ad_ids, sids, statuses = change(*random_ads(seed=1))
        with pytest.raises(ValueError, match=message):
            store.build("tok", SIZES, ad_ids=ad_ids, sids=sids, statuses=statuses)
        for content in (
            {"text": ["x"] * 40},
            {n: [None] * 40 for n in ("account_id", "conversion_type", "text")},
        ):
            with pytest.raises(ValueError, match="content"):
                load(store, content=content)
        with pytest.raises(ValueError, match="tokenizer id"):
            store.build("../x", SIZES, ad_ids=ad_ids, sids=sids, statuses=statuses)
        with pytest.raises(ValueError, match="a version of 0 or more"):
            load(store, versions=-1)
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
    with IndexStore(tmp_path) as store:
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


# Generations


def test_a_generation_is_filled_while_events_go_on(tmp_path):
    with empty_store(tmp_path) as store:
        apply(store, *(create(i, 1) for i in range(10)), AdEvent("pause", 3, 2))
        add_generation(store, FakeEncoder("new", (7, 2)))
        assert fill(store, "new", limit=4) == 6
        apply(store, AdEvent("update", 1, 2, text="filled"), AdEvent("update", 8, 2, text="not yet"))
        apply(store, AdEvent("delete", 2, 3), create(20, 1))
        assert store.meta.generations["new"].ready is False
    encoder = FakeEncoder("new", (7, 2))
    with IndexStore(tmp_path, encoders={"tok": TOK, "new": encoder}) as store:
        sequence = store.meta.sequence
        assert [fill(store, "new", limit=4) for _ in range(3)] == [1, 1, 0]
        assert encoder.calls == [[4, 5, 6, 7], [9]]  # progress survived; 8 and 20 came by events
        assert store.meta.sequence == sequence + 1
        assert fill(store, "new") == 0
        texts = {i: "text" for i in (*range(10), 20)} | {1: "filled", 8: "not yet"}
        expected = {i: (i not in (2, 3), NEW.sid(i, "a", "buy", t)) for i, t in texts.items()}
        assert as_reader_sees(store, "new") == expected
        apply(store, AdEvent("update", 5, 4, text="both"))
        assert store.ad(5).sids == {"tok": sid(5, "both"), "new": NEW.sid(5, "a", "buy", "both")}
        assert as_reader_sees(store, "new")[5] == (True, NEW.sid(5, "a", "buy", "both"))
        assert sound(store)
        drop_generation(store, "tok")
        assert store.ad(5).sids.keys() == {"new"}
        assert not (tmp_path / BASE / "tok").exists()
        assert sound(store)
        with pytest.raises(IndexStoreError, match="new is the only generation that is ready"):
            drop_generation(store, "new")
        with pytest.raises(IndexStoreError, match="no generation tok, only new"):
            drop_generation(store, "tok")
        add_generation(store, TOK)
        while fill(store, "tok"):
            pass
        assert as_reader_sees(store)[5] == (True, sid(5, "both"))


def test_ads_without_content_stop_a_generation(tmp_path):
    with IndexStore(tmp_path, encoders={"tok": TOK}) as store:
        load(store)
        apply(store, create(5000, 1))
        with pytest.raises(
            IndexStoreError, match=r"40 of 41 ads came with given SIDs .* build the generation with"
        ):
            add_generation(store, NEW)
        assert store.meta.generations.keys() == {"tok"}


def test_a_second_generation_with_given_sids(tmp_path):
    with IndexStore(tmp_path, encoders={"tok": TOK}) as store:
        before = load(store)
        paused = next(a for a, (active, _) in before.items() if active)
        apply(store, AdEvent("pause", paused, 1))
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
    with IndexStore(tmp_path) as store:
        assert sound(store)


# Compaction


def _send_result(result, function, arguments):
    try:
        result.send(function(*arguments))
    except Exception as error:
        result.send(error)


def in_other_process(function, *arguments) -> object:
    """Spawned: LMDB opens an environment once a process, and a fork remembers those of its parent."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    result = ours.recv()
    process.join()
    assert process.exitcode == 0
    return result


def test_compaction_beside_the_living_writer(store):
    apply(store, *(create(i, 1) for i in range(20)))
    apply(store, AdEvent("pause", 3, 2))
    sequence = in_other_process(compact, store.path, "tok")
    assert sequence == store.meta.sequence == 3
    apply(store, AdEvent("delete", 4, 2), create(30, 1))  # after the arrays were read
    before = as_reader_sees(store)
    store.adopt_base("tok", 3)
    assert (store.meta.generations["tok"].base, store.meta.generations["tok"].log_start) == (3, 3)
    assert store.log_rows == {"tok": 2}
    assert as_reader_sees(store) == before
    assert len(read_base(base_folder(store.path, "tok", sequence=3)).ad_ids) == 20
    assert sound(store)
    for _ in range(2):
        apply(store, create(store.meta.sequence + 100, 1))
        store.adopt_base("tok", in_other_process(compact, store.path, "tok"))
    assert sorted(f.name for f in (store.path / BASE / "tok").iterdir()) == [
        "5",
        "6",
    ]  # this and the one before
    for wrong, message in ((5, "expected a base of tok in 6 .. 6, got 5"), (9, "got 9")):
        with pytest.raises(IndexStoreError, match=message):
            store.adopt_base("tok", wrong)
    with pytest.raises(IndexStoreError, match="expected a ready generation, got none"):
        store.adopt_base("none", 6)


def poll_until(compactor: Compactor, condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        compactor.poll()
        time.sleep(0.02)


def test_the_compactor_starts_by_number_and_by_age(store):
    clock = [0.0]
    compactor = Compactor(store, max_changes=5, max_age_s=100, clock=lambda: clock[0])
    apply(store, *(create(i, 1) for i in range(5)))
    compactor.poll()
    assert compactor.running is None
    apply(store, create(9, 1))
    poll_until(compactor, lambda: compactor.compactions == 1)
    assert store.log_rows == {"tok": 0}
    assert store.meta.generations["tok"].base == store.meta.sequence
    apply(store, create(10, 1))
    compactor.poll()
    clock[0] = 99
    compactor.poll()
    assert compactor.running is None
    clock[0] = 100
    poll_until(compactor, lambda: compactor.compactions == 2)
    assert sound(store)
    compactor.start("tok")
    compactor.close()
    assert compactor.running is None


def test_a_compaction_that_fails_is_tried_again(store):
    clock = [0.0]
    compactor = Compactor(store, max_changes=0, clock=lambda: clock[0])
    apply(store, create(1, 1))
    (store.path / BASE / "tok").rename(store.path / "aside")
    (store.path / BASE / "tok").write_text("in the way")
    poll_until(compactor, lambda: compactor.failures == 1)
    assert "cannot write a base" in compactor.last_error
    compactor.poll()
    assert compactor.running is None  # not at once
    (store.path / BASE / "tok").unlink()
    (store.path / "aside").rename(store.path / BASE / "tok")
    clock[0] = 61
    poll_until(compactor, lambda: compactor.compactions == 1)


def test_deleted_ads_are_forgotten_in_steps(tmp_path):
    now = [1000.0]
    with empty_store(tmp_path, now=lambda: now[0]) as store:
        apply(store, *(create(i, 1) for i in range(10)), *(AdEvent("delete", i, 2) for i in (1, 4, 8)))
        now[0] = 2000.0
        apply(store, AdEvent("delete", 5, 2))
        assert store.forget_deleted(before=1000, limit=100) is None
        assert store.ad(1) is not None
        assert store.forget_deleted(before=1500, limit=4) == 3
        assert (store.ad(1), store.ad(4) is None) == (None, False)
        sequence = store.meta.sequence
        assert store.forget_deleted(before=1500, after=3, limit=100) is None
        assert store.meta.sequence == sequence + 1
        assert sorted(as_reader_sees(store)) == [0, 2, 3, 5, 6, 7, 9]
        assert sound(store)
        assert results(apply(store, AdEvent("resume", 1, 3))) == ["unknown_ad"]
        compactor = Compactor(store, tombstone_ttl_s=10, clock=lambda: now[0])
        now[0] = 2011.0
        compactor.poll()
        assert store.ad(5) is None
        assert sound(store)


# Snapshots


def test_a_snapshot_of_a_living_store_and_back(tmp_path):
    with empty_store(tmp_path / "index", TOK, NEW) as store:
        apply(
            store,
            *(create(i, 1) for i in range(10)),
            AdEvent("pause", 3, 2),
            AdEvent("pause", 50, 1),
            offset=1,
        )
        manifest = in_other_process(snapshot, store.path, tmp_path / "copy")
        assert (manifest["sequence"], manifest["ads"], manifest["dead_letters"]) == (3, 10, 1)
        assert manifest["generations"] == {"new": 10, "tok": 10}
        expected = as_reader_sees(store)
        apply(store, AdEvent("delete", 1, 9), create(99, 1), offset=2)
        for refused in (snapshot, restore):
            arguments = (
                (store.path, tmp_path / "copy") if refused is snapshot else (tmp_path / "copy", store.path)
            )
            error = in_other_process(refused, *arguments)
            assert isinstance(error, IndexStoreError)
            assert (
                "expected a folder that does not exist" if refused is snapshot else f"process {os.getpid()}"
            ) in str(error)
    for target in ("index", "elsewhere"):
        sequence = restore(tmp_path / "copy", tmp_path / target)
        assert sequence == {"index": 5, "elsewhere": 4}[target]
        with IndexStore(tmp_path / target, encoders={"tok": TOK, "new": NEW}) as store:
            assert store.meta.sequence == sequence
            assert as_reader_sees(store) == expected
            assert as_reader_sees(store, "new").keys() == expected.keys()
            assert store.offset("test") == b"1"
            assert sound(store)
            assert apply(store, create(50, 0))[0].sequence == sequence + 1
            assert store.ad(50).status == "paused"


@pytest.mark.parametrize("damage", ["flip", "cut", "no manifest", "no data", "bad manifest", "other format"])
def test_a_damaged_snapshot_is_refused(tmp_path, damage):
    with empty_store(tmp_path / "index") as store:
        apply(store, create(1, 1))
        snapshot(store.path, tmp_path / "copy", environment=store.environment)
    data, manifest = tmp_path / "copy" / STORE / "data.mdb", tmp_path / "copy" / MANIFEST
    content = bytearray(data.read_bytes())
    content[9000] ^= 1
    {
        "flip": lambda: data.write_bytes(content),
        "cut": lambda: data.write_bytes(content[:-4096]),
        "no manifest": manifest.unlink,
        "no data": data.unlink,
        "bad manifest": lambda: manifest.write_text("[1"),
        "other format": lambda: manifest.write_text(
            json.dumps(json.loads(manifest.read_text()) | {"format": 9})
        ),
    }[damage]()
    with pytest.raises(IndexStoreError, match="snapshot .*copy: expected"):
        restore(tmp_path / "copy", tmp_path / "index")
    with IndexStore(tmp_path / "index") as store:
        assert store.ad(1) is not None
        assert sound(store)


def test_restore_in_place_of_a_damaged_store(tmp_path):
    with empty_store(tmp_path / "index") as store:
        apply(store, create(1, 1))
        snapshot(store.path, tmp_path / "copy", environment=store.environment)
        expected = as_reader_sees(store)
    (tmp_path / "index" / STORE / "data.mdb").write_bytes(b"nonsense" * 9000)
    assert restore(tmp_path / "copy", tmp_path / "index") > 1 << 20  # above whatever readers saw
    assert len(list((tmp_path / "index").glob("store.damaged-*"))) == 1
    with IndexStore(tmp_path / "index") as store:
        assert as_reader_sees(store) == expected
        assert sound(store)


def test_a_restore_that_dies_leaves_the_old_index(tmp_path, monkeypatch):
    with empty_store(tmp_path / "index") as store:
        snapshot(store.path, tmp_path / "copy", environment=store.environment)
        apply(store, create(1, 1))
        expected = as_reader_sees(store)

    def die():
        monkeypatch.setattr("indexer.store.backups.read_snapshot", lambda *_, **__: os._exit(9))
        restore(tmp_path / "copy", tmp_path / "index")

    process = FORK.Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == 9
    with IndexStore(tmp_path / "index") as store:
        assert as_reader_sees(store) == expected
        assert sound(store)


# Damage, full disks and crashes


def test_one_writer_at_a_time(tmp_path):
    with empty_store(tmp_path):
        with pytest.raises(IndexStoreError, match=rf"another writer holds it \(process {os.getpid()}\)"):
            IndexStore(tmp_path)
        error = in_other_process(IndexStore, tmp_path)
        assert f"process {os.getpid()}" in str(error)
    empty_store(tmp_path).close()


def edit(path: Path, table: bytes, key: bytes, value: bytes | None, **flags) -> None:
    with (
        lmdb.open(str(path / STORE), max_dbs=40) as environment,
        environment.begin(write=True) as transaction,
    ):
        database = environment.open_db(table, txn=transaction, **flags)
        transaction.delete(key, db=database)
        if value is not None:
            transaction.put(key, value, db=database)


CODES, SIDS, CHANGES = (getattr(generation_tables("tok"), n) for n in ("codes", "sids", "changes"))


def ad(number: int) -> bytes:
    return number.to_bytes(8, "big")


@pytest.mark.parametrize(
    ("table", "key", "value", "message"),
    [
        (META, INDEX_KEY, b"{no json", "expected JSON in `meta`"),
        (META, INDEX_KEY, None, "no `meta` record"),
        (META, b"counters", b'{"applied.create": -1}', "counters: applied.create is -1"),
        (META, b"counters", b"[", "unreadable counters"),
        (META, b"counters", b"{}", "dead: number 0, but the counter stands at 0"),
        (b"ads", ad(3), None, "codes: 1 of ads that the other side does not have, first ad 3"),
        (b"ads", ad(3), b"\x07" + bytes(24), "ads: 1 have an unknown status, first ad 3"),
        (b"ads", ad(3), b"\x01" + bytes(24), "tok, sids: expected 8 active ads, got 9"),
        (b"ads", ad(3), b"short", "expected 10 entries of 33 bytes"),
        (b"content", ad(77), b"{}", "content: 1 of ads that the other side does not have, first ad 77"),
        (CODES, ad(3), None, "ads without codes: 1 of ads that the other side does not have, first ad 3"),
        (CODES, ad(3), np.array([3, 2, 9], "<i4").tobytes(), "tok, codes: 1 not below .* first ad 3"),
        (CODES, ad(3), np.array([0, 0, 0], "<i4").tobytes(), "tok, sids: .* rows differ from codes"),
        (CHANGES, ad(2), None, "ads of base 1 and change log are not those of the store"),
        (CHANGES, ad(9), bytes(22), "row set 9 is outside of the log"),
        (WAITING, ad(50), None, "dead: 0 should wait, but is not in waiting"),
        (WAITING, ad(51), ad(0), "waiting: ad 51 names dead letter 0"),
        (DEAD, ad(0), None, "waiting: ad 50 names dead letter 0"),
        (DEAD, ad(0), b"[]", "dead letter 0: unreadable"),
    ],
)
def test_verify_names_what_is_wrong(tmp_path, table, key, value, message):
    with empty_store(tmp_path) as store:
        apply(store, *(create(i, 1) for i in range(10)), AdEvent("pause", 9, 2), AdEvent("pause", 50, 1))
    assert verify(tmp_path) == []
    edit(tmp_path, table, key, value)
    problems = verify(tmp_path)
    assert any(re.search(message, problem) for problem in problems), problems


def test_verify_reads_the_base_and_the_reverse_table(tmp_path):
    with empty_store(tmp_path) as store:
        load(store)
    flags = {"dupsort": True, "dupfixed": True}
    with lmdb.open(str(tmp_path / STORE), max_dbs=40) as environment, environment.begin() as transaction:
        key, value = next(
            iter(transaction.cursor(environment.open_db(SIDS, txn=transaction, create=False, **flags)))
        )
    edit(tmp_path, SIDS, key, ad(int.from_bytes(value, "big") + 1), **flags)
    assert "sids" in verify(tmp_path)[0]
    with empty_store(tmp_path) as store:
        load(store)
        file = base_folder(tmp_path, "tok", sequence=store.meta.sequence) / "ad_keys.npy"
    keys = np.load(file)
    keys[3] ^= 1
    np.save(file, keys)
    assert verify(tmp_path) == ["tok: SIDs of base 3 and change log are not those of the store"]
    file.unlink()
    assert "expected a readable base" in verify(tmp_path)[0]
    shutil.rmtree(tmp_path / STORE)
    assert "expected a built index" in verify(tmp_path)[0]


def opens(path: Path) -> str:
    try:
        IndexStore(path).close()
    except IndexStoreError as error:
        return str(error)
    return ""


def test_flipped_bytes_in_the_meta_record(tmp_path):
    with empty_store(tmp_path) as store:
        apply(store, create(1, 1))
        good = store.meta.encode()
    generator = random.Random(0)
    refused = 0
    for _ in range(60):
        bad = bytearray(good)
        bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
        edit(tmp_path, META, INDEX_KEY, bytes(bad))
        message = opens(tmp_path)
        assert not message or str(tmp_path) in message
        refused += bool(message)
    assert refused > 30


@pytest.mark.parametrize("keep", [100, 9000, -4096])
def test_a_truncated_file_is_an_error_and_not_a_crash(tmp_path, keep):
    with empty_store(tmp_path) as store:
        load(store)
    file = tmp_path / STORE / "data.mdb"
    file.write_bytes(file.read_bytes()[:keep])
    message = in_other_process(opens, tmp_path)
    assert str(tmp_path) in str(message)
    assert verify(tmp_path) != []


def test_an_overwritten_file(tmp_path):
    empty_store(tmp_path).close()
    (tmp_path / STORE / "data.mdb").write_bytes(b"nonsense" * 9000)
    with pytest.raises(IndexStoreError, match="LMDB cannot open it"):
        IndexStore(tmp_path)
    assert "LMDB cannot open it" in verify(tmp_path)[0]


def apply_until_refused(store: IndexStore) -> tuple[int, str]:
    """Number and error of the first batch that was refused."""
    for number in range(10_000):
        try:
            apply(store, create(number, 1, "x" * 500), create(number + 20_000, 1), offset=number)
        except IndexStoreError as error:
            return number, str(error)
    raise AssertionError("never full")


def test_a_full_map_keeps_what_was_there(tmp_path):
    with empty_store(tmp_path, map_size=400_000) as store:
        number, message = apply_until_refused(store)
        assert "it has its 400000 bytes; open it with a larger map_size" in message
        assert number > 10
        assert store.offset("test") == str(number - 1).encode()
        assert (store.ad(number), store.ad(number + 20_000)) == (None, None)
        assert len(as_reader_sees(store)) == 2 * number
        assert store.counters()["applied.create"] == 2 * number
        assert sound(store)
    with IndexStore(tmp_path, encoders={"tok": TOK}) as store:
        assert results(apply(store, create(number, 1, "x" * 500), offset=number)) == ["applied"]
        assert sound(store)


def fill_the_disk(path: Path) -> int:
    """Batches that were acknowledged before the file could not grow any more."""
    with IndexStore(path, encoders={"tok": TOK}) as store:
        limit = (path / STORE / "data.mdb").stat().st_size + 200_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        number, message = apply_until_refused(store)
        assert "free disk space" in message
        return number


def test_a_full_disk_keeps_what_was_there(tmp_path):
    empty_store(tmp_path).close()
    number = in_other_process(fill_the_disk, tmp_path)
    assert isinstance(number, int), number
    assert number > 5
    with IndexStore(tmp_path, encoders={"tok": TOK}) as store:
        assert store.offset("test") == str(number - 1).encode()
        assert len(as_reader_sees(store)) == store.counters()["applied.create"] == 2 * number
        assert store.meta.sequence == number + 1
        assert (store.ad(number), store.ad(number + 20_000)) == (None, None)
        assert sound(store)
        assert results(apply(store, create(number, 1))) == ["applied"]


BATCH = 3


def crash_events(number: int) -> list[AdEvent]:
    """Batch `number` of an endless stream: every event takes effect, and each does something else."""
    kinds = ("update", "pause", "resume")
    if number < 10:
        return [create(BATCH * number + i, 0) for i in range(BATCH)]
    events = []
    for i in range(BATCH):
        kind, ad_id = kinds[(number + i) % 3], (number * 7 + i * 11) % (10 * BATCH)
        events.append(
            AdEvent(kind, ad_id, number * BATCH + i, text=str(number) if kind == "update" else None)
        )
    return events


def apply_for_ever(path: Path, acknowledge: int) -> None:
    with IndexStore(path, encoders={"tok": TOK}) as store:
        number = int(store.offset("test") or b"-1") + 1
        while True:
            apply(store, *crash_events(number), offset=number)
            os.write(acknowledge, number.to_bytes(8, "big"))
            number += 1


def test_killed_in_the_middle_of_applies(tmp_path):
    empty_store(tmp_path).close()
    generator, acknowledged, kills = random.Random(0), -1, 24
    for _ in range(kills):
        reading, writing = os.pipe()
        process = FORK.Process(target=apply_for_ever, args=(tmp_path, writing))
        process.start()
        os.close(writing)
        time.sleep(0.03 + 0.12 * generator.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        numbers = b""
        while chunk := os.read(reading, 1 << 16):
            numbers += chunk
        os.close(reading)
        acknowledged = max(
            acknowledged,
            int.from_bytes(numbers[len(numbers) // 8 * 8 - 8 :][:8], "big") if len(numbers) >= 8 else -1,
        )
        assert verify(tmp_path) == []
    with IndexStore(tmp_path, encoders={"tok": TOK}) as store:
        last = int(store.offset("test"))
        assert last >= acknowledged > kills
        counters = store.counters()
        assert sum(n for name, n in counters.items() if name.startswith("applied")) == BATCH * (last + 1)
        assert counters.keys() <= {f"applied.{k}" for k in ("create", "update", "pause", "resume")}
        assert store.meta.sequence == last + 2
        seen = as_reader_sees(store)
    with empty_store(tmp_path / "whole", sync=False) as store:
        for number in range(last + 1):
            apply(store, *crash_events(number), offset=number)
        assert as_reader_sees(store) == seen


def test_killed_in_the_middle_of_builds(tmp_path):
    with IndexStore(tmp_path) as store:
        contents = [load(store, seed, 3000) for seed in range(2)]

    def build_for_ever():
        with IndexStore(tmp_path) as store:
            while True:
                for seed in range(2):
                    load(store, seed, 3000)

    for number in range(8):
        process = FORK.Process(target=build_for_ever)
        process.start()
        time.sleep(0.08 + number * 0.015)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert verify(tmp_path) == []
        with IndexStore(tmp_path) as store:
            assert as_reader_sees(store) in contents


# Commands


def run_command(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["indexer", *map(str, arguments)])
    command.main()
    return capsys.readouterr().out


def tables_of_ads(folder: Path, **content) -> dict:
    ads = {"ad_id": [1, 2], "status": ["active", "paused"]} | content
    pl.DataFrame(ads).write_parquet(folder / "ads.parquet")
    pl.DataFrame({"ad_id": [2, 1], "s1": [3, 0], "s2": [0, 1], "s3": [0, 2]}).write_parquet(
        folder / "sids.parquet"
    )
    files = {"ads": folder / "ads.parquet", "sids": folder / "sids.parquet", "out": folder / "index"}
    return files | {"level_sizes": SIZES, "tokenizer_id": "tok"}


def test_build_command(tmp_path):
    arguments = tables_of_ads(tmp_path)
    assert command.build(**arguments) == 1
    with IndexStore(tmp_path / "index") as store:
        assert as_reader_sees(store) == {1: (True, (0, 1, 2)), 2: (False, (3, 0, 0))}
        assert store.ad(1).content is None
    content = {
        "account_id": ["a", "b"],
        "conversion_type": ["c", "d"],
        "text": ["e", "é"],
        "item_id": ["x", "y"],
    }
    assert command.build(**tables_of_ads(tmp_path, **content)) == 2
    with IndexStore(tmp_path / "index") as store:
        assert store.ad(2).content == {"account_id": "b", "conversion_type": "d", "text": "é"}
    pl.DataFrame({"ad_id": [1], "s1": [0], "s2": [1], "s3": [2]}).write_parquet(tmp_path / "sids.parquet")
    with pytest.raises(ValueError, match="expected a SID for every ad .* 1 have none, first ad_id 2"):
        command.build(**arguments)


def test_commands(tmp_path, monkeypatch, capsys):
    content = {name: ["x", "y"] for name in ("account_id", "conversion_type", "text")}
    command.build(**tables_of_ads(tmp_path, **content))
    index = tmp_path / "index"

    def run(*arguments):
        return run_command(monkeypatch, capsys, *arguments)

    assert run("set-status", "--index", index, "--status", "active", 2, 1, 2) == "index version 2\n"
    with IndexStore(index) as store:
        assert as_reader_sees(store) == {1: (True, (0, 1, 2)), 2: (True, (3, 0, 0))}
        assert store.ad(2).status_version == 1
        apply(store, AdEvent("pause", 7, 1), create(8, 1))
    with pytest.raises(SystemExit, match="error: expected ads that are in the index, got unknown ad 12345"):
        run("set-status", "--index", index, "--status", "paused", 1, 12345)
    text = run("stats", "--index", index)
    assert "version 2, 2 ads known, 2 with content, 2 dead letters" in text
    assert f"tokenizer tok, levels {SIZES}, 2 ads, 2 active on 2 SIDs, base 1, 1 transactions since" in text
    assert "applied.resume 2" in text
    assert "is sound" in run("verify", "--index", index)
    assert run("compact", "--index", index) == "tokenizer tok: base 2\n"
    assert "version 2, 2 ads" in run("snapshot", "--index", index, "--out", tmp_path / "copy")
    letters = [json.loads(line) for line in run("dead-letters", "list", "--index", index).splitlines()]
    assert [(x["number"], x["reason"]) for x in letters] == [(0, "unknown_ad"), (1, "no_encoder")]
    assert len(run("dead-letters", "list", "--index", index, "--limit", 1).splitlines()) == 1
    assert run("dead-letters", "replay", "--index", index, "--all") == "0 applied, 0 stale, 2 rejected\n"
    assert run("dead-letters", "drop", "--index", index, "--number", 0) == "1 dropped\n"
    assert run("restore", "--snapshot", tmp_path / "copy", "--index", index) == "index version 3\n"
    assert len(run("dead-letters", "list", "--index", index).splitlines()) == 2
    edit(index, b"content", ad(9), b"{}")
    with pytest.raises(SystemExit, match="1 problems in"):
        run("verify", "--index", index)


def test_a_generation_is_dropped_by_command(tmp_path, monkeypatch, capsys):
    old, new = FakeEncoder("old"), FakeEncoder("new")
    empty_store(tmp_path, old, new).close()
    assert run_command(monkeypatch, capsys, "drop-generation", "--index", tmp_path, "old") == (
        "tokenizer old: dropped, left: new\n"
    )
    with IndexStore(tmp_path) as store:
        assert list(store.meta.generations) == ["new"]
    with pytest.raises(SystemExit, match="new is the only generation that is ready"):
        run_command(monkeypatch, capsys, "drop-generation", "--index", tmp_path, "new")


@pytest.mark.parametrize(
    "arguments",
    [
        ("set-status", "--status", "paused", "1"),
        ("compact",),
        ("dead-letters", "replay", "--all"),
        ("dead-letters", "drop", "--all"),
        ("drop-generation", "tok"),
    ],
)
def test_commands_that_write_name_who_holds_the_index(tmp_path, monkeypatch, capsys, arguments):
    with empty_store(tmp_path), pytest.raises(SystemExit, match=rf"process {os.getpid()}\); stop it first"):
        run_command(monkeypatch, capsys, *arguments, "--index", tmp_path)
