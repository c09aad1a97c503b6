"""What the console reads of a trainer and of a loop: whole records, damaged ones, none, and old ones."""

import json
import time

import pytest

from benchmarks.closed_loop.live import FILE
from console.feeds import LiveFeed
from console.frames import Frames
from console.learning import LOOP_FILE, read_earned, read_learnt
from console.reading import Reading
from tests.learning import earned, write_earned, write_learnt
from tests.unit.test_console_feeds import looks


def test_the_newest_record_of_the_newest_checkpoint_counts(tmp_path):
    assert read_learnt(tmp_path) is None
    write_learnt(tmp_path, step=8, probe_loss=3.0)
    write_learnt(tmp_path, step=24, probe_loss=2.5)
    found = read_learnt(tmp_path)
    assert (found.step, found.probe_loss, found.offset) == (24, 2.5, 240)
    # One that is removed between the listing and the look, and one without records.
    (tmp_path / "online" / "checkpoints" / "step-000032").mkdir()
    write_learnt(tmp_path, step=40, history=[])
    assert read_learnt(tmp_path).step == 24


@pytest.mark.parametrize("text", ["{", "[]", '{"step": 1}'])
def test_a_checkpoint_that_is_none_is_named(tmp_path, text):
    folder = tmp_path / "online" / "checkpoints" / "step-000008"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text(text)
    with pytest.raises(ValueError, match="step-000008: expected a checkpoint with its history"):
        read_learnt(tmp_path)


def test_of_a_loop_the_last_whole_line_counts(tmp_path):
    assert read_earned(tmp_path) is None
    path = tmp_path / LOOP_FILE
    path.write_text("")
    assert read_earned(tmp_path) is None
    for requests in range(400):  # longer than what is read of it
        write_earned(tmp_path, requests=requests)
    with path.open("a") as file:
        file.write('{"at": 1, "reque')
    assert read_earned(tmp_path).requests == 399


def test_a_line_that_is_none_is_named(tmp_path):
    (tmp_path / LOOP_FILE).write_text("what\n")
    with pytest.raises(ValueError, match="expected lines of JSON"):
        read_earned(tmp_path)
    (tmp_path / LOOP_FILE).write_text(json.dumps(earned() | {"revenue_online": float("nan")}) + "\n")
    with pytest.raises(ValueError, match=r"loop.jsonl: revenue_online: .*finite"):
        read_earned(tmp_path)


def test_the_file_that_a_loop_writes_is_the_one_that_is_read():
    assert FILE == LOOP_FILE


def test_a_deployment_without_trainer_or_loop_has_no_such_source(tmp_path):
    (look,) = looks(LiveFeed({}, bundles=None, hz=5, run=tmp_path), 1)
    frame = Frames().add(look)
    assert frame["sources"] == {}
    assert "probe_loss" not in frame["figures"]


def test_figures_of_both_and_what_is_said_of_old_ones(tmp_path):
    write_learnt(tmp_path, step=16)
    write_earned(tmp_path, revenue_online=120.0, revenue_frozen=100.0)
    (look,) = looks(LiveFeed({}, bundles=None, hz=5, run=tmp_path), 1)
    frames = Frames()
    frame = frames.add(look)
    assert {name: state["ok"] for name, state in frame["sources"].items()} == {"loop": True, "trainer": True}
    assert frame["figures"]["revenue_ratio"] == pytest.approx(1.2)
    assert frame["figures"]["online_step"] == 16
    later = look.model_copy(update={"at": look.at + 30})
    states = frames.add(later)["sources"]
    assert states["trainer"]["ok"]
    assert not states["loop"]["ok"]
    assert states["loop"]["problem"].startswith("its last record is 3")
    gone = frames.add(Reading(at=time.time() + 90, problems={"trainer": "no such file", "loop": "likewise"}))
    assert not gone["sources"]["trainer"]["ok"]
    assert gone["sources"]["trainer"]["age_s"] > 80
