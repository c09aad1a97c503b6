"""Damaged tables and files, a full map and a full disk: named, refused, never half applied."""

import os
import random
import re
import resource
import shutil
from pathlib import Path

import lmdb
import numpy as np
import pytest

from indexer.store.index_store import IndexStore
from indexer.store.verify import verify
from serving.index.layout import (
    DEAD,
    INDEX_KEY,
    META,
    STORE,
    WAITING,
    IndexStoreError,
    base_folder,
    generation_tables,
)
from tests.index_store import (
    FakeEncoder,
    apply,
    as_reader_sees,
    create,
    empty_store,
    load,
    pause,
    results,
    sound,
)
from tests.other_process import in_other_process

TOK = FakeEncoder("tok")


def test_one_writer_at_a_time(tmp_path):
    with empty_store(tmp_path):
        with pytest.raises(IndexStoreError, match=rf"another writer holds it \(process {os.getpid()}\)"):
            IndexStore(tmp_path)
        assert f"process {os.getpid()}" in in_other_process(opens, tmp_path)
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


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Ten ads, one of them paused, and an event that waits."""
    path = tmp_path_factory.mktemp("built") / "index"
    with empty_store(path) as store:
        apply(store, *(create(i, 1) for i in range(10)), pause(9, 2), pause(50, 1))
    assert verify(path) == []
    return path


@pytest.mark.parametrize(
    ("table", "key", "value", "message"),
    [
        (META, INDEX_KEY, b"{no json", "expected JSON in `meta`"),
        (META, INDEX_KEY, None, "no `meta` record"),
        (META, b"counters", b'{"applied.create": -1}', "counters: applied.create is -1"),
        (META, b"counters", b"[", "unreadable counters"),
        (META, b"counters", b"{}", "dead: number 0, but the counter stands at 0"),
        (b"ads", ad(3), None, "codes: 1 of ads that the other side does not have, first ad 3"),
        (b"ads", ad(3), b"\x07" + bytes(36), "ads: 1 have an unknown status, first ad 3"),
        (b"ads", ad(3), b"\x01" + bytes(36), "tok, sids: expected 8 active ads, got 9"),
        (b"ads", ad(3), b"short", "expected 10 entries of 45 bytes"),
        (b"content", ad(77), b"{}", "content: 1 of ads that the other side does not have, first ad 77"),
        (CODES, ad(3), None, "ads without codes: 1 of ads that the other side does not have, first ad 3"),
        (CODES, ad(3), np.array([3, 2, 9], "<i4").tobytes(), "tok, codes: 1 not below .* first ad 3"),
        (CODES, ad(3), np.array([0, 0, 0], "<i4").tobytes(), "tok, sids: .* rows differ from codes"),
        (CHANGES, ad(2), None, "ads of base 1 and change log are not those of the store"),
        (CHANGES, ad(9), bytes(34), "row set 9 is outside of the log"),
        (WAITING, ad(50), None, "dead: 0 should wait, but is not in waiting"),
        (WAITING, ad(51), ad(0), "waiting: ad 51 names dead letter 0"),
        (DEAD, ad(0), None, "waiting: ad 50 names dead letter 0"),
        (DEAD, ad(0), b"[]", "dead letter 0: unreadable"),
    ],
)
def test_verify_names_what_is_wrong(built, tmp_path, table, key, value, message):
    shutil.copytree(built, tmp_path / "index")
    edit(tmp_path / "index", table, key, value)
    problems = verify(tmp_path / "index")
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


def test_a_truncated_file_is_an_error_and_not_a_crash(tmp_path):
    with empty_store(tmp_path) as store:
        load(store)
    file = tmp_path / STORE / "data.mdb"
    whole = file.read_bytes()
    for keep in (100, 9000, -4096):
        file.write_bytes(whole[:keep])
        assert str(tmp_path) in in_other_process(opens, tmp_path)
        assert in_other_process(verify, tmp_path) != []


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
    with empty_store(tmp_path, map_size=400_000, sync=True) as store:
        number, message = apply_until_refused(store)
        assert "it has its 400000 bytes; open it with a larger map_size" in message
        assert number > 10
        assert store.offset("test") == str(number - 1).encode()
        assert (store.ad(number), store.ad(number + 20_000)) == (None, None)
        assert len(as_reader_sees(store)) == 2 * number
        assert store.file.counters["applied.create"] == 2 * number
        assert sound(store)
    with IndexStore(tmp_path, encoders=[TOK]) as store:
        assert results(apply(store, create(number, 1, "x" * 500), offset=number)) == ["applied"]
        assert sound(store)


def fill_the_disk(path: Path) -> int:
    """Batches that were acknowledged before the file could not grow any more."""
    with IndexStore(path, encoders=[TOK]) as store:
        limit, unlimited = (path / STORE / "data.mdb").stat().st_size + 200_000, resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited))
        try:
            number, message = apply_until_refused(store)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
        assert "free disk space" in message
        return number


def test_a_full_disk_keeps_what_was_there(tmp_path):
    empty_store(tmp_path).close()
    number = in_other_process(fill_the_disk, tmp_path)
    assert number > 5
    with IndexStore(tmp_path, encoders=[TOK]) as store:
        assert store.offset("test") == str(number - 1).encode()
        assert len(as_reader_sees(store)) == store.file.counters["applied.create"] == 2 * number
        assert store.meta.sequence == number + 1
        assert (store.ad(number), store.ad(number + 20_000)) == (None, None)
        assert sound(store)
        assert results(apply(store, create(number, 1))) == ["applied"]


def test_what_was_committed_counts_though_the_file_cannot_be_made_whole(tmp_path, monkeypatch):
    """LMDB leaves out pages at the end that a transaction took and gave back; the store adds them."""
    refused = []

    def refuse(*arguments):
        refused.append(arguments)
        raise OSError("File too large")

    with empty_store(tmp_path, map_size=1 << 26) as store:
        monkeypatch.setattr(os, "truncate", refuse)
        for number in range(200):
            outcome = apply(store, create(number, 0, "x" * max(1, 4096 * (number % 7))))[0]
            assert (outcome.result, outcome.sequence) == ("applied", store.meta.sequence)
            with store.file.write() as writing:
                writing.txn.put(b"page", bytes(4096 * (number % 5)), db=store.file.tables.content)
                writing.txn.delete(b"page", db=store.file.tables.content)
        expected = load(store, seed=1)
        assert refused
        assert as_reader_sees(store) == expected  # from its base, which was not taken away again
        monkeypatch.undo()
        apply(store, create(999, 1))
        assert sound(store)
    assert verify(tmp_path) == []
