"""Trie and snapshot against dictionaries; the store on disk: one writer, durable, readers that follow it."""

import json
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import polars as pl
import pytest

import indexer.__main__ as command
from indexer.store import AdRecord, IndexWriter
from serving.index.keys import pack, unpack
from serving.index.layout import ADS, META, IndexStoreError
from serving.index.reader import IndexReader
from serving.index.snapshot import IndexSnapshot

SIZES = (4, 3, 5)


def random_catalogue(seed, *, ads=40):
    random = np.random.default_rng(seed)
    ad_ids = random.permutation(200)[:ads].astype(np.int64)  # unsorted on purpose
    sids = np.stack([random.integers(0, v, ads) for v in SIZES], axis=1).astype(np.int32)
    return ad_ids, sids, random.random(ads) < 0.7


def as_sets(ad_ids, sids, active):
    """Live SID -> its active ads."""
    live = {}
    for ad, sid, on in zip(ad_ids.tolist(), map(tuple, sids.tolist()), active, strict=True):
        if on:
            live.setdefault(sid, set()).add(ad)
    return live


def snapshot_of(seed, **options):
    catalogue = random_catalogue(seed, **options)
    return IndexSnapshot.build(*catalogue[:2], active=catalogue[2], level_sizes=SIZES), catalogue


@pytest.mark.parametrize("seed", range(8))
def test_trie_equals_sets_of_prefixes(seed):
    snapshot, catalogue = snapshot_of(seed, ads=5 + 10 * seed)
    live, trie = as_sets(*catalogue), snapshot.trie
    prefixes = [sorted({s[: t + 1] for s in live}) for t in range(3)]  # node i of level t is prefixes[t][i]
    assert trie.leaves == len(live)
    for t in range(3):
        assert [p[-1] for p in prefixes[t]] == trie.codes[t].tolist()
        below = [sum(s[: t + 1] == p for s in live) for p in prefixes[t]]
        assert trie.leaf_counts(t, np.arange(len(below))).tolist() == below
        assert trie.leaf_counts(t, np.array([-1])).tolist() == [0]
    for t in (1, 2):
        nodes = np.array([[*range(len(prefixes[t - 1])), -1]])
        allowed, first = trie.children(t, nodes)
        for i, prefix in enumerate(prefixes[t - 1]):
            expected = [(j, p[-1]) for j, p in enumerate(prefixes[t]) if p[:t] == prefix]
            got = [c for c in allowed[0, i].tolist() if c >= 0]
            assert got == [c for _, c in expected]
            assert first[0, i] == expected[0][0]
        assert (allowed[0, -1] == -1).all()
    assert trie.codes[0].tolist() == [p[0] for p in prefixes[0]]
    where = {p: i for t in range(3) for i, p in enumerate(prefixes[t])}
    nodes = [np.array([[where[s[: t + 1]] for s in sorted(live)]]) for t in range(3)]
    assert [tuple(s) for s in trie.sids(2, nodes[2], parents=nodes[:2])[0].tolist()] == sorted(live)


@pytest.mark.parametrize("seed", range(8))
def test_snapshot_equals_dictionaries(seed):
    snapshot, (ad_ids, sids, active) = snapshot_of(seed)
    live = as_sets(ad_ids, sids, active)
    known = dict(zip(ad_ids.tolist(), map(tuple, sids.tolist()), strict=True))
    asked = np.arange(-3, 210)
    got, is_known = snapshot.sids_of(asked)
    assert is_known.tolist() == [a in known for a in asked.tolist()]
    assert all(tuple(got[i]) == known[a] for i, a in enumerate(asked.tolist()) if a in known)

    every = [(a, b, c) for a in range(-1, 5) for b in range(-1, 4) for c in range(-1, 6)]
    leaves = snapshot.leaves_of(np.array(every, np.int32))
    order = sorted(live)
    assert leaves.tolist() == [order.index(s) if s in live else -1 for s in every]

    asked = np.array([0, -1, len(order) - 1, 0, 2])
    rows, ads = snapshot.ads_of_leaves(asked)
    assert list(zip(rows.tolist(), ads.tolist(), strict=True)) == [
        (i, ad) for i, leaf in enumerate(asked.tolist()) if leaf >= 0 for ad in sorted(live[order[leaf]])
    ]


