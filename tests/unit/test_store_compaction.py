"""Compaction beside the living writer, the chore that starts it, and deleted ads that are forgotten."""

import time

import pytest

from indexer.sidecar.compactor import Compactor
from indexer.store.bases import remove_bases
from indexer.store.compaction import adopt_base, compact
from indexer.store.forgetting import forget_deleted
from serving.index.base import read_base
from serving.index.layout import BASE, IndexStoreError, base_folder
from tests.index_store import (
    apply,
    as_reader_sees,
    create,
    delete,
    empty_store,
    pause,
    results,
    resume,
    sound,
)
from tests.other_process import in_other_process


@pytest.fixture
def store(tmp_path):
    with empty_store(tmp_path / "index") as opened:
        yield opened


@pytest.mark.parametrize("name", ["²", "01", "9" * 200, "-1"])
def test_folders_that_are_no_bases_are_left_alone(store, name):
    """A name that `isdigit` takes for a number ended the compaction."""
    apply(store, *(create(i, 1) for i in range(5)))
    other = base_folder(store.file.path, "tok", sequence=0).with_name(name)
    other.mkdir(parents=True)
    remove_bases(store.file.path, "tok", keep=[1])
    assert other.is_dir()


def test_compaction_beside_the_living_writer(store):
    apply(store, *(create(i, 1) for i in range(20)))
    apply(store, pause(3, 2))
    sequence = in_other_process(compact, store.file.path, "tok")
    assert sequence == store.meta.sequence == 3
    apply(store, delete(4, 2), create(30, 1))  # after the arrays were read
    before = as_reader_sees(store)
    adopt_base(store.file, "tok", sequence=3)
    assert (store.meta.generations["tok"].base, store.meta.generations["tok"].log_start) == (3, 3)
    assert store.file.log_rows == {"tok": 2}
    assert as_reader_sees(store) == before
    assert len(read_base(base_folder(store.file.path, "tok", sequence=3)).ad_ids) == 20
    assert sound(store)
    for _ in range(2):
        apply(store, create(store.meta.sequence + 100, 1))
        adopt_base(store.file, "tok", sequence=in_other_process(compact, store.file.path, "tok"))
    assert sorted(f.name for f in (store.file.path / BASE / "tok").iterdir()) == [
        "5",
        "6",
    ]  # this and the one before
    for wrong, message in ((5, "expected a base of tok in 6 .. 6, got 5"), (9, "got 9")):
        with pytest.raises(IndexStoreError, match=message):
            adopt_base(store.file, "tok", sequence=wrong)
    with pytest.raises(IndexStoreError, match="expected a ready generation, got none"):
        adopt_base(store.file, "none", sequence=6)


def poll_until(compactor: Compactor, condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        compactor.poll()
        time.sleep(0.02)


def test_the_compactor_starts_by_number_and_by_age(store):
    clock = [0.0]
    compactor = Compactor(store.file, max_changes=5, max_age_s=100, clock=lambda: clock[0])
    apply(store, *(create(i, 1) for i in range(5)))
    compactor.poll()
    assert compactor.running is None
    apply(store, create(9, 1))
    poll_until(compactor, lambda: compactor.compactions == 1)
    assert store.file.log_rows == {"tok": 0}
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
    compactor = Compactor(store.file, max_changes=0, clock=lambda: clock[0])
    apply(store, create(1, 1))
    (store.file.path / BASE / "tok").rename(store.file.path / "aside")
    (store.file.path / BASE / "tok").write_text("in the way")
    poll_until(compactor, lambda: compactor.failures == 1)
    assert "cannot write a base" in compactor.last_error
    compactor.poll()
    assert compactor.running is None  # not at once
    (store.file.path / BASE / "tok").unlink()
    (store.file.path / "aside").rename(store.file.path / BASE / "tok")
    clock[0] = 61
    poll_until(compactor, lambda: compactor.compactions == 1)


def test_deleted_ads_are_forgotten_in_steps(tmp_path):
    now = [1000.0]
    with empty_store(tmp_path, now=lambda: now[0]) as store:
        apply(store, *(create(i, 1) for i in range(10)), *(delete(i, 2) for i in (1, 4, 8)))
        now[0] = 2000.0
        apply(store, delete(5, 2))
        assert forget_deleted(store.file, before=1000, limit=100) is None
        assert store.ad(1) is not None
        assert forget_deleted(store.file, before=1500, limit=4) == 3
        assert (store.ad(1), store.ad(4) is None) == (None, False)
        sequence = store.meta.sequence
        assert forget_deleted(store.file, before=1500, after=3, limit=100) is None
        assert store.meta.sequence == sequence + 1
        assert sorted(as_reader_sees(store)) == [0, 2, 3, 5, 6, 7, 9]
        assert sound(store)
        assert results(apply(store, resume(1, 3))) == ["unknown_ad"]
        compactor = Compactor(store.file, tombstone_ttl_s=10, clock=lambda: now[0])
        now[0] = 2011.0
        compactor.poll()
        assert store.ad(5) is None
        assert sound(store)
