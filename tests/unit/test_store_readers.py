"""Readers that are killed inside a transaction: what they hold is given back, and seen."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from indexer.sidecar.readers import Readers
from serving.index.layout import STORE, open_environment
from tests.index_store import apply, create, empty_store, update

READS = """
import lmdb, sys, time
environment = lmdb.open(sys.argv[1], readonly=True, max_dbs=40)
with environment.begin() as transaction:
    transaction.get(b"ads")
    print("reading", flush=True)
    time.sleep(60)
"""


def reading(path: Path) -> subprocess.Popen:
    """A process that is inside a read transaction."""
    process = subprocess.Popen([sys.executable, "-c", READS, path / STORE], stdout=subprocess.PIPE)
    assert select.select([process.stdout], [], [], 20)[0]
    assert process.stdout.readline() == b"reading\n"
    return process


def write(store, rounds: int, readers: Readers | None = None) -> int:
    """Change all ads again and again; bytes that the file grew."""
    before, start = (store.file.path / STORE / "data.mdb").stat().st_size, store.meta.sequence
    for turn in range(rounds):
        apply(store, *(update(ad, start + turn + 2, text=f"{turn} " * 100) for ad in range(40)))
        if readers is not None:
            readers()
    return (store.file.path / STORE / "data.mdb").stat().st_size - before


@pytest.mark.parametrize("checks", [True, False])
def test_a_dead_reader_holds_no_pages(tmp_path, checks):
    with empty_store(tmp_path) as store:
        apply(store, *(create(ad, 1) for ad in range(40)))
        write(store, 20)
        assert write(store, 20) < 50_000
        readers = Readers(store.file.environment, look_s=0.0)
        process = reading(tmp_path)
        try:
            readers()
            assert (readers.open, readers.lag, readers.cleared) == (1, 0, 0)
            held = write(store, 40, readers)  # a living reader sees what it saw
            assert held > 400_000
            assert readers.lag == 40
            free = store.file.free_bytes()
            assert free > held / 2
            process.send_signal(signal.SIGKILL)
            process.wait()
            grown = write(store, 40, readers if checks else None)
            assert (grown < 100_000) == checks
            if checks:
                assert (readers.open, readers.lag, readers.cleared) == (0, 0, 1)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def test_who_opens_the_store_clears_the_places_of_dead_readers(tmp_path):
    with empty_store(tmp_path) as store:
        for _ in range(3):
            process = reading(tmp_path)
            process.kill()
            process.wait()
            process.stdout.close()
        assert store.file.environment.info()["num_readers"] == 3
    environment = open_environment(tmp_path, readonly=True)
    assert "no active readers" in environment.readers()
    environment.close()


def test_free_bytes_are_those_that_no_table_has(tmp_path):
    with empty_store(tmp_path) as store:
        apply(store, *(create(ad, 1, "x" * 5000) for ad in range(100)))
        full = store.file.free_bytes()
        with store.file.write() as writing:
            writing.txn.drop(store.file.tables.content, delete=False)
        size = os.stat(tmp_path / STORE / "data.mdb").st_size
        assert 100 * 5000 < store.file.free_bytes() - full < size