@pytest.mark.parametrize("seed", range(20))
def test_banned_leaves_are_those_with_nothing_left(seed):
    snapshot, (ad_ids, sids, active) = snapshot_of(seed)
    live = as_sets(ad_ids, sids, active)
    random = np.random.default_rng(seed)
    exclude = np.unique(random.choice(np.append(ad_ids, [500, 501]), 25))
    expected = [i for i, sid in enumerate(sorted(live)) if live[sid] <= set(exclude.tolist())]
    assert snapshot.banned_leaves(exclude).tolist() == expected
    assert snapshot.banned_leaves(np.zeros(0, np.int64)).tolist() == []


def test_pack_keeps_the_order_of_sids():
    sids = np.array([[a, b, c] for a in range(4) for b in range(3) for c in range(5)])
    assert pack(sids, SIZES).tolist() == list(range(60))
    assert unpack(np.arange(60), SIZES).tolist() == sids.tolist()


@pytest.mark.parametrize("bad", [(0, 3, 0), (4, 0, 0), (0, 0, -1)])
def test_codes_of_no_level_are_refused(bad):
    """Packed, they would be another SID."""
    sids = np.array([(3, 2, 4), bad, bad])
    with pytest.raises(ValueError, match=r"SID 1: expected one code a level below \(4, 3, 5\), got \["):
        IndexSnapshot.build(np.arange(3), sids, active=np.zeros(3, bool), level_sizes=SIZES)


@pytest.mark.parametrize("sizes", [SIZES, (1 << 21, 1 << 21, 1 << 20)])  # 62 bits: no room to sort by number
@pytest.mark.parametrize("ordered", [False, True])
def test_ads_that_share_a_sid_are_ascending(sizes, ordered):
    ad_ids, sids, active = random_catalogue(0, ads=190)
    if ordered:
        ad_ids = np.sort(ad_ids)
    sids *= np.array(sizes, np.int32) // np.array(SIZES, np.int32)  # up to the largest codes of each level
    live = as_sets(ad_ids, sids, active)
    assert max(map(len, live.values())) > 3
    snapshot = IndexSnapshot.build(ad_ids, sids, active=active, level_sizes=sizes)
    assert snapshot.leaf_ad_ids.tolist() == [ad for sid in sorted(live) for ad in sorted(live[sid])]
    assert snapshot.leaves_of(np.array(sorted(live))).tolist() == list(range(len(live)))


def test_codebooks_too_large_to_pack_are_refused():
    sizes = (1 << 22, 1 << 22, 1 << 22)
    with pytest.raises(ValueError, match=r"expected level sizes whose product is below 2\*\*63, got"):
        IndexSnapshot.build(np.array([1]), np.array([[1, 2, 3]]), active=np.array([True]), level_sizes=sizes)


# On disk. LMDB opens an environment once a process, so the other side of a reader is a process of its own.


def write_index(path: Path, seed=0, *, tokenizer_id="tok") -> int:
    ad_ids, sids, active = random_catalogue(seed)
    with IndexWriter(path, level_sizes=SIZES, tokenizer_id=tokenizer_id) as writer:
        return writer.build(ad_ids, sids, statuses=np.where(active, "active", "paused"))


def in_other_process(path: Path, code: str) -> None:
    head = (
        "import sys; from pathlib import Path; import numpy as np; "
        "from indexer.store import AdRecord, IndexWriter; "
        f"w = IndexWriter(Path(sys.argv[1]), level_sizes={SIZES}, tokenizer_id='tok'); "
    )
    subprocess.run([sys.executable, "-c", head + code, str(path)], check=True, cwd=Path(__file__).parents[2])


def same(a: IndexSnapshot, b: IndexSnapshot) -> bool:
    return (
        np.array_equal(a.ad_ids, b.ad_ids)
        and np.array_equal(a.ad_keys, b.ad_keys)
        and np.array_equal(a.leaf_ad_ptr, b.leaf_ad_ptr)
        and np.array_equal(a.leaf_ad_ids, b.leaf_ad_ids)
    )


