"""Events of the store: what each does to its ad, what waits, what becomes a dead letter."""

import hashlib

import numpy as np
import pytest

from indexer.events.error import EventError
from indexer.sidecar.samples import store_samples
from indexer.store.dead_letters import MAX_WAITING, RAW_BYTES
from indexer.store.incoming import Incoming
from indexer.store.index_store import IndexStore
from indexer.store.views import Neighbour
from serving.index.layout import IndexStoreError
from tests.index_store import (
    FakeEncoder,
    apply,
    as_reader_sees,
    build,
    create,
    delete,
    empty_store,
    open_store,
    pause,
    results,
    resume,
    reverse_table,
    sound,
    update,
)

TOK = FakeEncoder("tok")


def sid(ad_id: int, text: str = "text", account_id: str = "a") -> tuple[int, ...]:
    return TOK.sid(ad_id, account_id, "buy", text)


@pytest.fixture
def store(tmp_path):
    with empty_store(tmp_path / "index") as opened:
        yield opened


def test_the_life_of_an_ad(store):
    assert results(apply(store, create(7, 1))) == ["applied"]
    assert as_reader_sees(store) == {7: (True, sid(7))}
    apply(store, pause(7, 2))
    assert as_reader_sees(store) == {7: (False, sid(7))}
    assert reverse_table(store) == set()
    apply(store, update(7, 3, text="other"))  # paused ads move as well
    assert as_reader_sees(store) == {7: (False, sid(7, "other"))}
    apply(store, resume(7, 4))
    assert reverse_table(store) == {(sid(7, "other"), 7)}
    apply(store, delete(7, 5))
    assert as_reader_sees(store) == {7: (False, sid(7, "other"))}
    apply(store, create(7, 6, "third"))
    assert as_reader_sees(store) == {7: (True, sid(7, "third"))}
    view = store.ad(7)
    assert (view.status, view.status_version, view.content_version) == ("active", 6, 6)
    assert view.content == {"account_id": "a", "conversion_type": "buy", "text": "third"}
    assert store.ad(8) is None
    assert sound(store)


def test_what_is_known_already_is_stale_and_leaves_the_sequence(store):
    events = [create(1, 5), pause(1, 6), update(1, 7, text="x")]
    assert results(apply(store, *events)) == ["applied"] * 3
    sequence, view = store.meta.sequence, store.ad(1)
    again = apply(store, *events, *events, update(1, 6, account_id="other"), resume(1, 5))
    assert results(again) == ["stale"] * 8
    assert {o.sequence for o in again} == {sequence} == {store.meta.sequence}
    assert store.ad(1) == view
    assert store.file.counters["stale.create"] == 2
    assert store.dead_letters() == []


def test_a_transaction_counts_once_and_logs_only_what_readers_see(store):
    apply(store, create(1, 1), create(2, 1), pause(2, 2))
    assert store.meta.sequence == 2
    assert store.file.log_rows == {"tok": 2}
    apply(store, delete(2, 3))  # paused before, so readers see no change
    assert (store.meta.sequence, store.file.log_rows) == (3, {"tok": 2})
    apply(store, update(2, 4, text="text"))  # the same content, the same SID
    assert (store.meta.sequence, store.file.log_rows) == (4, {"tok": 2})
    apply(store, pause(9, 1), offset=3)
    assert (store.meta.sequence, store.offset("test")) == (4, b"3")
    assert sound(store)


def test_one_call_of_the_encoder_a_batch(tmp_path):
    encoder = FakeEncoder()
    with empty_store(tmp_path, encoder) as store:
        updates = [update(i, 2, text="later") for i in range(3)]
        apply(store, *(create(i, 1) for i in range(5)), *updates, pause(4, 2))
    assert encoder.calls == [[0, 1, 2, 3, 4]]


def test_texts_without_a_known_word_are_counted(store):
    apply(store, create(1, 1, "unheard-of"), create(2, 1, "text"), create(3, 1, "unheard-of, too"))
    assert store.file.counters["unknown_text.tok"] == 2
    apply(store, update(2, 2, text="unheard-of"), update(1, 2, account_id="b"), pause(3, 2))
    assert store.file.counters["unknown_text.tok"] == 4  # encoded anew, with its old text
    samples = {(name, *labels.values()): value for name, _, labels, value in store_samples(store.file)}
    assert samples["unknown_texts_total", "tok"] == 4


