"""A canary from its beginning to its end: commands, the watch over a feedback store, crashes."""

import json
import time

import pytest

from export import canary_watch, commands, verdicts
from export.canary_watch import CanaryWatch, promote, roll_back_canary
from export.publish import Place, PublishError, begin_canary
from export.verdicts import Verdict, add_verdict, read_verdicts, rolled_back
from export.versions import listed, pin, remove_superseded
from feedback.store.layout import TABLES, number_key, open_environment
from feedback.store.meta import STATE, Meta
from feedback.store.samples import encode_sample
from serving.model.bundle import BundleError, versions
from serving.model.canary import read_canary
from serving.model.current import CANARY, current_version
from serving.model.pinned import PinError
from tests.pipeline import copy_of, serving_config
from tests.served import served
from tests.unit.test_bundle import edit
from tests.unit.test_scheduler import add_version
from training.preset.publish import PublishConfig

RULE = PublishConfig(canary_share=0.5, canary_requests=400)


@pytest.fixture
def place(pipeline, tmp_path):
    """Version 1 serves; 2 and 3 are there."""
    made = copy_of(pipeline, tmp_path)
    for version in (2, 3):
        add_version(made.bundles, version)
    config = serving_config().model_copy(update={"graph_calls": "in_process"})
    return Place(made.bundles, made.repository, made.index, config)


def command(place, name, *more):
    options = ["--config=configs/demo.yaml", "--set=serving.widths=4-8-16:6", f"--index={place.index}"]
    options += ["--set=serving.graph_calls=in_process", f"--repository={place.repository}"]
    commands.main([name, f"--run={place.bundles.parent}", *options, *more])


