"""String ids in the index: an ad keeps its key, and two keys of one id are refused."""

import json
import sys
import zlib

import numpy as np
import polars as pl
import pytest

from indexer.__main__ import main
from indexer.commands.build import build as build_from_tables
from indexer.events.parse import parse_event
from indexer.store.backups import back_up, restore
from indexer.store.forgetting import forget_deleted
from indexer.store.incoming import Incoming
from indexer.store.transaction import read_store
from indexer.store.verify import find_problems, verify
from indexer.store.views import read_key
from serving.index.ad_keys import AdKeys
from serving.index.layout import DEAD, KEYS, META, ad_key, open_environment
from serving.keys import id_of
from tests.index_store import SIZES, FakeEncoder, empty_store, load, open_store, results, sound
from tests.other_process import in_other_process

CONTENT = {"account_id": "a", "conversion_type": "buy", "text": "shoes"}


def send(store, *events):
    raw = [json.dumps(event, ensure_ascii=False).encode() for event in events]
    return store.apply([Incoming(parse_event(r), r, "test") for r in raw])


def create(ad, version=1):
    return {"kind": "create", "ad_id": ad, "version": version, **CONTENT}


def pause(ad, version=2):
    return {"kind": "pause", "ad_id": ad, "version": version}


@pytest.fixture
def small_ids(monkeypatch):
    """Ids of three bits, so that keys collide."""
    monkeypatch.setattr("serving.keys._BITS", 7)


def colliding():
    """Two keys of one id, under `small_ids`."""
    first = "key 0"
    return first, next(f"key {i}" for i in range(1, 1000) if id_of(f"key {i}") == id_of(first))


KEYS_OF_ALL_KINDS = ["shoes-17", "17", "обувь 👟", " ", "a/b?c=d&e", "k" * 256, "\x00"]


def test_an_ad_keeps_the_key_that_its_events_name(tmp_path):
    index = tmp_path / "index"
    with empty_store(index) as store:
        assert results(send(store, *map(create, KEYS_OF_ALL_KINDS))) == ["applied"] * 7
        assert results(send(store, pause("17"), pause(17))) == ["applied", "unknown_ad"]
        assert store.ad(id_of("17")).status == "paused"
        assert results(send(store, create(17))) == ["applied"]  # an ad of its own, and what waited for it
        for key in KEYS_OF_ALL_KINDS:
            assert store.ad(id_of(key)).key == key
        assert store.ad(17).key is None
        near = store.neighbours(id_of("17"), "tok", limit=20)
        assert {n.key for n in near} <= {*KEYS_OF_ALL_KINDS, None}
        assert sound(store)
    keys = AdKeys(index)
    try:
        found = keys.of([id_of("обувь 👟"), -1, 17, 5, id_of("\x00")])
    finally:
        keys.close()
    assert [key.decode() for key in found] == ["обувь 👟", "", "", "", "\x00"]


def test_a_number_is_as_good_as_the_key_it_stands_for(tmp_path):
    with empty_store(tmp_path) as store:
        send(store, create("shoes"))
        assert results(send(store, pause(id_of("shoes")))) == ["applied"]
        assert (store.ad(id_of("shoes")).status, store.ad(id_of("shoes")).key) == ("paused", "shoes")
        send(store, create(id_of("boots")))
        assert store.ad(id_of("boots")).key is None
        assert results(send(store, pause("boots"))) == ["applied"]  # now it is known
        assert store.ad(id_of("boots")).key == "boots"
        assert sound(store)


def test_two_keys_of_one_id_are_a_dead_letter_that_names_both(tmp_path, small_ids):
    first, second = colliding()
    with empty_store(tmp_path) as store:
        send(store, create(first))
        outcomes = send(store, create(second, 5), pause(second, 6))
        assert results(outcomes) == ["key_collision"] * 2
        for outcome in outcomes:
            assert repr(first) in outcome.message
            assert repr(second) in outcome.message
        assert (store.ad(id_of(first)).key, store.ad(id_of(first)).status) == (first, "active")
        assert [x.reason for x in store.dead_letters()] == ["key_collision"] * 2
        assert not any(letter.waiting for letter in store.dead_letters())
        assert results(store.replay()) == ["key_collision"] * 2
        assert sound(store)


