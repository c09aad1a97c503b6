"""A canary in the scheduler: whose requests it answers, and what becomes of it."""

import dataclasses

import numpy as np
import pytest

from serving.cache import LocalCache
from serving.index.reader import IndexReader
from serving.model.active_model import ActiveModel
from serving.model.bundle import BundleError
from serving.model.canary import Canary, read_canary, write_canary
from serving.model.current import CANARY, point_current
from serving.scheduler import Scheduler
from tests.recording import FakeGraphs
from tests.tiny import SPEC
from tests.unit.test_scheduler import PLAN, Recorder, add_version, deployment, requests

__all__ = ["deployment"]
NAMES = [f"r{i}" for i in range(60)]


class Failing(Recorder):
    """A version that fails, or finds scores that are no numbers."""

    how = "fine"

    def prefix(self, slots, profile):
        logprob, carry = super().prefix(slots, profile)
        if self.version == 2 and self.how == "fails":
            raise RuntimeError("no memory")
        return (logprob * np.float32("nan") if self.version == 2 and self.how == "nan" else logprob), carry


@pytest.fixture
def made(deployment, monkeypatch):
    """A scheduler at version 1, with 2 and 3 beside it; `opened` are the versions that were."""
    bundles, index, tokenizer_id = deployment
    add_version(bundles, 2)
    add_version(bundles, 3)
    reader = IndexReader(index, tokenizer_id=tokenizer_id, max_wait_s=0.0)
    monkeypatch.setattr("serving.model.version_watch.POLL_S", 3600.0)  # the test looks
    monkeypatch.setattr(Failing, "how", "fine")
    prepared, opened, searches = [], [], []
    graphs = FakeGraphs(prepare=lambda manifest: prepared.append(manifest.version))
    active = ActiveModel(bundles, reader=reader, graphs=graphs, features=SPEC, canaries=True)

    def executor(manifest):
        opened.append(manifest.version)
        return Failing(manifest.version, searches)

    scheduler = Scheduler(
        reader,
        active,
        plan=PLAN,
        make_executor=executor,
        cache=LocalCache(ttl_s=60, max_bytes=1 << 20),
    )
    scheduler.bundles, scheduler.prepared, scheduler.opened, scheduler.searches = (
        bundles,
        prepared,
        opened,
        searches,
    )
    return scheduler


def begin(made, version=2, *, share=0.5, beside=1):
    canary = Canary(version=version, beside=beside, share=share, began=0.0)
    write_canary(made.bundles, canary)
    return canary


def search(made, names=NAMES, *, looked=True):
    if looked:
        made._active._watch.look()
    rows = requests(len(names))
    return made.search([dataclasses.replace(r, request_id=n) for r, n in zip(rows, names, strict=True)])


def test_its_share_alone_is_answered_by_it(made):
    canary = begin(made)
    result = search(made)
    assert [a.model_version == 2 for a in result.answers] == [canary.takes(name) for name in NAMES]
    assert {a.model_version for a in result.answers} == {1, 2}
    report = result.report
    assert (report.version, report.canary, report.canary_failed) == (1, 2, 0)
    assert report.canary_answered == sum(map(canary.takes, NAMES))
    # From the cache, whose entries are of one version each.
    before = len(made.searches)
    again = search(made)
    assert [a.model_version for a in again.answers] == [a.model_version for a in result.answers]
    assert len(made.searches) == before
    assert (again.report.hits, again.report.misses) == (len(NAMES), 0)
    assert {a.model_version for a in search(made, [None] * 5).answers} == {1}


def test_the_share_is_what_was_asked_for_and_another_one_for_each_canary():
    names = [f"request-{i}" for i in range(20_000)]
    for share in (0.01, 0.2):
        one, other = (Canary(version=v, beside=1, share=share, began=0.0) for v in (2, 3))
        taken = np.array([[c.takes(name) for name in names] for c in (one, other)])
        sigma = np.sqrt(share * (1 - share) / len(names))
        assert abs(taken[0].mean() - share) < 4 * sigma
        assert abs((taken[0] & taken[1]).mean() - share**2) < 4 * np.sqrt(share**2 / len(names))
        wider = one.model_copy(update={"share": 2 * share})
        assert all(wider.takes(name) for name, mine in zip(names, taken[0], strict=True) if mine)
    assert not one.takes(None)
    assert not one.takes("")


