"""The store against a model of a few lines, after every step, whatever the order of the steps."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from indexer.events.event import AdEvent
from indexer.events.parse import event_of
from indexer.store.backups import back_up, restore
from indexer.store.compaction import adopt_base, compact
from indexer.store.generations import drop_generation, fill
from indexer.store.index_store import IndexStore
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
    resume,
    reverse_table,
    sound,
    update,
)


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


QUICK = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
ENCODERS = {"tok": FakeEncoder("tok"), "new": FakeEncoder("new", (7, 2))}
STATUS = {"create": "active", "resume": "active", "pause": "paused", "delete": "deleted"}


@dataclass
class Ad:
    status: str
    status_version: int
    content: dict
    content_version: int


class Model:
    """What the events should do, in plain dictionaries."""

    def __init__(self):
        self.ads: dict[int, Ad] = {}
        self.dead: list[AdEvent] = []  # that wait

    def apply(self, event: AdEvent) -> str:
        result = self.once(event)
        if result == "rejected" and event not in self.dead:
            self.dead.append(event)
        while result == "applied":
            ready = sorted((e for e in self.dead if e.ad_id == event.ad_id), key=lambda e: e.version)
            done = [(e, r) for e in ready if (r := self.once(e)) != "rejected"]
            self.dead = [e for e in self.dead if e not in [d for d, _ in done]]
            if "applied" not in [r for _, r in done]:
                break
        return result

    def once(self, event: AdEvent) -> str:
        ad = self.ads.get(event.ad_id)
        if ad is None:
            if event.kind != "create":
                return "rejected"
            self.ads[event.ad_id] = Ad("active", event.version, event.content, event.version)
            return "applied"
        newer_status = event.kind in STATUS and event.version > ad.status_version
        newer_content = bool(event.content) and event.version > ad.content_version
        if not newer_status and not newer_content:
            return "stale"
        if event.kind == "create" and newer_status and ad.status != "deleted":
            return "rejected"
        if newer_status:
            ad.status, ad.status_version = STATUS[event.kind], event.version
        if newer_content:
            ad.content, ad.content_version = ad.content | event.content, event.version
        return "applied"


def check(store: IndexStore, model: Model) -> None:
    ads = {a: store.ad(a) for a in range(-1, 6) if a >= 0}
    assert {a for a, view in ads.items() if view} == model.ads.keys()
    for ad_id, ad in model.ads.items():
        view = ads[ad_id]
        assert view is not None
        assert (view.status, view.status_version) == (ad.status, ad.status_version)
        assert (view.content, view.content_version) == (ad.content, ad.content_version)
    assert {(x.event["ad_id"], x.event["version"], x.event["kind"]) for x in store.dead_letters()} == {
        (e.ad_id, e.version, e.kind) for e in model.dead
    }
    for name, generation in store.meta.generations.items():
        sids = {a: ENCODERS[name].sid(a, **ad.content) for a, ad in model.ads.items()}
        active = {(sids[a], a) for a, ad in model.ads.items() if ad.status == "active"}
        if generation.ready:
            expected = {a: (ad.status == "active", sids[a]) for a, ad in model.ads.items()}
            assert as_reader_sees(store, name) == expected
            assert {a: view.sids[name] for a, view in ads.items() if view} == sids
            assert reverse_table(store, name) == active
        else:
            assert reverse_table(store, name) <= active
    assert sound(store)


IDS, VERSIONS = st.integers(0, 5), st.integers(0, 12)
TEXTS = st.sampled_from("abcdef")
EVENTS = st.one_of(
    st.builds(create, IDS, VERSIONS, TEXTS, TEXTS),
    st.builds(update, IDS, VERSIONS, text=TEXTS),
    st.builds(update, IDS, VERSIONS, text=TEXTS, account_id=TEXTS),
    *(st.builds(event, IDS, VERSIONS) for event in (pause, resume, delete)),
)


class Steps(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.path, self.model, self.backups = self.folder / "index", Model(), 0
        self.store = empty_store(self.path, ENCODERS["tok"])
        self.offset = 0

    @rule(events=st.lists(EVENTS, min_size=1, max_size=8))
    def events(self, events):
        self.take(events)

    def take(self, events):
        before = self.store.meta.sequence
        self.offset += 1
        outcomes = apply(self.store, *events, offset=self.offset)
        for event, outcome in zip(events, outcomes, strict=True):
            result = self.model.apply(event)
            assert outcome.result == result or (
                result == "rejected" and outcome.result in ("applied", "stale")
            )
            assert outcome.sequence == self.store.meta.sequence
        changed = any(o.result == "applied" for o in outcomes)
        assert self.store.meta.sequence == before + changed
        assert self.store.offset("test") == str(self.offset).encode()

    def reopen(self):
        encoders = [ENCODERS[n] for n in self.store.meta.generations]
        counters, meta, rows = self.store.file.counters, self.store.meta, self.store.file.log_rows
        self.store.close()
        self.store = open_store(self.path, *encoders)
        assert (self.store.file.counters, self.store.meta, self.store.file.log_rows) == (counters, meta, rows)

    @rule()
    def restart(self):
        self.reopen()

    @rule()
    def compaction(self):
        ready = [n for n, g in self.store.meta.generations.items() if g.ready]
        self.store.close()
        sequences = {n: compact(self.path, n) for n in ready}
        self.store = open_store(self.path, *(ENCODERS[n] for n in self.store.meta.generations))
        for name, sequence in sequences.items():
            adopt_base(self.store.file, name, sequence=sequence)
            assert self.store.file.log_rows[name] == 0
            assert self.store.meta.generations[name].base == self.store.meta.sequence

    @precondition(lambda self: "new" not in self.store.meta.generations)
    @rule()
    def another_generation(self):
        self.store.add_encoder(ENCODERS["new"])

    @precondition(lambda self: "new" in self.store.meta.generations)
    @rule(limit=st.integers(1, 3))
    def fill_some(self, limit):
        left = fill(self.store.file, ENCODERS["new"], limit=limit)
        assert self.store.meta.generations["new"].ready == (left == 0)

    @precondition(lambda self: "new" in self.store.meta.generations)
    @rule(events=st.lists(EVENTS, min_size=1, max_size=4))
    def events_without_the_encoder_of_an_unfinished_generation(self, events):
        if not self.store.meta.generations["new"].ready:
            del self.store.encoders["new"]
            self.take(events)
            self.store.encoders["new"] = ENCODERS["new"]

    @precondition(lambda self: "new" in self.store.meta.generations)
    @rule()
    def drop(self):
        drop_generation(self.store.file, "new")

    @rule(events=st.lists(EVENTS, max_size=4))
    def back_up_and_restore(self, events):
        """What comes after the backup is lost, and the sequence number goes on all the same."""
        self.backups += 1
        out = self.folder / f"backup-{self.backups}"
        generations = self.store.meta.generations
        self.store.close()
        manifest = back_up(self.path, out)
        self.store = open_store(self.path, *(ENCODERS[n] for n in generations))
        assert manifest["sequence"] == self.store.meta.sequence
        offset, counters = self.store.offset("test"), self.store.file.counters
        apply(self.store, *events, offset=999)
        seen = self.store.meta.sequence
        self.store.close()
        assert restore(out, self.path) == seen + 1
        self.store = open_store(self.path, *(ENCODERS[n] for n in generations))
        assert self.store.meta.sequence == seen + 1
        assert (self.store.offset("test"), self.store.file.counters) == (offset, counters)

    @invariant()
    def agrees(self):
        if hasattr(self, "store"):
            check(self.store, self.model)

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)


Steps.TestCase.settings = QUICK
TestSteps = Steps.TestCase


@st.composite
def histories(draw) -> list[AdEvent]:
    """Events as a sane source makes them, in version order: a create only of an ad that is not there."""
    events = []
    for ad_id in range(draw(st.integers(1, 2))):
        version, status = draw(st.integers(0, 3)), "deleted"
        for kind in draw(st.lists(st.sampled_from(["update", "pause", "resume", "delete"]), max_size=6)):
            if status == "deleted":
                text = draw(TEXTS)
                events.append(create(ad_id, version, text, text))
                version, status = version + draw(st.integers(1, 3)), "active"
            text = draw(TEXTS)
            content = {"account_id": draw(TEXTS), "text": text} if kind == "update" else {}
            events.append(event_of({"kind": kind, "ad_id": ad_id, "version": version, **content}))
            status = STATUS.get(kind, status)
            version += draw(st.integers(1, 3))
    return events


def state(store: IndexStore) -> dict:
    views = {a: store.ad(a) for a in range(2)}
    return {
        a: v and (v.status, v.status_version, v.content, v.content_version, v.sids) for a, v in views.items()
    }


@settings(max_examples=80, deadline=None)
@given(histories(), st.data())
def test_any_order_and_repetition_ends_in_the_same_state(events, data):
    with tempfile.TemporaryDirectory() as folder:
        with empty_store(Path(folder) / "in-order") as store:
            for event in events:
                assert apply(store, event)[0].result == "applied"
            expected = state(store)
        again = data.draw(st.lists(st.sampled_from(events), max_size=4)) if events else []
        shuffled = data.draw(st.permutations(events + again))
        with empty_store(Path(folder) / "shuffled") as store:
            while shuffled:
                size = data.draw(st.integers(1, len(shuffled)))
                apply(store, *shuffled[:size])
                shuffled = shuffled[size:]
            assert state(store) == expected
            assert store.dead_letters() == []
            assert sound(store)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.sampled_from(["active", "paused", "deleted"])),
        unique_by=lambda x: x[0],
    )
)
def test_bulk_load_is_what_single_events_make(ads):
    encoder = FakeEncoder()
    with (
        tempfile.TemporaryDirectory() as folder,
        empty_store(Path(folder) / "events", encoder) as one,
        open_store(Path(folder) / "bulk") as other,
    ):
        for ad_id, status in ads:
            apply(one, create(ad_id, 0, "c"))
            if status != "active":
                apply(one, {"paused": pause, "deleted": delete}[status](ad_id, 1))
        build(other, {a: (encoder.sid(a, "a", "buy", "c"), s) for a, s in ads}, encoder)
        assert as_reader_sees(other) == as_reader_sees(one)
        assert reverse_table(other) == reverse_table(one)
        assert sound(other)