def test_of_two_keys_in_one_batch_the_first_is_in(tmp_path, small_ids):
    first, second = colliding()
    with empty_store(tmp_path) as store:
        assert results(send(store, pause(second, 9), create(first), create(second))) == [
            "key_collision",  # it waited for an ad of that id, which is another's
            "applied",
            "key_collision",
        ]
        assert sound(store)


def test_waiting_events_find_their_ad_by_key(tmp_path):
    with empty_store(tmp_path) as store:
        assert results(send(store, pause("shoes", 3))) == ["unknown_ad"]
    with open_store(tmp_path, FakeEncoder()) as store:
        assert results(send(store, create("shoes"))) == ["applied"]
        assert store.ad(id_of("shoes")).status == "paused"
        assert store.dead_letters() == []
        assert sound(store)


def test_a_forgotten_ad_has_no_key(tmp_path):
    with empty_store(tmp_path, now=lambda: 1000.0) as store:
        send(store, create("shoes"), {"kind": "delete", "ad_id": "shoes", "version": 2})
        forget_deleted(store.file, before=2000.0)
        with store.file.read() as reading:
            assert read_key(reading, id_of("shoes")) is None
        assert sound(store)


def loaded(store, keys):
    ids = np.array([id_of(key) for key in keys], np.int64)
    sids = np.zeros((len(ids), 3), np.int32)
    return store.build("tok", SIZES, ad_ids=ids, sids=sids, statuses=np.full(len(ids), "active"), keys=keys)


def test_bulk_load(tmp_path):
    with open_store(tmp_path) as store:
        loaded(store, KEYS_OF_ALL_KINDS)
        assert [store.ad(id_of(key)).key for key in KEYS_OF_ALL_KINDS] == KEYS_OF_ALL_KINDS
        assert sound(store)
        with pytest.raises(ValueError, match="expected its key, got 'b', which is of ad"):
            store.build(
                "tok",
                SIZES,
                ad_ids=np.array([id_of("a")]),
                sids=np.zeros((1, 3), np.int32),
                statuses=np.array(["active"]),
                keys=["b"],
            )
        with pytest.raises(ValueError, match="expected keys of 2 ads, got 1"):
            store.build(
                "tok",
                SIZES,
                ad_ids=np.array([1, 2]),
                sids=np.zeros((2, 3), np.int32),
                statuses=np.array(["active"] * 2),
                keys=["b"],
            )
        assert store.ad(id_of("17")).key == "17"  # the old content stays
        load(store)  # ads of numbers in their place
        with store.file.read() as reading:
            assert reading.entries(reading.tables.keys) == 0
        assert sound(store)


def test_verify_compares_keys_with_their_ads(tmp_path):
    with open_store(tmp_path) as store:
        loaded(store, ["a", "b"])
        with store.file.write() as writing:
            writing.txn.put(ad_key(id_of("a")), b"c", db=writing.tables.keys)
            writing.txn.put(ad_key(5), b"\xff", db=writing.tables.keys)
        with store.file.read() as reading:
            problems = "\n".join(find_problems(reading))
    assert f"ad {id_of('a')} has the key b'c', which is of ad {id_of('c')}" in problems
    assert "keys: ad 5: 'utf-8' codec can't decode" in problems


def without_keys(index):
    """As it lay on disk before there were keys: no such table, and no checksum of it."""
    environment = open_environment(index, readonly=False)
    with environment.begin(write=True) as txn:
        txn.drop(environment.open_db(KEYS, txn=txn))
        meta = environment.open_db(META, txn=txn)
        text = bytes(txn.get(b"digests", db=meta)).rpartition(b" ")[0]
        digests = json.loads(text)
        assert digests.pop("keys") == 0
        text = json.dumps(digests, sort_keys=True).encode()
        txn.put(b"digests", b"%b %d" % (text, zlib.crc32(text)), db=meta)
        assert txn.get(KEYS) is None
        assert txn.get(DEAD) is not None
    environment.close()


