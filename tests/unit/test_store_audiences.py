"""Audiences in the index: from events and tables to what readers see; compactions, restarts, formats."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import lmdb
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from indexer.commands.ads import export, show
from indexer.commands.build import build as build_from_tables
from indexer.events.parse import event_of, parse_event
from indexer.store import audience_numbers
from indexer.store import batch as batch_module
from indexer.store.compaction import adopt_base, compact
from indexer.store.forgetting import forget_deleted
from indexer.store.incoming import Incoming
from indexer.store.verify import verify
from serving.backend.resolve import resolve
from serving.index.audience import Audience
from serving.index.audience_table import AudienceTable
from serving.index.base import read_base
from serving.index.eligible import NO_TERMS, Terms
from serving.index.layout import (
    AD,
    AD_2,
    INDEX_KEY,
    META,
    IndexStoreError,
    base_folder,
    change_dtype,
    generation_tables,
)
from serving.index.overlay import Changes, with_changes
from serving.index.reader import IndexReader
from serving.keys import hash_of
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.audiences import TEXTS, is_in, some_terms
from tests.index_store import SIZES, FakeEncoder, apply, build, empty_store, load, open_store, results, sound
from tests.other_process import in_other_process
from tests.path_executor import PathExecutor

CONTENT = {"account_id": "acme", "conversion_type": "buy", "text": "shoes"}
AUDIENCES = [{}, *map(json.loads, TEXTS)]
VALUES = np.array([1.0, 2.0, 5.0, 9.0], np.float32)


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def event(kind, ad_id, version, **fields):
    return event_of({"kind": kind, "ad_id": ad_id, "version": version, **fields})


def reader_sees(store, name="tok"):
    """Base, change log and audiences as a reader puts them together; LMDB opens a store once a process."""
    generation = store.meta.generations[name]
    base = read_base(base_folder(store.file.path, name, sequence=generation.base))
    with store.file.read() as reading:
        with reading.txn.cursor(db=reading.tables.generations[name].changes) as cursor:
            raw = b"".join(cursor.iternext(keys=False, values=True))
        with reading.txn.cursor(db=reading.tables.audiences) as cursor:
            texts = {int.from_bytes(k, "big"): bytes(v).decode() for k, v in cursor}
    rows = np.frombuffer(raw, change_dtype(len(generation.level_sizes)))
    changes = Changes.none().with_rows(rows, generation.level_sizes)
    table = AudienceTable().now(texts) if texts else None
    return with_changes(base, changes, version=store.meta.sequence, audiences=table)


class Steps(RuleBasedStateMachine):
    """Events with audiences in version order, and all that happens to an index; answers against all ads."""

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.path, self.version = self.folder / "index", 0
        self.ads: dict[int, tuple[str, int, str, str]] = {}  # status, audience, account, text
        self.store = empty_store(self.path)

    def take(self, kind, ad, **fields):
        self.version += 1
        return results(apply(self.store, event(kind, ad, self.version, **fields)))[0]

    @rule(
        ad=st.integers(0, 9),
        text=st.sampled_from("abcd"),
        who=st.integers(-1, 4),
        account=st.sampled_from(["", "x", "y"]),
    )
    def create(self, ad, text, who, account):
        content = {"account_id": account, "conversion_type": "buy", "text": text}
        audience = {} if who < 0 else {"audience": AUDIENCES[who]}
        result = self.take("create", ad, **content, **audience)
        if self.ads.get(ad, ("deleted",))[0] == "deleted":
            assert result == "applied"
            self.ads[ad] = ("active", max(who, 0), account, text)
        else:
            assert result == "duplicate_create"
            self.store.drop_dead_letters()

    @rule(ad=st.integers(0, 9), who=st.integers(0, 4), text=st.one_of(st.none(), st.sampled_from("abcd")))
    def update(self, ad, who, text):
        result = self.take("update", ad, audience=AUDIENCES[who], **({} if text is None else {"text": text}))
        if ad in self.ads:
            assert result == "applied"
            status, _, account, before = self.ads[ad]
            self.ads[ad] = (status, who, account, before if text is None else text)
        else:
            self.store.drop_dead_letters()

    @rule(ad=st.integers(0, 9), kind=st.sampled_from(["pause", "resume", "delete"]))
    def status(self, ad, kind):
        result = self.take(kind, ad)
        if ad in self.ads:
            assert result == "applied"
            self.ads[ad] = (
                {"pause": "paused", "resume": "active", "delete": "deleted"}[kind],
                *self.ads[ad][1:],
            )
        else:
            self.store.drop_dead_letters()

    @rule()
    def restart(self):
        self.store.close()
        self.store = open_store(self.path, FakeEncoder())

    @rule()
    def compaction(self):
        self.store.close()
        sequence = compact(self.path, "tok")
        self.store = open_store(self.path, FakeEncoder())
        adopt_base(self.store.file, "tok", sequence=sequence)

    @rule()
    def forget(self):
        forget_deleted(self.store.file, before=1e12)
        self.ads = {a: v for a, v in self.ads.items() if v[0] != "deleted"}

    @rule()
    def sweep(self):
        with self.store.file.write() as writing:
            writing.audiences.keep(set(batch_module.read_ads(writing)["audience"].tolist()))

    @invariant()
    def holds_and_answers(self):
        if not hasattr(self, "store"):
            return
        assert sound(self.store)
        for ad, (status, who, *_) in self.ads.items():
            view = self.store.ad(ad)
            assert (view.status, view.audience) == (status, AUDIENCES[who])
        snapshot, encoder = reader_sees(self.store), FakeEncoder()
        random = np.random.default_rng(self.version)
        terms, num = some_terms(random, 2), int(random.integers(1, 6))
        excluded = [random.choice(["x", "y"], random.integers(0, 2)).tolist() for _ in terms]
        terms = [
            Terms(t.values, t.now, tuple(sorted(map(hash_of, e))))
            for t, e in zip(terms, excluded, strict=True)
        ]
        beams = beam_search(
            PathExecutor(SIZES),
            snapshot.trie,
            np.array([3, 8], np.int32)[:, None, None],
            np.zeros((2, 0), np.int32),
            plan=WidthPlan((60,) * 3, 1),
            num_results=np.full(2, num),
            value_table=VALUES,
            pool=np.full(2, num),
            eligible=[snapshot.eligible(t) for t in terms],
        )
        for row, request in enumerate((3, 8)):
            scores = {}
            for ad, (status, who, account, text) in self.ads.items():
                if status == "active" and is_in(who, terms[row]) and account not in excluded[row]:
                    sid = encoder.sid(ad, account, "buy", text)
                    scores[ad] = sum(
                        float(PathExecutor(SIZES).logprob(request, sid[:t])[sid[t]]) for t in range(3)
                    )
            got = resolve(
                snapshot,
                beams.sids[row],
                scores=beams.scores[row],
                expected_value=beams.expected_value[row],
                num_ads=num,
                exclude=np.zeros(0, np.int64),
                terms=terms[row],
            )
            assert got.ad_ids[got.ad_ids >= 0].tolist() == sorted(scores, key=lambda a: (-scores[a], a))[:num]

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)


Steps.TestCase.settings = settings(
    max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSteps = Steps.TestCase


def test_an_update_of_the_audience_alone_needs_no_encoder_and_moves_no_ad(tmp_path):
    with empty_store(tmp_path) as store:
        apply(store, event("create", 1, 1, **CONTENT))
        before, store.encoders = store.ad(1).sids, {}
        assert results(apply(store, event("update", 1, 2, audience={"end": 9}))) == ["applied"]
        assert store.ad(1).sids == before
        assert store.ad(1).audience == {"end": 9}
        assert results(apply(store, event("update", 1, 2, audience={}))) == ["stale"]
        assert results(apply(store, event("update", 1, 3, text="boots"))) == ["no_encoder"]
        assert sound(store)


def test_ads_without_content_can_have_an_audience(tmp_path):
    with empty_store(tmp_path) as store:
        build(store, {7: ((0, 0, 0), "active")}, FakeEncoder())
        assert results(apply(store, event("update", 7, 1, audience={"end": 9}))) == ["applied"]
        assert reader_sees(store).shown(np.array([7]), Terms.of({}, now=9)).tolist() == [False]


def test_unknown_columns_and_values_are_dead_letters_that_wait_for_nothing(tmp_path):
    with empty_store(tmp_path) as store:
        store.columns = {"age": ("young", "old"), "place": None}
        wrong = [{"age": {"in": ["ancient"]}}, {"sex": {"in": ["f"]}}, {"age": {"not_in": ["young", "old"]}}]
        events = [event("create", i, 1, **CONTENT, audience={"where": w}) for i, w in enumerate(wrong)]
        assert results(apply(store, *events)) == ["wrong_audience"] * 3
        message = store.dead_letters()[0].message
        assert message == "ad 0: audience.where.age: expected values of ['young', 'old'], got 'ancient'"
        raw = json.dumps(
            {
                "kind": "create",
                "ad_id": 9,
                "version": 1,
                **CONTENT,
                "audience": {"where": {"place": {"in": ["anywhere"]}}},
            }
        )
        assert results(store.apply([Incoming(parse_event(raw.encode()), raw.encode(), "test")])) == [
            "applied"
        ]
        store.columns = None
        assert results(store.replay()) == ["applied"] * 3


def test_so_many_audiences_and_no_more(tmp_path, monkeypatch):
    for module in (audience_numbers, batch_module):
        monkeypatch.setattr(module, "MAX_AUDIENCES", 3)
    with empty_store(tmp_path) as store:
        events = [event("create", i, 1, **CONTENT, audience={"end": 10 + i}) for i in range(4)]
        for e, expected in zip(events, ["applied"] * 3 + ["wrong_audience"], strict=True):
            assert results(apply(store, e)) == [expected]
        assert "expected at most 3 distinct ones in an index, got one more" in store.dead_letters()[0].message
        assert results(apply(store, event("create", 8, 1, **CONTENT, audience={"end": 10}))) == ["applied"]
        assert results(apply(store, event("update", 0, 2, audience={}))) == ["applied"]
        assert results(apply(store, event("update", 8, 2, audience={}))) == ["applied"]
        # Nobody has the first any more: its number is free for another one.
        assert results(apply(store, event("create", 9, 1, **CONTENT, audience={"end": 99}))) == ["applied"]
        assert sound(store)
        snapshot = reader_sees(store)
        assert snapshot.shown(np.array([0, 1, 2, 8, 9]), Terms.of({}, now=50)).tolist() == [
            True,
            False,
            False,
            True,
            True,
        ]


@pytest.mark.parametrize("in_batch", [True, False])
def test_what_a_failed_transaction_took_is_free_again(tmp_path, in_batch):
    class Broken(FakeEncoder):
        def encode(self, ad_ids, contents):
            raise RuntimeError("no")

    with empty_store(tmp_path) as store:
        apply(store, event("create", 1, 1, **CONTENT, audience={"end": 5}))
        good, store.encoders = store.encoders, {"tok": Broken()}
        with pytest.raises(IndexStoreError):
            apply(store, event("create", 2, 1, **CONTENT, audience={"end": 6}))
        store.encoders = good
        apply(store, event("create", 3, 1, **CONTENT, audience={"end": 7}))
        assert store.file.audiences.texts == {0: "", 1: '{"end":5}', 2: '{"end":7}'}
        assert sound(store)


def test_tables_bring_audiences(tmp_path):
    ads = [{"end": 10}, None, '{"where":{"age":{"in":["old"]}}}', {}]
    with empty_store(tmp_path / "index") as store:
        apply(store, event("create", 50, 1, **CONTENT, audience={"end": 3}))
        columns = {name: [value] * 4 for name, value in CONTENT.items()}
        store.build(
            "tok",
            SIZES,
            ad_ids=np.array([4, 3, 2, 1]),
            sids=np.zeros((4, 3), np.int32),
            statuses=np.array(["active"] * 4),
            content=columns,
            audiences=ads,
        )
        assert [store.ad(a).audience for a in (4, 3, 2, 1)] == [{"end": 10}, {}, json.loads(ads[2]), {}]
        assert sound(store)
        found = reader_sees(store)
        assert found.shown(np.arange(1, 5), Terms.of({"age": "old"}, now=5)).tolist() == [True] * 4
        assert found.shown(np.arange(1, 5), NO_TERMS).tolist() == [True, False, True, False]
        assert found.traits_of(np.array([4]))[1].tolist() == [hash_of("acme")]
        with pytest.raises(
            ValueError, match=r"ad 3: audience: expected an object with where, start, end, got \[7\]"
        ):
            store.build(
                "tok",
                SIZES,
                ad_ids=np.array([3]),
                sids=np.zeros((1, 3), np.int32),
                statuses=np.array(["active"]),
                audiences=[[7]],
            )
        load(store)  # tables without audiences
        assert len(store.file.audiences.texts) == 1
        assert reader_sees(store).audiences is None
    export(tmp_path / "index", tmp_path / "ads.parquet")
    assert pl.read_parquet(tmp_path / "ads.parquet")["audience"].null_count() == 40


def test_a_column_of_the_ads_table_becomes_audiences(tmp_path):
    pl.DataFrame(
        {
            "ad_id": [3, 5],
            "status": ["active", "active"],
            **{name: [value] * 2 for name, value in CONTENT.items()},
            "audience": ['{"end": 9, "where": {}}', None],
        }
    ).write_parquet(tmp_path / "ads.parquet")
    pl.DataFrame({"ad_id": [3, 5], "s1": [0, 1], "s2": [0, 1], "s3": [0, 1]}).write_parquet(
        tmp_path / "sids.parquet"
    )
    files = {"ads": tmp_path / "ads.parquet", "sids": tmp_path / "sids.parquet", "out": tmp_path / "index"}
    build_from_tables(**files, level_sizes=SIZES, tokenizer_id="tok")
    with open_store(tmp_path / "index") as store:
        assert [store.ad(a).audience for a in (3, 5)] == [{"end": 9}, {}]
        assert store.ad(3).content == CONTENT
        assert sound(store)


def as_format_2(path):
    """Rewrite an index as the release before wrote it: shorter records, and no audiences anywhere."""
    environment = lmdb.open(str(path / "store"), max_dbs=40)
    with environment.begin(write=True) as txn:
        meta = environment.open_db(META, txn=txn)
        said = json.loads(txn.get(INDEX_KEY, db=meta))
        said.pop("audiences")
        txn.put(INDEX_KEY, json.dumps(said | {"format": 2}).encode(), db=meta)
        txn.delete(b"digests", db=meta)
        ads = environment.open_db(b"ads", txn=txn)
        for key, value in list(txn.cursor(db=ads)):
            txn.put(key, value[: AD_2.itemsize], db=ads)
        changes = environment.open_db(generation_tables("tok").changes, txn=txn)
        for key, value in list(txn.cursor(db=changes)):
            rows = np.frombuffer(value, change_dtype(3))
            old = np.zeros(len(rows), change_dtype(3, format=2))
            for name in old.dtype.names:
                old[name] = rows[name]
            txn.put(key, old.tobytes(), db=changes)
        txn.drop(environment.open_db(b"audiences", txn=txn), delete=True)
    environment.close()
    for manifest in path.glob("base/*/*/base.json"):
        said = json.loads(manifest.read_text())
        gone = {"ad_audiences", "ad_accounts", "account_ids"} & said["arrays"].keys()
        said["format"], said["arrays"] = 2, {k: v for k, v in said["arrays"].items() if k not in gone}
        for name in gone:
            (manifest.parent / f"{name}.npy").unlink()
            for part in ("bytes", "sha256"):
                said[part].pop(f"{name}.npy")
        manifest.write_text(json.dumps(said))


def test_an_index_of_the_format_before_is_read_and_becomes_one_of_this(tmp_path):
    path = tmp_path / "index"
    with empty_store(path) as store:
        apply(
            store, *(event("create", a, 1, **CONTENT | {"account_id": f"account {a % 2}"}) for a in range(8))
        )
        apply(store, event("pause", 3, 2), event("delete", 4, 2))
        expected = {a: (store.ad(a).status, store.ad(a).sids) for a in range(8)}
    as_format_2(path)
    before = in_other_process(_read, path)
    assert before["known"] == list(range(8))
    assert in_other_process(verify, path) == []  # as the sidecar asks before it opens the index
    assert json.loads(in_other_process(show, path, 3))["status"] == "paused"
    assert before["accounts"] == [0] * 8
    assert AD_2.itemsize < AD.itemsize
    with open_store(path, FakeEncoder()) as store:
        assert store.meta.format == 3
        assert {a: (store.ad(a).status, store.ad(a).sids) for a in range(8)} == expected
        assert sound(store)
        assert store.file.log_rows == {"tok": 0}
        assert results(apply(store, event("update", 2, 2, audience={"end": 5}))) == ["applied"]
        assert store.ad(2).audience == {"end": 5}
        assert sound(store)
    after = in_other_process(_read, path)
    assert after["live"] == before["live"]
    assert after["accounts"] == [hash_of(f"account {a % 2}") for a in range(8)]
    assert after["shown"] == [a != 2 for a in range(8)]
    assert verify(path) == []


def _read(path):
    reader = IndexReader(path)
    snapshot = reader.snapshot
    ads = snapshot.ad_ids
    found = {
        "known": ads.tolist(),
        "live": sorted(snapshot.leaf_ad_ids.tolist()),
        "accounts": snapshot.traits_of(ads)[1].tolist(),
        "shown": snapshot.shown(ads, Terms.of({}, now=9)).tolist(),
    }
    reader.close()
    return found


def test_a_reader_follows_audiences(tmp_path):
    """Another process writes; flights and columns are of the request."""
    with empty_store(tmp_path) as store:
        apply(store, event("create", 1, 1, **CONTENT), event("create", 2, 1, **CONTENT, audience={"end": 50}))
    reader = IndexReader(tmp_path, max_wait_s=0.0)
    ads = np.array([1, 2])
    assert reader.snapshot.shown(ads, Terms.of({}, now=49)).tolist() == [True, True]
    assert reader.snapshot.shown(ads, Terms.of({}, now=50)).tolist() == [True, False]
    old = reader.snapshot
    in_other_process(_restrict, tmp_path)
    assert reader.refresh()
    assert reader.snapshot.shown(ads, Terms.of({}, now=50)).tolist() == [False, True]
    assert reader.snapshot.shown(ads, Terms.of({"age": "old"}, now=50)).tolist() == [True, True]
    assert old.shown(ads, Terms.of({}, now=50)).tolist() == [
        True,
        False,
    ]  # what somebody holds stays as it is
    reader.close()


def _restrict(path):
    with open_store(path, FakeEncoder()) as store:
        apply(store, event("update", 1, 2, audience=json.loads(TEXTS[0])), event("update", 2, 2, audience={}))


def test_texts_in_tests_are_canonical():
    assert [Audience.parse(t).text for t in TEXTS] == list(TEXTS)