def test_events_that_come_too_early_wait(store):
    early = apply(store, pause(1, 5), update(1, 4, text="new"), delete(1, 3))
    assert results(early) == ["unknown_ad"] * 3
    assert [(x.reason, x.waiting) for x in store.dead_letters()] == [("unknown_ad", True)] * 3
    assert store.meta.sequence == 1
    assert results(apply(store, create(1, 1))) == ["applied"]
    assert store.ad(1).status == "paused"
    assert store.ad(1).content["text"] == "new"
    assert as_reader_sees(store) == {1: (False, sid(1, "new"))}
    assert store.dead_letters() == []
    counters = store.file.counters
    assert (counters["recovered.pause"], counters["recovered.update"]) == (1, 1)
    assert sound(store)


def test_waiting_updates_are_applied_in_version_order(store):
    for event in (update(1, 4, text="new"), update(1, 3, account_id="b")):
        apply(store, event)
    apply(store, update(1, 5, conversion_type="sell"))
    apply(store, create(1, 1))
    assert store.ad(1).content == {"account_id": "b", "conversion_type": "sell", "text": "new"}
    assert store.dead_letters() == []


def test_a_create_that_overtakes_the_delete_waits(store):
    apply(store, create(1, 1))
    assert results(apply(store, create(1, 3, "again"))) == ["duplicate_create"]
    assert store.ad(1).content["text"] == "text"
    assert results(apply(store, delete(1, 2))) == ["applied"]
    assert store.ad(1).status == "active"
    assert store.ad(1).content["text"] == "again"
    assert store.dead_letters() == []


def test_an_event_that_waits_only_within_its_batch_was_applied(store):
    assert results(apply(store, pause(1, 2), create(1, 1))) == ["applied", "applied"]
    counters = store.file.counters
    assert counters["applied.pause"] == 1
    assert "rejected.unknown_ad" not in counters
    assert store.dead_letters() == []


def test_redelivery_of_a_waiting_event_adds_no_dead_letter(store):
    for _ in range(3):
        assert results(apply(store, pause(1, 2))) == ["unknown_ad"]
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
        assert store.file.counters == {"dead_letters": 1, "rejected.invalid_json": 1}
        assert store.meta.sequence == 1


def test_unknown_accounts_are_tried_again_on_demand(tmp_path):
    with empty_store(tmp_path, accounts={"a"}) as store:
        assert results(apply(store, create(1, 1), create(2, 1, account_id="b"))) == [
            "applied",
            "unknown_account",
        ]
        assert results(apply(store, update(1, 2, account_id="b"))) == ["unknown_account"]
        assert results(apply(store, update(1, 3, text="x"))) == ["applied"]
        assert results(store.replay()) == ["unknown_account"] * 1 + ["stale"]
    with open_store(tmp_path, TOK, accounts={"a", "b"}) as store:
        (letter,) = store.dead_letters()
        assert results(store.replay([letter.number])) == ["applied"]
        assert as_reader_sees(store) == {1: (True, sid(1, "x")), 2: (True, sid(2, account_id="b"))}
        assert store.dead_letters() == []
        with pytest.raises(ValueError, match="expected the number of a dead letter, got 77"):
            store.replay([77])


def test_without_an_encoder_only_the_status_changes(tmp_path):
    with empty_store(tmp_path) as store:
        apply(store, create(1, 1), pause(2, 9))
    with open_store(tmp_path) as store:
        early = update(3, 2, text="x")
        outcomes = apply(store, create(2, 1), update(1, 2, text="x"), pause(1, 2), early)
        assert results(outcomes) == ["no_encoder", "no_encoder", "applied", "unknown_ad"]
        assert "expected an encoder of tok, got none" in outcomes[0].message
        assert as_reader_sees(store) == {1: (False, sid(1))}
        assert sound(store)
    with open_store(tmp_path, TOK) as store:
        store.replay()
        assert as_reader_sees(store) == {1: (False, sid(1, "x")), 2: (False, sid(2))}
        assert [x.event["ad_id"] for x in store.dead_letters()] == [3]