def test_store_gives_back_what_was_built(tmp_path):
    assert write_index(tmp_path) == 1
    reader = IndexReader(tmp_path)
    expected, _ = snapshot_of(0)
    assert same(reader.snapshot, expected)
    assert (reader.snapshot.version, reader.snapshot.tokenizer_id) == (1, "tok")
    assert not reader.refresh()
    reader.close()
    assert write_index(tmp_path, seed=1) == 2  # a second build replaces, it does not add
    assert same(IndexReader(tmp_path).snapshot, snapshot_of(1)[0])


def test_more_ads_than_are_read_at_once(tmp_path):
    random = np.random.default_rng(0)
    ad_ids, sizes = random.permutation(70_000), (300, 200, 5)
    sids = np.stack([random.integers(0, v, len(ad_ids)) for v in sizes], axis=1).astype(np.int32)
    statuses = random.choice(["active", "paused", "deleted"], len(ad_ids))
    with IndexWriter(tmp_path, level_sizes=sizes, tokenizer_id="tok") as writer:
        writer.build(ad_ids, sids, statuses=statuses)
    expected = IndexSnapshot.build(ad_ids, sids, active=statuses == "active", level_sizes=sizes)
    assert same(IndexReader(tmp_path).snapshot, expected)


def test_reverse_table_holds_exactly_the_active_ads(tmp_path):
    """The `sids` table, which no reader uses yet, must not drift from the `ads` table."""
    write_index(tmp_path)
    ad_ids, sids, active = random_catalogue(0)
    paused, moved = int(ad_ids[active][0]), int(ad_ids[active][1])
    with IndexWriter(tmp_path, level_sizes=SIZES, tokenizer_id="tok") as writer:
        writer.apply(
            [
                AdRecord(paused, tuple(sids[ad_ids == paused][0].tolist()), "paused"),
                AdRecord(moved, (0, 0, 0)),
                AdRecord(999, (3, 2, 4)),
                AdRecord(999, (3, 2, 3)),
            ]
        )
    snapshot = IndexReader(tmp_path).snapshot
    rows, ads = snapshot.ads_of_leaves(np.arange(snapshot.trie.leaves))
    codes, _ = snapshot.sids_of(ads)
    expected = {(tuple(c), a) for c, a in zip(codes.tolist(), ads.tolist(), strict=True)}
    copy = shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    with lmdb.open(str(copy), max_dbs=4, readonly=True) as environment, environment.begin() as transaction:
        table = environment.open_db(b"sids", txn=transaction, create=False, dupsort=True)
        stored = {
            (tuple(np.frombuffer(k, ">u4").tolist()), int.from_bytes(v, "big"))
            for k, v in transaction.cursor(db=table)
        }
    assert stored == expected
    assert ((0, 0, 0), moved) in stored
    assert ((3, 2, 3), 999) in stored


def test_refresh_sees_changes_and_the_old_snapshot_stays(tmp_path):
    write_index(tmp_path)
    reader = IndexReader(tmp_path)
    old = reader.snapshot
    ad, leaf = int(old.leaf_ad_ids[0]), old.leaves_of(old.sids_of(old.leaf_ad_ids[:1])[0])
    sid = tuple(old.sids_of(np.array([ad]))[0][0].tolist())
    in_other_process(tmp_path, f"w.apply([AdRecord({ad}, {sid}, 'paused'), AdRecord(777, (3, 2, 4))])")
    assert ad in old.ads_of_leaves(leaf)[1]  # still whole
    assert reader.refresh()
    new = reader.snapshot
    assert new.version == old.version + 1
    assert ad not in new.leaf_ad_ids
    codes, known = new.sids_of(np.array([ad, 777]))
    assert known.all()  # a paused ad stays known, since histories hold it
    assert codes.tolist() == [list(sid), [3, 2, 4]]
    assert 777 in new.ads_of_leaves(new.leaves_of(np.array([[3, 2, 4]])))[1]
    assert not reader.refresh()
    assert ad in old.ads_of_leaves(leaf)[1]