def test_it_is_prepared_beside_the_batches(made):
    begin(made)
    assert {a.model_version for a in search(made, looked=False).answers} == {1}
    assert {a.model_version for a in search(made).answers} == {1, 2}
    assert (made.prepared, made.opened) == ([1, 2], [1, 2])


def test_promoted_it_goes_on_with_the_graphs_that_are_open(made):
    begin(made)
    search(made)
    point_current(made.bundles, 2)
    assert not (made.bundles / CANARY).exists()
    assert {a.model_version for a in search(made, looked=False).answers} == {2}
    assert (made.prepared, made.opened) == ([1, 2], [1, 2])
    assert set(made._opened) == {2}


def test_ended_it_answers_nothing_and_may_come_back(made):
    begin(made)
    search(made)
    write_canary(made.bundles, None)
    result = search(made)
    assert {a.model_version for a in result.answers} == {1}
    assert (result.report.canary, set(made._opened)) == (None, {1})
    begin(made)
    assert {a.model_version for a in search(made).answers} == {1, 2}
    assert made.prepared == [1, 2, 2]  # its graphs were let go


def test_another_one_takes_its_place_and_two_are_open_at_most(made):
    begin(made)
    search(made)
    begin(made, 3)
    made._active._watch.look()
    assert made.prepared == [1, 2]  # not before the other is gone
    assert {a.model_version for a in search(made, looked=False).answers} == {1}
    assert set(made._opened) == {1}
    assert {a.model_version for a in search(made).answers} == {1, 3}


def test_a_new_version_of_current_ends_it_whatever_the_file_says(made):
    """Killed between the two writes of a publish: CURRENT names 3, CANARY is still there."""
    begin(made)
    search(made)
    content = (made.bundles / CANARY).read_bytes()
    point_current(made.bundles, 3)
    (made.bundles / CANARY).write_bytes(content)
    search(made)
    assert {a.model_version for a in search(made).answers} == {3}
    assert read_canary(made.bundles) is None


@pytest.mark.parametrize("how", ["fails", "nan"])
def test_one_that_fails_harms_nobody_and_is_refused_until_another_comes(made, how, monkeypatch):
    begin(made)
    monkeypatch.setattr(Failing, "how", how)
    result = search(made)
    assert {a.model_version for a in result.answers} == {1}
    assert result.report.failed == 0
    assert result.report.canary_failed == sum(Canary.takes(begin(made), name) for name in NAMES)
    version, refusal = result.report.canary_refused
    assert (version, refusal.reason) == (2, "answers")
    assert ("no memory" if how == "fails" else "expected beams that have a probability") in refusal.text
    searched = len(made.searches)
    result = search(made, ["other"] * 3)
    assert result.report.canary_refused is not None
    assert all(version == 1 for version, _ in made.searches[searched:])
    begin(made, 3)
    result = search(made)
    assert {a.model_version for a in result.answers} == {1, 3}
    assert result.report.canary_refused is None


def test_what_no_version_answers_is_not_its_fault(made, monkeypatch):
    begin(made)
    search(made)

    def broken(*args, **kwargs):
        raise RuntimeError("a request that breaks every search")

    monkeypatch.setattr("serving.scheduler.beam_search", broken)
    result = search(made, [f"new-{i}" for i in range(8)])
    assert result.report.failed == 8
    assert result.report.canary_refused is None
    assert result.report.canary == 2


def test_one_of_other_features_or_damaged_is_refused(made):
    begin(made)
    with (made.bundles / "2" / "prefix.onnx").open("ab") as file:
        file.write(b"more")
    result = search(made)
    assert {a.model_version for a in result.answers} == {1}
    assert result.report.canary_refused[1].reason == "files"
    add_version(made.bundles, 4, tokenizer_id="another")
    begin(made, 4)
    assert search(made).report.canary_refused[1].reason == "features"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "file: Invalid JSON"),
        ('{"version": 2, "beside": 1, "share": 0.5}', "began: Field required"),
        ('{"version": 2, "beside": 1, "share": NaN, "began": 0.0}', "share: "),
        ('{"version": 2, "beside": 1, "share": 1.5, "began": 0.0}', "share: Input should be less than 1"),
        ('{"version": 9, "beside": 1, "share": 0.5, "began": 0.0}', "expected one of the complete versions"),
        ("x" * 5_000, "at most 1,024 bytes"),
    ],
)
def test_a_damaged_file_is_no_canary(made, text, expected):
    (made.bundles / CANARY).write_text(text)
    with pytest.raises(BundleError, match=expected):
        read_canary(made.bundles)
    assert {a.model_version for a in search(made).answers} == {1}
