"""A damaged index: refused at the start, named by readyz, healed where the store can do it."""

import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from indexer.sidecar.beside import Beside
from indexer.sidecar.checker import Checker, StartCheck
from indexer.store.file import StoreFile
from indexer.store.health import IndexHealth, check_index
from indexer.store.index_store import IndexStore
from indexer.store.verify import verify
from serving.index.base import read_base
from serving.index.layout import STORE, IndexStoreError, base_folder
from serving.index.reader import IndexReader
from tests.index_store import FakeEncoder, apply, create, empty_store, load, pause, update
from tests.indexing import sidecar_client, write_manifest
from tests.other_process import in_other_process
from tests.recording_store import event
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Every table has records; texts are long enough for pages of their own."""
    path = tmp_path_factory.mktemp("built") / "index"
    with empty_store(path) as store:
        apply(store, *(create(i, 1, f"text {i} " * 200) for i in range(100)), pause(9, 2), pause(5000, 1))
        apply(store, *(update(i, 3, text=f"other {i} " * 900) for i in range(20)), offset=7)
    return path


def everything(path: Path) -> list[tuple[bytes, list[tuple[bytes, bytes]]]] | str:
    """Every record of every table as LMDB gives them, or its error."""
    try:
        with (
            lmdb.open(str(path / STORE), readonly=True, lock=False, max_dbs=40) as environment,
            environment.begin() as transaction,
        ):
            found = []
            for name in [bytes(name) for name in transaction.cursor().iternext(values=False)]:
                flags = {"dupsort": True, "dupfixed": True} if name.startswith(b"sids") else {}
                table = environment.open_db(name, txn=transaction, create=False, **flags)
                found.append((name, list(transaction.cursor(db=table))))
            return found
    except lmdb.Error as error:
        return str(error)


@contextmanager
def changing(path: Path, table: str) -> Iterator[tuple[lmdb.Transaction, object]]:
    """A transaction that keeps no checksums, and the table."""
    with (
        lmdb.open(str(path / STORE), max_dbs=40) as environment,
        environment.begin(write=True) as transaction,
    ):
        yield transaction, environment.open_db(table.encode(), txn=transaction, create=False)


def test_a_flipped_bit_is_found_wherever_it_changes_what_is_read(built, tmp_path):
    """Bits of the meta pages and 150 others: found, or where nothing is read; the dump is LMDB's own."""
    assert in_other_process(check_index, str(built)) == IndexHealth()
    whole = everything(built)
    file = tmp_path / "index" / STORE / "data.mdb"
    shutil.copytree(built, tmp_path / "index")
    good, generator = file.read_bytes(), random.Random(0)
    found = harmless = 0
    meta = [page + at for page in (0, 4096) for at in range(136, 152)]  # last page, and the transaction
    for at in [*meta, *(generator.randrange(len(good)) for _ in range(150))]:
        bad = bytearray(good)
        bad[at] ^= 1 << generator.randrange(8)
        file.write_bytes(bad)
        (tmp_path / "index" / STORE / "lock.mdb").unlink(missing_ok=True)
        try:
            health = in_other_process(check_index, str(tmp_path / "index"))
            problems = [*health.store, *health.bases.values()]
        except Exception as error:  # LMDB ended the process: that is found, too
            problems = [repr(error)]
        if problems:
            found += 1
            continue
        assert in_other_process(everything, tmp_path / "index") == whole
        harmless += 1
    assert found > 50
    assert harmless > 5


@pytest.mark.parametrize("table", ["ads", "content", "offsets", "dead", "meta", "codes/tok", "changes/tok"])
def test_a_record_that_changed_by_itself_is_named(built, tmp_path, table):
    shutil.copytree(built, tmp_path / "index")
    with changing(tmp_path / "index", table) as (transaction, handle):
        cursor = transaction.cursor(db=handle)
        assert cursor.first()
        value = bytearray(cursor.value())
        value[len(value) // 2] ^= 4
        cursor.put(cursor.key(), bytes(value))
    problems = in_other_process(check_index, str(tmp_path / "index")).store
    assert any(f"{table}: damaged" in p or "meta" in p for p in problems), problems
    with pytest.raises(IndexStoreError, match="restore a backup"):
        StartCheck(tmp_path / "index", wait_s=60)


def test_an_index_of_an_earlier_version_gets_checksums(built, tmp_path):
    shutil.copytree(built, tmp_path / "index")
    with changing(tmp_path / "index", "meta") as (transaction, meta):
        assert transaction.delete(b"digests", db=meta)
    assert in_other_process(check_index, str(tmp_path / "index")).store == []
    with IndexStore(tmp_path / "index", encoders=[FakeEncoder()]) as store:
        apply(store, pause(3, 9))
    assert verify(tmp_path / "index") == []
    with changing(tmp_path / "index", "meta") as (transaction, meta):
        transaction.put(b"digests", transaction.get(b"digests", db=meta)[:-1] + b"x", db=meta)
    assert "record of its checksums" in in_other_process(check_index, str(tmp_path / "index")).store[0]


def broken(folder: Path, how: str) -> None:
    file = folder / "ad_keys.npy"
    if how == "missing":
        file.unlink()
    elif how == "folder":
        shutil.rmtree(folder)
    elif how == "truncated":
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size - 8)
    else:
        raw = bytearray(file.read_bytes())
        raw[-3] ^= 16
        file.write_bytes(raw)


