"""Readers follow an index on disk: changes, compactions, generations, and what may be broken about it."""

import json
import logging
import multiprocessing
import os
import shutil
import time

import numpy as np
import pytest

from serving.index import reader as module
from serving.index.layout import (
    BASE,
    BASE_MANIFEST,
    HEARTBEAT,
    INDEX_KEY,
    META,
    STORE,
    IndexStoreError,
    generation_tables,
    number_key,
)
from serving.index.reader import IndexReader
from tests.index_files import IndexFiles

SIZES = (4, 3, 5)
OTHER_SIZES = (6, 7)


@pytest.fixture
def files(tmp_path):
    """40 ads in the base of generation "tok", sequence number 1."""
    files = IndexFiles(tmp_path)
    files.generation("tok", SIZES)
    files.apply({"tok": random_changes(0, ads=40)})
    files.compact("tok")
    return files


@pytest.fixture
def open_reader(request):
    def opened(path, **options):
        reader = IndexReader(path, **({"max_wait_s": 0.0} | options))
        request.addfinalizer(reader.close)
        return reader

    return opened


def random_changes(seed, *, ads, sizes=SIZES):
    random = np.random.default_rng(seed)
    found = []
    for ad in random.permutation(60)[:ads].tolist():
        sid = tuple(int(random.integers(0, v)) for v in sizes)
        found.append((ad, sid, bool(random.random() < 0.7), seed == 0 or bool(random.random() < 0.9)))
    return found


