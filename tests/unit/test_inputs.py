"""Records of what a step was made from: by content, cheap to look at, and never trusted too early."""

import json
import os

import pytest

import serving.inputs as module
from serving.inputs import Inputs, changes, is_up_to_date, named, summary

OLD = 10**9  # seconds; a time long ago


def write(path, text, *, settled=True):
    path.write_text(text)
    if settled:
        os.utime(path, (OLD, OLD))
    return path


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were read; times of moves count as old as those of changes."""
    names = []

    def note(path):
        names.append(path.name)
        return real(path)

    real = module.sha256
    monkeypatch.setattr(module, "sha256", note)
    monkeypatch.setattr(module, "_SETTLED_NS", 0)
    return names


def test_settings_have_their_full_names():
    assert named("data", {"split": {"by": "days"}, "path": None, "names": [1]}) == {
        "data.split.by": "days",
        "data.path": None,
        "data.names": [1],
    }


def test_changes_name_what_was_and_what_is():
    was = {"a.x": 1, "a.gone": 2, "file": "ab" * 32, "same": "s"}
    now = {"a.x": 2, "file": "cd" * 32, "same": "s", "new": 3}
    assert changes(was, now) == ["a.x 1 -> 2", "a.gone is gone", "file abababab -> cdcdcdcd", "new is new"]
    assert changes(was, dict(reversed(was.items()))) == []
    assert summary([f"c{i}" for i in range(9)]) == "c0, c1, c2, c3, c4, c5 and 3 more"


def test_a_record_comes_back_as_it_was(tmp_path):
    found = Inputs.now({"sizes": (6, 5), "x": None}, files={"f": write(tmp_path / "f", "1")})
    assert found.values["sizes"] == [6, 5]  # as JSON has it, or it would differ from itself
    found.save(tmp_path / "r.json")
    assert Inputs.load(tmp_path / "r.json") == found
    assert (
        changes(found.values, Inputs.now({"sizes": [6, 5], "x": None}, files={"f": tmp_path / "f"}).values)
        == []
    )


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"format": 2, "values": {}, "stamps": {}}', '{"format": 1}']
)
def test_what_is_no_record_is_none(tmp_path, content):
    write(tmp_path / "r.json", content)
    assert Inputs.load(tmp_path / "r.json") is None
    assert Inputs.load(tmp_path / "none.json") is None


def test_a_file_that_was_not_touched_is_not_read_again(tmp_path, hashed):
    files = {name: write(tmp_path / name, name) for name in ("a", "b")}
    first = Inputs.now({}, files=files)
    write(files["b"], "c")  # same size, same time of change: the time of the move tells
    second = Inputs.now({}, files=files, before=first)
    assert hashed == ["a", "b", "b"]
    assert second.values["a"] == first.values["a"]
    assert second.values["b"] != first.values["b"]


def test_a_file_that_has_just_changed_is_read_again(tmp_path):
    """A second change within the tick of the clock would leave size and times as they are."""
    path = write(tmp_path / "a", "1", settled=False)
    assert Inputs.now({}, files={"a": path}).stamps == {}


def test_content_counts_not_time(tmp_path):
    path = write(tmp_path / "a", "1")
    first = Inputs.now({}, files={"a": path})
    path.unlink()
    write(path, "1", settled=False)
    assert changes(first.values, Inputs.now({}, files={"a": path}, before=first).values) == []


def test_up_to_date(tmp_path, capsys):
    out, record = write(tmp_path / "out", "x"), tmp_path / "inputs.json"
    inputs = Inputs.now({"s.a": 1})

    def ask(now=inputs, **options):
        found = is_up_to_date(record, now, outputs=[out], **options)
        return found, capsys.readouterr().out.removeprefix(f"{tmp_path}: ")

    assert ask() == (False, "no record of what it was made from; making it again\n")
    inputs.save(record)
    assert ask() == (True, "up to date\n")
    assert ask(fresh=True) == (False, "")
    assert ask(Inputs.now({"s.a": 2})) == (False, "out of date: s.a 1 -> 2\n")
    out.unlink()
    assert ask() == (False, "out of date: out is gone\n")
    record.unlink()
    assert ask() == (False, "")  # the first time
    record.write_text(json.dumps({"format": 1, "values": {"s.a": 1}, "stamps": {}}))
    assert not ask()[0]