@pytest.mark.parametrize("how", ["missing", "folder", "truncated"])
def test_readers_refuse_a_base_that_is_cut_off(tmp_path, how):
    with empty_store(tmp_path) as store:
        load(store)
        base = base_folder(tmp_path, "tok", sequence=store.meta.sequence)
    broken(base, how)
    with pytest.raises(IndexStoreError, match=str(base)):
        read_base(base)
    with pytest.raises(IndexStoreError, match=str(base)):
        IndexReader(tmp_path)


@pytest.mark.parametrize("how", ["missing", "folder", "truncated", "flipped"])
@pytest.mark.parametrize("when", ["before", "while it runs"])
def test_a_broken_base_is_named_and_made_anew(tmp_path, how, when):
    """Where it is seen by its length; a flipped bit is found by the next check."""
    write_manifest(tmp_path / "bundles", 1, "tok-a")
    settings = {"check_every_s": 0.5 if how == "flipped" else 3600.0}
    with sidecar_client(tmp_path, **settings) as client:
        for ad in range(30):
            fields = {"account_id": "a", "conversion_type": "b", "text": f"t{ad}"}
            assert client.post("/events", content=event(ad, 1, "create", **fields),
                               headers={"content-type": "application/json"}).status_code == 200  # fmt: skip
        compacted = client.sidecar.worker.call(lambda: client.sidecar.compactor.start("tok-a"))
        assert compacted.result(5)
        generations = client.sidecar.store.meta.generations
        wait_until(lambda: client.sidecar.compactor.compactions == 1)
        base = client.sidecar.store.meta.generations["tok-a"].base
        folder = base_folder(tmp_path / "index", "tok-a", sequence=base)
        if when == "while it runs":
            broken(folder, how)
            healed(client, base)
    if when == "before":
        broken(folder, how)
        with sidecar_client(tmp_path, **settings) as client:
            assert any("base arrays" in p for p in client.get("/readyz").json()["problems"])
            healed(client, base)
    assert generations.keys() == {"tok-a"}
    reader = IndexReader(tmp_path / "index")
    assert sorted(reader.snapshot.leaf_ad_ids.tolist()) == list(range(30))
    reader.close()
    assert in_other_process(verify, tmp_path / "index") == []


def healed(client, base: int) -> None:
    wait_until(lambda: client.sidecar.store.meta.generations["tok-a"].base != base, timeout_s=30)
    wait_until(lambda: client.get("/readyz").status_code == 200, timeout_s=30)


def test_a_damaged_store_is_refused_at_the_start_and_named_while_it_runs(tmp_path):
    write_manifest(tmp_path / "bundles", 1, "tok-a")
    with sidecar_client(tmp_path, check_every_s=0.5) as client:
        fields = {"account_id": "a", "conversion_type": "b", "text": "x" * 9000}
        client.post("/events", content=event(1, 1, "create", **fields),
                    headers={"content-type": "application/json"})  # fmt: skip
        assert client.get("/readyz").status_code == 200
        file = tmp_path / "index" / STORE / "data.mdb"
        raw = file.read_bytes()
        at = raw.index(b"x" * 8000) + 4000
        with file.open("r+b") as opened:
            opened.seek(at)
            opened.write(b"y")
        wait_until(lambda: client.get("/readyz").status_code == 503, timeout_s=30)
        assert any("content: damaged" in p for p in client.get("/readyz").json()["problems"])
        applied = client.post("/events", content=event(1, 2), headers={"content-type": "application/json"})
        assert applied.json()["result"] == "applied"  # what is sound is served on
    with (
        pytest.raises(IndexStoreError, match="content: damaged.*restore a backup"),
        sidecar_client(tmp_path),
    ):
        pass


def remove(file: Path) -> None:
    file.unlink()


def replace(file: Path) -> None:
    shutil.copy(file, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


@pytest.mark.parametrize(
    ("change", "message"), [(remove, "No such file"), (replace, "another file is in its place")]
)
def test_a_file_that_was_taken_away_is_named(tmp_path, change, message):
    with empty_store(tmp_path) as store:
        first = StartCheck(tmp_path / "none", wait_s=1)
        checker = Checker(store.file, first=first, make_base=lambda name: True, look_s=0.0)
        checker()
        assert checker.problems() == []
        change(tmp_path / STORE / "data.mdb")
        checker()
        assert message in checker.problems()[0]


def test_a_check_that_crashes_is_a_damaged_store(tmp_path, monkeypatch):
    (tmp_path / STORE).mkdir()
    (tmp_path / STORE / "data.mdb").write_bytes(b"")
    monkeypatch.setattr("indexer.sidecar.checker.check_index", end_by_signal)
    with pytest.raises(IndexStoreError, match="cannot be checked: its process ended with -11"):
        StartCheck(tmp_path, wait_s=60)


def end_by_signal(path: str) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_check_that_takes_long_does_not_hold_up_the_start(built, monkeypatch):
    check = StartCheck(built, wait_s=0.0)
    assert check.running is not None
    with StoreFile(built) as file:
        checker = Checker(file, first=check, make_base=lambda name: True)
        wait_until(lambda: (checker(), checker._running is None)[1], timeout_s=30)
        assert checker.problems() == []


def test_a_process_beside_does_not_answer_ctrl_c(tmp_path):
    running = Beside(own_interrupt)
    assert running.wait(60)
    assert running.result() == "alive"


def own_interrupt() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    return "alive"