def assert_same(snapshot, expected):
    """Equal in all that can be asked of both."""
    assert (snapshot.version, snapshot.tokenizer_id) == (expected.version, expected.tokenizer_id)
    assert snapshot.level_sizes == expected.level_sizes
    assert snapshot.ad_ids.tolist() == expected.ad_ids.tolist()
    for got, wanted in zip(snapshot.sids_of(expected.ad_ids), expected.sids_of(expected.ad_ids), strict=True):
        np.testing.assert_array_equal(got, wanted)
    sids = np.unique(expected.sids_of(expected.ad_ids)[0], axis=0)
    assert snapshot.trie.leaves == expected.trie.leaves
    for got, wanted in zip(
        snapshot.ads_of_leaves(snapshot.leaves_of(sids)),
        expected.ads_of_leaves(expected.leaves_of(sids)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, wanted)


def test_base_alone_is_read_as_it_is(files, open_reader):
    reader = open_reader(files.path)
    assert_same(reader.snapshot, files.snapshot("tok"))
    assert reader.snapshot.version == 1
    assert reader.generations == ("tok",)
    assert not reader.refresh()


def test_refresh_sees_changes_and_the_old_snapshot_stays(files, open_reader):
    reader = open_reader(files.path)
    old, ads = reader.snapshot, reader.snapshot.leaf_ad_ids.tolist()
    ad, sid = ads[0], files.state["tok"][ads[0]][0]
    files.apply({"tok": [(ad, sid, False, True), (777, (3, 2, 4), True, True)]})
    assert reader.refresh()
    new = reader.snapshot
    assert_same(new, files.snapshot("tok"))
    assert (ad in new.leaf_ad_ids, 777 in new.leaf_ad_ids) == (False, True)
    assert new.sids_of(np.array([ad]))[1].all()  # paused, but still known as history
    assert not reader.refresh()
    assert reader.snapshot is new
    assert old.leaf_ad_ids.tolist() == ads


def test_only_rows_after_the_last_are_read(files, open_reader):
    """What was read once is not read again: rows that are gone from the log are still in the snapshot."""
    reader = open_reader(files.path)
    for seed in (1, 2):
        files.apply({"tok": random_changes(seed, ads=10)})
        assert reader.refresh()
    files.put({(generation_tables("tok").changes, number_key(2)): None})
    files.apply({"tok": random_changes(3, ads=10)})
    assert reader.refresh()
    assert_same(reader.snapshot, files.snapshot("tok"))


def test_follows_any_sequence_of_changes_and_compactions(files, open_reader):
    random, reader = np.random.default_rng(0), open_reader(files.path)
    for seed in range(1, 16):
        for _ in range(random.integers(0, 3)):
            files.apply({"tok": random_changes(100 * seed + int(random.integers(50)), ads=12)})
        if seed % 4 == 0:
            old = files.meta.generations["tok"].base
            files.compact("tok", keep_log=int(random.integers(0, 4)))
            if old != files.meta.generations["tok"].base:
                shutil.rmtree(files.path / BASE / "tok" / str(old))
        reader.refresh()
        assert_same(reader.snapshot, files.snapshot("tok"))
    late = IndexFiles(files.path)  # a reader that starts now sees the same
    late.meta, late.state = files.meta, files.state
    reader.close()
    assert_same(open_reader(files.path).snapshot, files.snapshot("tok"))


def test_a_reader_that_slept_through_the_log_starts_from_the_new_base(files, open_reader):
    reader = open_reader(files.path)
    for seed in range(1, 6):
        files.apply({"tok": random_changes(seed, ads=12)})
    files.compact("tok")
    files.apply({"tok": random_changes(9, ads=12)})
    assert reader.refresh()
    assert_same(reader.snapshot, files.snapshot("tok"))


def test_no_base_yet(tmp_path, open_reader):
    """An index that only ever got events: the log is all there is."""
    files = IndexFiles(tmp_path)
    files.generation("tok", SIZES)
    reader = open_reader(tmp_path)
    snapshot = reader.snapshot
    assert (snapshot.version, snapshot.trie.leaves) == (0, 0)
    codes, known = snapshot.sids_of(np.array([1, 2]))
    assert codes.shape == (2, 3)
    assert not known.any()
    assert snapshot.leaves_of(np.array([[0, 0, 0]])).tolist() == [-1]
    assert snapshot.ads_of_leaves(np.array([-1]))[1].tolist() == []
    assert snapshot.banned_leaves(np.array([4])).tolist() == []
    for seed in range(3):
        files.apply({"tok": random_changes(seed, ads=20)})
        assert reader.refresh()
        assert_same(reader.snapshot, files.snapshot("tok"))
    files.compact("tok")
    assert reader.refresh()
    assert_same(reader.snapshot, files.snapshot("tok"))


def test_everything_is_deleted_and_comes_back(files, open_reader):
    reader = open_reader(files.path)
    state = dict(files.state["tok"])
    files.apply({"tok": [(ad, sid, False, True) for ad, (sid, _) in state.items()]})
    assert reader.refresh()
    assert (reader.snapshot.trie.leaves, len(reader.snapshot.ad_ids)) == (0, 40)
    files.compact("tok")  # a base without a live ad
    assert reader.refresh()
    files.apply({"tok": [(ad, sid, active, True) for ad, (sid, active) in state.items()]})
    assert reader.refresh()
    assert_same(reader.snapshot, files.snapshot("tok"))


def test_generations_move_together(files, open_reader):
    files.generation("new", OTHER_SIZES)
    reader = open_reader(files.path, tokenizer_id="tok")
    assert reader.generations == ("new", "tok")
    for seed in range(1, 4):
        files.apply(
            {
                "tok": random_changes(seed, ads=12),
                "new": random_changes(seed, ads=12, sizes=OTHER_SIZES),
            }
        )
        if seed == 1:  # opened late, read from the beginning
            assert_same(reader.snapshot_of("new"), files.snapshot("new"))
        if seed == 2:
            files.compact("new")
        reader.refresh()
        for name in ("tok", "new"):
            assert_same(reader.snapshot_of(name), files.snapshot(name))
    assert reader.snapshot is reader.snapshot_of("tok")
    reader.forget("new")
    files.apply({"new": random_changes(7, ads=12, sizes=OTHER_SIZES)})
    assert reader.refresh()
    assert list(reader._followed) == ["tok"]
    assert_same(reader.snapshot_of("new"), files.snapshot("new"))


def test_a_generation_that_is_not_ready_or_goes(files, open_reader):
    reader = open_reader(files.path)
    files.generation("new", OTHER_SIZES, ready=False)
    reader.refresh()
    with pytest.raises(IndexStoreError, match="expected a ready generation, got new; ready: tok"):
        reader.snapshot_of("new")
    files.generation("new", OTHER_SIZES, ready=True)
    files.drop("tok")
    assert reader.refresh()
    assert reader.snapshot.tokenizer_id == "new"  # the one that is left
    with pytest.raises(IndexStoreError, match="got tok; ready: new"):
        reader.snapshot_of("tok")
    files.drop("new")
    reader.refresh()
    with pytest.raises(IndexStoreError, match="expected a ready generation, found none"):
        _ = reader.snapshot


def test_a_generation_that_got_ready_while_refreshing_is_put_off(files, open_reader):
    """The scheduler may have seen it a moment before: its beams must be looked up all the same."""
    reader = open_reader(files.path)
    files.generation("new", OTHER_SIZES)
    reader._not_before = time.monotonic() + 100
    assert not reader.refresh()
    assert_same(reader.snapshot_of("new"), files.snapshot("new"))


def test_opening_without_the_generation_that_is_asked_for(files):
    with pytest.raises(IndexStoreError, match="expected a ready generation, got other; ready: tok"):
        IndexReader(files.path, tokenizer_id="other")
    IndexReader(files.path).close()  # the refusal let go of the file


def test_base_that_vanishes_while_it_is_opened(files, open_reader, monkeypatch):
    """A compaction between the look at `meta` and the opening of the base."""
    real, raced = module.read_base, []

    def racing(folder):
        if not raced:
            raced.append(folder)
            files.apply({"tok": random_changes(5, ads=12)})
            files.compact("tok")
            shutil.rmtree(folder)
        return real(folder)

    monkeypatch.setattr(module, "read_base", racing)
    reader = open_reader(files.path)
    assert len(raced) == 1
    assert_same(reader.snapshot, files.snapshot("tok"))


def damage_base(folder):
    (folder / "ad_ids.npy").write_bytes(b"x" * 50)


def lose_base(folder):
    shutil.rmtree(folder)


def shorten_base(folder):
    np.save(folder / "ad_keys.npy", np.zeros(3, np.int64))


def other_base(folder):
    manifest = json.loads((folder / BASE_MANIFEST).read_text())
    (folder / BASE_MANIFEST).write_text(json.dumps(manifest | {"tokenizer_id": "another"}))


@pytest.mark.parametrize("damage", [damage_base, lose_base, shorten_base, other_base])
def test_a_base_that_cannot_be_read(files, open_reader, monkeypatch, caplog, damage):
    """It keeps the old snapshot, says so once, tries again a second later; a new reader is refused."""
    reader = open_reader(files.path)
    old = reader.snapshot
    files.apply({"tok": random_changes(1, ads=12)})
    folder = files.compact("tok")
    kept = shutil.copytree(folder, files.path / "kept")
    damage(folder)
    tried = []
    real = module.read_base
    monkeypatch.setattr(module, "read_base", lambda f: tried.append(f) or real(f))
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            assert not reader.refresh()
        once = len(tried)
        assert 1 <= once <= 2  # a second look in case of a compaction
        reader._not_before = 0.0  # a second later
        assert not reader.refresh()
        assert len(tried) == 2 * once
    assert [r.getMessage() for r in caplog.records][0].startswith("index stays at sequence number 1: ")
    assert len(caplog.records) == 1
    assert reader.snapshot is old
    reader.close()
    with pytest.raises(IndexStoreError, match=str(files.path)):
        IndexReader(files.path)
    shutil.rmtree(folder, ignore_errors=True)
    kept.rename(folder)
    assert_same(open_reader(files.path).snapshot, files.snapshot("tok"))


def test_recovers_once_the_base_is_there(files, open_reader):
    reader = open_reader(files.path)
    files.apply({"tok": random_changes(1, ads=12)})
    folder = files.compact("tok")
    moved = folder.rename(files.path / "elsewhere")
    assert not reader.refresh()
    moved.rename(folder)
    assert not reader.refresh()  # a second has not passed
    reader._not_before = 0.0
    assert reader.refresh()
    assert_same(reader.snapshot, files.snapshot("tok"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ((META, INDEX_KEY), b"{no json", "expected JSON in `meta`"),
        ((META, INDEX_KEY), b"\xff\xfe", "expected JSON in `meta`"),
        ((META, INDEX_KEY), b"7", "carries no `meta` record"),
        ((META, INDEX_KEY), b'{"format": 2}', "unreadable `meta` record"),
        ((META, INDEX_KEY), b'{"format": 9}', "expected format 2 or 3, got 9; build it anew"),
        (
            (b"changes/tok", number_key(2)),
            b"short",
            "corrupted changes after 1: expected rows of 34 bytes, got 5",
        ),
        ((b"changes/tok", number_key(2)), b"\1" * 34, "corrupted changes: SID 0: expected one code a level"),
    ],
)
def test_corrupted_records(files, open_reader, caplog, key, value, message):
    reader = open_reader(files.path)
    old = reader.snapshot
    files.apply({"tok": []})
    files.put({key: value})
    assert not reader.refresh()
    assert reader.snapshot is old
    assert message in caplog.text
    reader.close()
    with pytest.raises(IndexStoreError, match=str(files.path)) as caught:
        IndexReader(files.path)
    assert message in str(caught.value)


def test_a_log_that_does_not_reach_back_to_the_base(files):
    generation = files.meta.generations["tok"]
    for start in (generation.base, generation.base + 3):
        files._set("tok", type(generation)(SIZES, True, generation.base, start))
        if start == generation.base:
            IndexReader(files.path).close()
    with pytest.raises(
        IndexStoreError, match="expected a base as of 4 or later, where its changes begin, got 1"
    ):
        IndexReader(files.path)


def test_missing_and_unfinished_stores(tmp_path):
    with pytest.raises(IndexStoreError, match=r"expected a built index \(data.mdb\), found none"):
        IndexReader(tmp_path)
    files = IndexFiles(tmp_path)
    files.put({})
    with pytest.raises(IndexStoreError, match="expected a ready generation, found none"):
        IndexReader(tmp_path)
    files.put({(META, INDEX_KEY): None})
    with pytest.raises(IndexStoreError, match="expected a complete build, but it carries no `meta` record"):
        IndexReader(tmp_path)


def try_to_open(path):
    """In a process of its own, because a broken map could end it."""
    try:
        IndexReader(path)
    except IndexStoreError:
        raise SystemExit(3) from None


@pytest.mark.parametrize("keep", [0, 100, 9000, -4096])
def test_truncated_file_is_an_error_and_not_a_crash(files, keep):
    data = files.path / STORE / "data.mdb"
    data.write_bytes(data.read_bytes()[:keep])
    process = multiprocessing.get_context("fork").Process(target=try_to_open, args=(files.path,))
    process.start()
    process.join()
    assert process.exitcode == 3


def test_overwritten_file(files):
    (files.path / STORE / "data.mdb").write_bytes(b"nonsense" * 9000)
    with pytest.raises(IndexStoreError, match="LMDB cannot open it"):
        IndexReader(files.path)


def test_lag_is_the_age_of_the_heartbeat(files, open_reader):
    reader, heartbeat = open_reader(files.path), files.path / HEARTBEAT
    assert reader.lag_s() == float("inf")
    heartbeat.touch()
    os.utime(heartbeat, (time.time() - 30,) * 2)
    assert 30 <= reader.lag_s() < 60
    os.utime(heartbeat, (time.time() + 30,) * 2)  # another machine's clock is ahead
    assert reader.lag_s() == 0.0


def test_changes_wait_at_most_the_bound(files, open_reader, monkeypatch):
    """After an expensive refresh the next one is put off; the clock is the test's."""
    reader = open_reader(files.path, max_wait_s=0.05)
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    real = module.with_changes

    def slow(*arguments, **options):
        clock[0] += 0.02
        return real(*arguments, **options)

    monkeypatch.setattr(module, "with_changes", slow)
    files.apply({"tok": random_changes(1, ads=12)})
    assert reader.refresh()
    files.apply({"tok": random_changes(2, ads=12)})
    for _ in range(4):  # 0.04 s
        assert not reader.refresh()
        clock[0] += 0.01
    clock[0] += 0.0101
    assert reader.refresh()
    assert_same(reader.snapshot, files.snapshot("tok"))