class Store:
    """A feedback store that a test writes; who reads it in this process lets go of it between two looks."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0
        (folder / "store").mkdir(parents=True)
        self.add(1, [])

    def add(self, version, values, *, written=None, revision=0):
        """A sample of each value, of an answer by a version."""
        with open_environment(self.folder, readonly=False, map_size=1 << 26) as environment:
            tables = {name: environment.open_db(name.encode()) for name in TABLES}
            with environment.begin(write=True) as txn:
                for value in values:
                    self.count += 1
                    record = served(
                        f"r{self.count}", model_version=version, written=written or time.time()
                    ).encode()
                    facts = [(30, 3, 1_001, float(value))] if value else []
                    sample = encode_sample(record, revision=revision, facts=facts)
                    txn.put(number_key(self.count), sample, db=tables["samples"])
                txn.put(STATE, Meta(sequence=self.count).encode(), db=tables["meta"])


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "feedback")


class Watch(CanaryWatch):
    """Lets go of the store after each look."""

    def look(self):
        try:
            return super().look()
        finally:
            self.close()


@pytest.fixture
def watch(place, store):
    said = []
    made = Watch(place, RULE, load=lambda name: None, say=said.append, feedback=store.folder)
    made.said = said
    return made


def begin(place, version=2):
    assert begin_canary(version, place, share=0.5)
    return read_canary(place.bundles)


def test_one_that_earns_less_is_rolled_back(place, store, watch):
    store.add(2, [0] * 500, written=1.0)  # of before
    canary = begin(place)
    store.add(1, [9] * 50)  # before the canary answered anything
    assert watch.look() is None
    store.add(2, [0] * 10)
    store.add(1, [1, 0] * 20)
    assert watch.look() is None
    store.add(2, [0] * 100, revision=1)  # corrections do not count
    for _ in range(10):
        store.add(1, [1, 0] * 10)
        store.add(2, [0] * 20)
        if (verdict := watch.look()) is not None:
            break
    assert (verdict.version, verdict.verdict) == (canary.version, "rolled back")
    assert verdict.figures["answers"] < 300
    assert verdict.figures["value_beside"] == pytest.approx(0.5)
    assert (read_canary(place.bundles), current_version(place.bundles)) == (None, 1)
    assert rolled_back(place.bundles) == {2}
    assert watch.look() is None
    [row] = [row for row in listed(place.bundles) if row["version"] == 2]
    assert "rolled back: value of an answer 0, 0.5 beside it" in row["state"]


def test_one_that_is_as_good_answers_all_after_enough_requests(place, store, watch):
    begin(place)
    for _ in range(3):
        store.add(2, [1, 0] * 60)
        store.add(1, [0, 1] * 60)
        assert watch.look() is None
    store.add(2, [1, 0] * 60)
    # A watch that begins anew knows what the one before knew.
    again = Watch(place, RULE, load=lambda name: None, say=print, feedback=store.folder)
    assert again.look().verdict == "promoted"
    assert (read_canary(place.bundles), current_version(place.bundles)) == (None, 2)
    assert read_verdicts(place.bundles)[-1].figures["answers"] == 480


def test_without_feedback_it_is_held_and_that_is_said_once(place, watch):
    begin(place)
    for _ in range(3):
        assert watch.look() is None
    assert watch.said == ["canary 2: no value came of 0 answers of the version beside it"]
    said = []
    for feedback in (None, place.bundles / "none"):
        blind = CanaryWatch(place, RULE, load=lambda name: None, say=said.append, feedback=feedback)
        assert blind.look() is None
        assert blind.look() is None
    assert len(said) == 2
    assert said[0] == "canary 2 is held: no feedback store tells what came of its answers"
    assert "expected a feedback store, found none" in said[1]
    assert read_canary(place.bundles) is not None


def test_one_that_the_server_refuses_is_rolled_back_at_once(place, tmp_path):
    begin(place, 3)
    page = tmp_path / "metrics"
    line = 'gr4ad_canary_refused{process="beam_scheduler_0_0",reason="answers"} %s\n'
    page.write_text(line % 2)  # of the one before
    said = []
    watch = CanaryWatch(place, RULE, load=print, say=said.append, metrics=page.as_uri())
    assert watch.look() is None
    page.write_text("gr4ad_model_version 1\n" + line % "3.0")
    watch._ask_at = 0.0
    assert watch.look().reason == "the server refuses it: answers"
    assert read_canary(place.bundles) is None


def test_what_begins_and_what_does_not(place):
    with pytest.raises(PublishError, match="expected serving.graph_calls: in_process for a canary"):
        begin_canary(2, Place(place.bundles, place.repository, place.index, serving_config()), share=0.5)
    begin(place, 3)
    assert not begin_canary(2, place, share=0.5)  # the latest wins
    assert not begin_canary(1, place, share=0.5)
    assert read_canary(place.bundles).version == 3
    add_version(place.bundles, 4, tokenizer_id="another")
    with pytest.raises(PublishError, match="expected a canary of tokenizer"):
        begin_canary(4, place, share=0.5)
    edit(
        place.bundles / "4",
        tokenizer_id=json.loads((place.bundles / "1/manifest.json").read_text())["tokenizer_id"],
    )
    (place.bundles / "4" / "prefix.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="prefix.onnx"):
        begin_canary(4, place, share=0.5)
    assert read_canary(place.bundles).version == 3
    pin(place.bundles, 1)
    assert read_canary(place.bundles) is None
    with pytest.raises(PinError):
        begin_canary(3, place, share=0.5)


def test_it_stays_on_disk_while_it_is_tried(place):
    begin(place, 2)
    for version in range(4, 8):
        add_version(place.bundles, version)
    remove_superseded(place.bundles, index=place.index, kept=2)
    assert versions(place.bundles) == [1, 2, 6, 7]


def test_a_verdict_on_one_that_has_ended_meanwhile_changes_nothing(place):
    old = begin(place, 2)
    begin(place, 3)
    assert promote(old, place, load=print, reason="late") is None
    assert roll_back_canary(place.bundles, old, reason="late") is None
    assert (current_version(place.bundles), read_canary(place.bundles).version) == (1, 3)
    assert read_verdicts(place.bundles) == []


def test_a_full_disk_does_not_keep_a_bad_one_serving(place, monkeypatch):
    canary = begin(place)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verdicts, "write_file", full)
    with pytest.raises(OSError, match="No space"):
        roll_back_canary(place.bundles, canary, reason="it earns less")
    assert read_canary(place.bundles) is None


def test_the_commands(place, capsys, monkeypatch):
    share = "--set=publish.canary_share=0.25"
    command(place, "canary")
    command(place, "publish", share)
    assert read_canary(place.bundles).version == 3
    command(place, "rollback")
    assert (read_canary(place.bundles), current_version(place.bundles)) == (None, 1)
    command(place, "publish", share)  # not the one that was rolled back
    assert read_canary(place.bundles).version == 2
    commands.main(["versions", f"--run={place.bundles.parent}"])
    assert "canary: 0.25 of the requests" in capsys.readouterr().out
    command(place, "canary", "--end")
    begin(place, 3)
    command(place, "canary", "--promote")
    assert (read_canary(place.bundles), current_version(place.bundles)) == (None, 3)
    add_version(place.bundles, 4)
    begin(place, 4)
    monkeypatch.setattr(canary_watch.CanaryWatch, "_refused", lambda *_: "the server refuses it: files")
    command(place, "canary")
    assert capsys.readouterr().out.splitlines() == [
        "canary 2 rolled back: by command",
        "canary 3 promoted: by command",
        "canary 4 rolled back: the server refuses it: files",
    ]
    add_version(place.bundles, 5)
    begin(place, 5)
    command(place, "rollback", "--version=1")  # whatever moves CURRENT ends it
    assert not (place.bundles / CANARY).exists()


def test_damaged_verdicts_are_left_out(place):
    add_verdict(place.bundles, Verdict(version=2, verdict="promoted", reason="x", at=1.0))
    with (place.bundles / verdicts.VERDICTS).open("a") as file:
        file.write('{"version": "two"}\nnonsense\n')
    add_verdict(place.bundles, Verdict(version=3, verdict="rolled back", reason="y", at=2.0))
    assert [v.version for v in read_verdicts(place.bundles)] == [2, 3]
    assert rolled_back(place.bundles) == {3}
