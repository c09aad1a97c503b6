"""Backups of a living store and back; damaged ones, damaged targets, a restore that dies."""

import json
import multiprocessing
import os

import pytest

from indexer.store.backups import MANIFEST, back_up, restore
from serving.index.layout import STORE, IndexStoreError
from tests.index_store import (
    FakeEncoder,
    apply,
    as_reader_sees,
    create,
    delete,
    empty_store,
    open_store,
    pause,
    sound,
)
from tests.other_process import in_other_process

FORK = multiprocessing.get_context("fork")
TOK, NEW = FakeEncoder("tok"), FakeEncoder("new", (7, 2))


def test_a_backup_of_a_living_store_and_back(tmp_path):
    with empty_store(tmp_path / "index", TOK, NEW) as store:
        apply(store, *(create(i, 1) for i in range(10)), pause(3, 2), pause(50, 1), offset=1)
        manifest = in_other_process(back_up, store.file.path, tmp_path / "copy")
        assert (manifest["sequence"], manifest["ads"], manifest["dead_letters"]) == (3, 10, 1)
        assert manifest["generations"] == {"new": 10, "tok": 10}
        expected = as_reader_sees(store)
        apply(store, delete(1, 9), create(99, 1), offset=2)
        with pytest.raises(IndexStoreError, match="expected a folder that does not exist"):
            in_other_process(back_up, store.file.path, tmp_path / "copy")
        with pytest.raises(IndexStoreError, match=f"process {os.getpid()}"):
            in_other_process(restore, tmp_path / "copy", store.file.path)
    for target in ("index", "elsewhere"):
        sequence = restore(tmp_path / "copy", tmp_path / target)
        assert sequence == {"index": 5, "elsewhere": 4}[target]
        with open_store(tmp_path / target, TOK, NEW) as store:
            assert store.meta.sequence == sequence
            assert as_reader_sees(store) == expected
            assert as_reader_sees(store, "new").keys() == expected.keys()
            assert store.offset("test") == b"1"
            assert sound(store)
            assert apply(store, create(50, 0))[0].sequence == sequence + 1
            assert store.ad(50).status == "paused"


def test_a_damaged_backup_is_refused(tmp_path):
    with empty_store(tmp_path / "index") as store:
        apply(store, create(1, 1))
    back_up(tmp_path / "index", tmp_path / "copy")
    data, manifest = tmp_path / "copy" / STORE / "data.mdb", tmp_path / "copy" / MANIFEST
    content, said = data.read_bytes(), manifest.read_text()
    flipped = content[:9000] + bytes([content[9000] ^ 1]) + content[9001:]
    for change in (
        lambda: data.write_bytes(flipped),
        lambda: data.write_bytes(content[:-4096]),
        data.unlink,
        manifest.unlink,
        lambda: manifest.write_text("[1"),
        lambda: manifest.write_text(json.dumps(json.loads(said) | {"format": 9})),
    ):
        change()
        with pytest.raises(IndexStoreError, match="backup .*copy: expected"):
            restore(tmp_path / "copy", tmp_path / "index")
        data.write_bytes(content)
        manifest.write_text(said)
    with open_store(tmp_path / "index") as store:
        assert store.meta.sequence == 2
        assert store.ad(1) is not None
        assert sound(store)
    assert restore(tmp_path / "copy", tmp_path / "index") == 3  # as it was made


def test_restore_in_place_of_a_damaged_store(tmp_path):
    with empty_store(tmp_path / "index") as store:
        apply(store, create(1, 1))
        expected = as_reader_sees(store)
    back_up(tmp_path / "index", tmp_path / "copy")
    (tmp_path / "index" / STORE / "data.mdb").write_bytes(b"nonsense" * 9000)
    assert restore(tmp_path / "copy", tmp_path / "index") > 1 << 20  # above whatever readers saw
    assert len(list((tmp_path / "index").glob("store.damaged-*"))) == 1
    with open_store(tmp_path / "index") as store:
        assert as_reader_sees(store) == expected
        assert sound(store)


def test_a_restore_that_dies_leaves_the_old_index(tmp_path, monkeypatch):
    empty_store(tmp_path / "index").close()
    back_up(tmp_path / "index", tmp_path / "copy")
    with empty_store(tmp_path / "index") as store:
        apply(store, create(1, 1))
        expected = as_reader_sees(store)

    def die():
        monkeypatch.setattr("indexer.store.backups.read_snapshot", lambda *_, **__: os._exit(9))
        restore(tmp_path / "copy", tmp_path / "index")

    process = FORK.Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == 9
    with open_store(tmp_path / "index") as store:
        assert as_reader_sees(store) == expected
        assert sound(store)