def test_paused_ad_comes_back(tmp_path):
    write_index(tmp_path)
    before = IndexReader(tmp_path).snapshot
    ad = int(before.leaf_ad_ids[3])
    assert command.set_status(tmp_path, [ad], "deleted") == 2
    assert ad not in IndexReader(tmp_path).snapshot.leaf_ad_ids
    assert command.set_status(tmp_path, [ad], "active") == 3
    assert same(IndexReader(tmp_path).snapshot, before)
    with pytest.raises(ValueError, match="expected ads that are in the index, got unknown ad 12345"):
        command.set_status(tmp_path, [ad, 12345], "paused")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (AdRecord(-1, (0, 0, 0)), "ad -1: expected an id in 0 .. 2"),
        (AdRecord(1 << 63, (0, 0, 0)), "ad 9223372036854775808: expected an id in 0 .. 2"),
        (AdRecord(1, (0, 0)), r"one code a level below \(4, 3, 5\), got \(0, 0\)"),
        (AdRecord(1, (0, 3, 0)), r"one code a level below \(4, 3, 5\), got \(0, 3, 0\)"),
        (AdRecord(1, (0, 0, -1)), "one code a level below"),
        (AdRecord(1, (0, 0, 0), "gone"), r"expected status active \| paused \| deleted, got 'gone'"),
    ],
)
def test_a_bad_record_applies_nothing(tmp_path, bad, message):
    write_index(tmp_path)
    before = IndexReader(tmp_path).snapshot
    with (
        IndexWriter(tmp_path, level_sizes=SIZES, tokenizer_id="tok") as writer,
        pytest.raises(ValueError, match=message),
    ):
        writer.apply([AdRecord(888, (0, 0, 0)), bad])
    after = IndexReader(tmp_path).snapshot
    assert same(before, after)
    assert after.version == before.version


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, s, t: (np.append(a[1:], a[1]), s, t), "expected distinct ads, ad .* occurs 2 times"),
        (lambda a, s, t: (a, s[:, :2], t), r"expected SIDs \(40, 3\) and as many statuses, got \(40, 2\)"),
        (lambda a, s, t: (a, s, t[1:]), "and 39"),
        (lambda a, s, t: (a, s + 1, t), "expected one code a level below"),
        (lambda a, s, t: (a - 100, s, t), "expected an id in 0 .. 2"),
        (lambda a, s, t: (a, s, np.where(a == a[7], "on", t)), "got 'on'"),
    ],
)
def test_a_bad_build_leaves_the_old_content(tmp_path, change, message):
    write_index(tmp_path)
    before = IndexReader(tmp_path).snapshot
    ad_ids, sids, _ = random_catalogue(1)
    a, s, t = change(ad_ids, sids, np.full(40, "active"))
    with (
        IndexWriter(tmp_path, level_sizes=SIZES, tokenizer_id="tok") as writer,
        pytest.raises(ValueError, match=message),
    ):
        writer.build(a, s, statuses=t)
    assert same(IndexReader(tmp_path).snapshot, before)


def test_one_writer_at_a_time(tmp_path):
    with IndexWriter(tmp_path, level_sizes=SIZES, tokenizer_id="tok") as writer:
        with pytest.raises(IndexStoreError, match="another writer holds it"):
            IndexWriter(tmp_path, level_sizes=SIZES, tokenizer_id="tok")
        writer.apply([AdRecord(1, (0, 0, 0))])
    assert write_index(tmp_path) == 2  # free again


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"tokenizer_id": "new"}, "expected tokenizer_id new, it holds tok"),
        ({"level_sizes": (4, 3, 6)}, r"expected level_sizes \[4, 3, 6\], it holds \[4, 3, 5\]"),
    ],
)
def test_index_of_another_tokenizer(tmp_path, other, message):
    write_index(tmp_path)
    with pytest.raises(IndexStoreError, match=message):
        IndexWriter(tmp_path, **({"level_sizes": SIZES, "tokenizer_id": "tok"} | other))
    assert write_index(tmp_path) == 2  # the refusal let go of the lock


def test_a_writer_that_dies_mid_way_leaves_the_old_content(tmp_path):
    write_index(tmp_path)
    before = IndexReader(tmp_path).snapshot
    records = "(AdRecord(500 + i, (0, 0, 0)) if i < 50 else __import__('os')._exit(0) for i in range(99))"
    in_other_process(tmp_path, f"w.apply({records})")
    assert same(IndexReader(tmp_path).snapshot, before)
    assert write_index(tmp_path) == 2