def test_ads_with_given_sids_need_their_whole_content(store):
    build(store, {1: ((0, 1, 2), "active")}, TOK)
    assert results(apply(store, update(1, 1, text="x"))) == ["no_content"]
    assert results(apply(store, pause(1, 1))) == ["applied"]
    assert as_reader_sees(store) == {1: (False, (0, 1, 2))}
    assert results(apply(store, update(1, 2, account_id="a", conversion_type="buy", text="x"))) == ["applied"]
    assert as_reader_sees(store) == {1: (False, sid(1, "x"))}


def test_the_oldest_dead_letters_make_room(tmp_path):
    with empty_store(tmp_path, max_dead_letters=3) as store:
        apply(store, *(pause(i, 1) for i in range(5)))
        assert [x.event["ad_id"] for x in store.dead_letters()] == [2, 3, 4]
        assert [x.number for x in store.dead_letters(after=2, limit=1)] == [3]
        assert store.file.counters["dead_letters_forgotten"] == 2
        assert sound(store)
        store.drop_dead_letters([2, 4])
        assert [x.number for x in store.dead_letters()] == [3]
        assert sound(store)
        assert apply(store, create(4, 0))[0].result == "applied"
        assert store.ad(4).status == "active"  # what was dropped is not tried again


def test_one_ad_cannot_make_everything_wait(store):
    apply(store, *(pause(1, v) for v in range(1, MAX_WAITING + 10)))
    letters = store.dead_letters()
    assert (len(letters), sum(x.waiting for x in letters)) == (MAX_WAITING + 9, MAX_WAITING)
    assert sound(store)


def test_an_encoder_that_is_wrong_changes_nothing(tmp_path):
    encoder = FakeEncoder()
    with empty_store(tmp_path, encoder) as store:
        for answer, message in (
            (lambda n: 1 / 0, "failed on 1 ads, first ad 1: ZeroDivisionError"),
            (lambda n: np.zeros((n, 2), np.int32), r"expected integers \(1, 3\), got int32 \(1, 2\)"),
            (lambda n: np.zeros((n, 3)), "got float64"),
            (lambda n: np.full((n, 3), 3), r"expected codes below \(4, 3, 5\) for ad 1, got \[3, 3, 3\]"),
            (lambda n: np.full((n, 3), -1), "expected codes below"),
        ):
            encoder.encode = lambda ad_ids, contents, answer=answer: answer(len(ad_ids))
            with pytest.raises(IndexStoreError, match=message):
                apply(store, create(1, 1), offset=5)
            assert (store.ad(1), store.offset("test")) == (None, None)
            assert (store.file.counters, store.meta.sequence) == ({}, 1)
        del encoder.encode
        assert results(apply(store, create(1, 1))) == ["applied"]
        assert sound(store)


def test_encoders_must_be_those_of_the_generations(tmp_path):
    empty_store(tmp_path).close()
    with pytest.raises(IndexStoreError, match=r"expected an encoder of tok with levels .* got \(4, 3\)"):
        IndexStore(tmp_path, encoders=[FakeEncoder("tok", (4, 3))])
    empty_store(tmp_path).close()  # the refusal let go of the lock


def test_neighbours(store):
    sids = {1: (0, 1, 2), 2: (0, 1, 2), 3: (0, 1, 3), 4: (0, 2, 2), 5: (1, 1, 2), 6: (0, 1, 2)}
    build(store, {a: (s, "paused" if a == 6 else "active") for a, s in sids.items()}, TOK)
    everything = [Neighbour(2, 3), Neighbour(3, 2), Neighbour(4, 1)]
    assert store.neighbours(1, "tok") == everything
    assert store.neighbours(1, "tok", limit=2) == everything[:2]
    assert store.neighbours(6, "tok", limit=1) == [Neighbour(1, 3)]  # of a paused ad
    assert store.neighbours(9, "tok") == store.neighbours(1, "none") == []