def test_an_index_from_before_there_were_keys(tmp_path):
    index = tmp_path / "index"
    with empty_store(index) as store:
        send(store, create(7))
    without_keys(index)
    assert verify(index) == []
    with read_store(index) as reading:
        assert read_key(reading, 7) is None
    keys = AdKeys(index)
    assert keys.of([7, -1]) == [b"", b""]
    keys.close()
    back_up(index, tmp_path / "backup")
    with open_store(index, FakeEncoder()) as store:
        assert sound(store)
        assert store.ad(7).key is None
        assert results(send(store, create("shoes"))) == ["applied"]
        assert sound(store)
    restore(tmp_path / "backup", index)
    assert verify(index) == []
    with open_store(index, FakeEncoder()) as store:
        assert store.ad(id_of("shoes")) is None
        assert results(send(store, create("boots"))) == ["applied"]
        assert sound(store)


def test_a_backup_holds_the_keys(tmp_path):
    with open_store(tmp_path / "index") as store:
        loaded(store, KEYS_OF_ALL_KINDS)
    back_up(tmp_path / "index", tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "other")
    assert verify(tmp_path / "other") == []
    with open_store(tmp_path / "other") as store:
        assert [store.ad(id_of(key)).key for key in KEYS_OF_ALL_KINDS] == KEYS_OF_ALL_KINDS


def test_a_reader_sees_new_keys_while_the_writer_writes(tmp_path):
    with empty_store(tmp_path) as store:
        send(store, create("shoes"))
        assert in_other_process(_keys_of, str(tmp_path), [id_of("shoes")]) == [b"shoes"]


def _keys_of(path, ad_ids):
    keys = AdKeys(path)
    try:
        return keys.of(ad_ids)
    finally:
        keys.close()


def run_command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["indexer", *map(str, arguments)])
    main()
    return capsys.readouterr().out


def test_commands(tmp_path, monkeypatch, capsys):
    ids = [id_of("17"), id_of("обувь")]
    ads = {"ad_id": ids, "status": ["active", "paused"], **{n: [v, v] for n, v in CONTENT.items()}}
    pl.DataFrame(ads).write_parquet(tmp_path / "ads.parquet")
    codes = {"s1": [0, 1], "s2": [0, 1], "s3": [0, 1]}
    pl.DataFrame({"ad_id": ids, **codes}).write_parquet(tmp_path / "sids.parquet")
    (tmp_path / "keys").mkdir()
    pl.DataFrame({"key": ["обувь", "17"], "ad_id": ids[::-1]}).write_parquet(tmp_path / "keys/ads.parquet")
    index = tmp_path / "index"
    files = {"ads": tmp_path / "ads.parquet", "sids": tmp_path / "sids.parquet", "out": index}
    build_from_tables(**files, level_sizes=SIZES, tokenizer_id="tok")

    def run(*arguments):
        return run_command(monkeypatch, capsys, *arguments)

    shown = json.loads(run("show", "--index", index, "--key", "обувь"))
    assert (shown["ad_id"], shown["key"], shown["status"]) == (ids[1], "обувь", "paused")
    assert json.loads(run("show", "--index", index, ids[0]))["key"] == "17"
    for unknown in (("17",), ("--key", "shoes"), ("--key", "")):
        with pytest.raises(SystemExit, match="expected an ad that is in the index|expected 1 to 256"):
            run("show", "--index", index, *unknown)
    run("set-status", "--index", index, "--status", "paused", "--key", "17")
    assert json.loads(run("show", "--index", index, "--key", "17"))["status"] == "paused"
    with pytest.raises(SystemExit, match="got unknown ad 'shoes'"):
        run("set-status", "--index", index, "--status", "paused", "--key", "17", "--key", "shoes")
    with pytest.raises(SystemExit, match="expected ad ids or --key, got none"):
        run("set-status", "--index", index, "--status", "paused")
    assert "2 ads with keys" in run("stats", "--index", index)
    assert "is sound" in run("verify", "--index", index)
    assert run("export", "--index", index, "--out", tmp_path / "all.parquet").endswith(": 2 ads\n")
    table = pl.read_parquet(tmp_path / "all.parquet").sort("key")
    assert table["key"].to_list() == ["17", "обувь"]
    assert table["ad_id"].to_list() == ids
    assert table["text"].to_list() == ["shoes", "shoes"]
    pl.DataFrame({"key": ["17"], "ad_id": ids[:1]}).write_parquet(tmp_path / "keys/ads.parquet")
    with pytest.raises(ValueError, match=f"expected a key for every ad .* 1 have none, first ad_id {ids[1]}"):
        build_from_tables(**files, level_sizes=SIZES, tokenizer_id="tok")