def test_empty_index(tmp_path):
    with IndexWriter(tmp_path, level_sizes=SIZES, tokenizer_id="tok") as writer:
        writer.build(np.zeros(0, np.int64), np.zeros((0, 3), np.int32), statuses=np.zeros(0, "U8"))
    snapshot = IndexReader(tmp_path).snapshot
    assert snapshot.trie.leaves == 0
    codes, known = snapshot.sids_of(np.array([1, 2]))
    assert codes.shape == (2, 3)
    assert not known.any()
    assert snapshot.leaves_of(np.array([[0, 0, 0]])).tolist() == [-1]
    assert snapshot.ads_of_leaves(np.array([-1]))[1].tolist() == []
    assert snapshot.banned_leaves(np.array([4])).tolist() == []


def test_missing_and_unfinished_stores(tmp_path):
    with pytest.raises(IndexStoreError, match=r"expected a built index \(data.mdb\), found none"):
        IndexReader(tmp_path)
    IndexWriter(tmp_path, level_sizes=SIZES, tokenizer_id="tok").close()
    with pytest.raises(IndexStoreError, match="expected a complete build, but it carries no `meta` record"):
        IndexReader(tmp_path)


def edit(path: Path, table: bytes, key: bytes, value: bytes) -> None:
    with lmdb.open(str(path), max_dbs=4) as environment, environment.begin(write=True) as transaction:
        transaction.put(key, value, db=environment.open_db(table, txn=transaction))


def test_newer_format(tmp_path):
    write_index(tmp_path)
    edit(tmp_path, META, b"index", json.dumps({"format": 9, "sequence": 1}).encode())
    with pytest.raises(IndexStoreError, match="expected format 1, got 9"):
        IndexReader(tmp_path)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        (META, b"index", b"{no json"),
        (META, b"index", b"\xff\xfe"),
        (META, b"index", b'{"format": 1}'),
        (ADS, b"\0" * 8, b"short"),
        (ADS, b"short", b"\0" * 21),
        (ADS, b"\0" * 8, b"\0" * 50),  # two records long
        (ADS, b"\0" * 8, b"\0" * 9 + b"\x09" + b"\0" * 11),  # a code beyond its level
    ],
)
def test_corrupted_records(tmp_path, table, key, value):
    write_index(tmp_path)
    edit(tmp_path, table, key, value)
    with pytest.raises(IndexStoreError, match=str(tmp_path)):
        IndexReader(tmp_path)


def try_to_open(path: str) -> None:
    """In a process of its own, because a broken map could end it."""
    try:
        IndexReader(path)
    except IndexStoreError as error:
        print(error)
        raise SystemExit(3) from None


@pytest.mark.parametrize("keep", [0, 100, 9000, -4096])
def test_truncated_file_is_an_error_and_not_a_crash(tmp_path, keep):
    write_index(tmp_path)
    data = (tmp_path / "data.mdb").read_bytes()
    (tmp_path / "data.mdb").write_bytes(data[:keep])
    process = multiprocessing.get_context("fork").Process(target=try_to_open, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == 3


def test_overwritten_file(tmp_path):
    write_index(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"nonsense" * 9000)
    with pytest.raises(IndexStoreError, match="LMDB cannot open it"):
        IndexReader(tmp_path)


def test_build_command_names_ads_without_a_sid(tmp_path):
    pl.DataFrame({"ad_id": [1, 2], "status": ["active", "paused"]}).write_parquet(tmp_path / "ads.parquet")
    pl.DataFrame({"ad_id": [1], "s1": [0], "s2": [1], "s3": [2]}).write_parquet(tmp_path / "sids.parquet")
    arguments = {
        "ads": tmp_path / "ads.parquet",
        "sids": tmp_path / "sids.parquet",
        "out": tmp_path / "index",
        "level_sizes": SIZES,
        "tokenizer_id": "tok",
    }
    with pytest.raises(ValueError, match="expected a SID for every ad .* 1 have none, first ad_id 2"):
        command.build(**arguments)
    pl.DataFrame({"ad_id": [2, 1], "s1": [3, 0], "s2": [0, 1], "s3": [0, 2]}).write_parquet(
        tmp_path / "sids.parquet"
    )
    assert command.build(**arguments) == 1
    snapshot = IndexReader(tmp_path / "index").snapshot
    assert snapshot.sids_of(np.array([1, 2]))[0].tolist() == [[0, 1, 2], [3, 0, 0]]
    assert snapshot.leaf_ad_ids.tolist() == [1]
