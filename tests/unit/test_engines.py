"""The folder of engines: whole or absent, and never one that was built from something else."""

import errno
import hashlib
import json
import os
import re
from dataclasses import asdict, replace

import pytest

from export.engines import EngineError, EngineFolder, EngineSpec, write_whole
from export.profiles import ShapeRange

PROFILE = {
    "token": ShapeRange((1, 1), (8, 4), (8, 90)),
    "allowed": ShapeRange((1, 1, 1), (8, 4, 5), (8, 90, 5)),
}
SPEC = EngineSpec("tail_2", "ab" * 32, PROFILE, "tensorrt", "10.9.0", "8.9")
OTHERS = {
    "stem": "tail_3",
    "graph_sha256": "cd" * 32,
    "profile": PROFILE | {"token": ShapeRange((1, 1), (8, 4), (8, 91))},
    "builder": "tensorrt-rtx",
    "version": "10.9.1",
    "capability": "9.0",
}


@pytest.fixture
def folder(tmp_path):
    return EngineFolder(tmp_path / "engines")


def files(folder):
    return {p.name: p.read_bytes() for p in folder.folder.glob("*")} if folder.folder.exists() else {}


def json_of(folder, spec=SPEC):
    return folder.path(spec).with_suffix(".json")


def test_round_trip(folder):
    assert folder.find(SPEC) is None
    assert not folder.folder.exists()  # looking makes nothing
    saved = folder.save(SPEC, b"the plan", details={"seconds": 1.5})
    assert saved["plan_bytes"] == 8
    assert saved["plan_sha256"] == hashlib.sha256(b"the plan").hexdigest()
    assert saved["seconds"] == 1.5
    assert saved.items() >= {k: v for k, v in asdict(SPEC).items() if k != "profile"}.items()
    found = EngineFolder(folder.folder).find(SPEC)
    assert found == json.loads(json.dumps(saved))
    assert folder.require(SPEC) == folder.path(SPEC)
    assert folder.require(SPEC).read_bytes() == b"the plan"
    assert set(files(folder)) == {f"tail_2-{SPEC.key}.plan", f"tail_2-{SPEC.key}.json"}
    assert folder.only("tensorrt") == ("10.9.0", "8.9", "")


@pytest.mark.parametrize("field", OTHERS)
def test_a_change_of_any_field_is_another_engine(folder, field):
    other = replace(SPEC, **{field: OTHERS[field]})
    assert other.key != SPEC.key
    assert re.fullmatch("[0-9a-f]{16}", other.key)
    folder.save(SPEC, b"the plan", details={})
    assert folder.find(other) is None
    folder.save(other, b"another", details={})
    assert folder.require(SPEC).read_bytes() == b"the plan"
    assert folder.require(other).read_bytes() == b"another"


def test_the_key_is_the_same_in_another_process_and_order():
    """Frozen: engines on disk must be found again by a later release."""
    assert SPEC.key == replace(SPEC, profile=dict(reversed(PROFILE.items()))).key
    content = {
        "stem": "tail_2",
        "graph_sha256": "ab" * 32,
        "profile": {
            "token": {"least": [1, 1], "usual": [8, 4], "most": [8, 90]},
            "allowed": {"least": [1, 1, 1], "usual": [8, 4, 5], "most": [8, 90, 5]},
        },
        "builder": "tensorrt",
        "version": "10.9.0",
        "capability": "8.9",
        "device": "",
    }
    assert SPEC.key == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize("capability", ["89", "8", "", "SM89", "8.9.1", "8.x", "8.9\n"])
def test_a_capability_that_is_none(capability):
    with pytest.raises(ValueError, match=r'compute capability: expected a form like "8.9", got ') as caught:
        replace(SPEC, capability=capability)
    assert repr(capability) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(b"The plan"),
        lambda path: path.unlink(),
    ],
    ids=["truncated", "empty", "longer", "edited", "gone"],
)
def test_a_plan_that_is_not_the_one_written(folder, change):
    folder.save(SPEC, b"the plan", details={})
    change(folder.path(SPEC))
    expected = hashlib.sha256(b"the plan").hexdigest()[:12]
    for look in (folder.find, folder.require):
        with pytest.raises(EngineError, match=f"tail_2-{SPEC.key}.plan: expected .*sha256 {expected}.*got"):
            look(SPEC)
    folder.save(SPEC, b"built again", details={})
    assert folder.require(SPEC).read_bytes() == b"built again"


def test_a_plan_without_json_is_a_leftover(folder):
    folder.save(SPEC, b"the plan", details={})
    json_of(folder).unlink()
    assert folder.find(SPEC) is None
    with pytest.raises(EngineError, match="expected an engine of tail_2 by tensorrt 10.9.0 .* found: none"):
        folder.require(SPEC)
    with pytest.raises(EngineError, match="expected engines of builder tensorrt .* found none; build them"):
        folder.only("tensorrt")


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"plan_sha256":', b"\xff\xfe", b"[]", b"{}", b"3", b'{"a": 1}']
)
def test_broken_json(folder, text):
    folder.save(SPEC, b"the plan", details={})
    json_of(folder).write_bytes(text)
    other = replace(SPEC, version="10.9.1")
    folder.save(other, b"another", details={})
    for look in (folder.find, folder.require):
        with pytest.raises(EngineError, match=f"tail_2-{SPEC.key}.json: not readable: .*; delete it"):
            look(SPEC)
    with pytest.raises(EngineError, match=f"tail_2-{SPEC.key}.json: not readable: .*; delete it"):
        folder.only("tensorrt")
    # What else is in the folder does not hide an engine, nor the message about one that is missing.
    assert folder.require(other).read_bytes() == b"another"
    with pytest.raises(
        EngineError, match="expected an engine of tail_2 by tensorrt 9.0 .*has version 10.9.1"
    ):
        folder.require(replace(SPEC, version="9.0"))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("builder", "has builder tensorrt-rtx, expected tensorrt"),
        ("version", "has version 10.9.1, expected 10.9.0"),
        ("capability", "has capability 9.0, expected 8.9"),
        ("graph_sha256", f"has graph_sha256 {'cd' * 20}, expected {'ab' * 20}"),
        ("profile", r"has other profiles \(widths or limits of section `serving` changed\)"),
    ],
)
def test_require_says_what_is_there_instead(folder, field, message):
    there = replace(SPEC, **{field: OTHERS[field]})
    folder.save(there, b"the plan", details={})
    with pytest.raises(EngineError) as caught:
        folder.require(SPEC)
    text = str(caught.value)
    assert text.startswith(
        f"{folder.folder}: expected an engine of tail_2 by tensorrt 10.9.0 for compute capability 8.9, "
        f"found: tail_2-{there.key}.json "
    )
    assert re.search(message, text)
    assert text.endswith("; build it with `python -m export.tensorrt`")


def test_require_lists_all_and_the_engine_of_another_graph_is_none(folder):
    for field in ("version", "capability"):
        folder.save(replace(SPEC, **{field: OTHERS[field]}), b"the plan", details={})
    folder.save(replace(SPEC, stem="tail_3"), b"the plan", details={})
    with pytest.raises(EngineError, match="found: tail_2-[^;]*; tail_2-[^;]*; build") as caught:
        folder.require(SPEC)
    assert "tail_3" not in str(caught.value)


def test_only_one_version_for_one_device(folder):
    with pytest.raises(EngineError, match="engines: expected engines of builder tensorrt .* found none"):
        folder.only("tensorrt")
    folder.save(SPEC, b"the plan", details={})
    folder.save(replace(SPEC, stem="tail_3"), b"the plan", details={})
    folder.save(replace(SPEC, builder="tensorrt-rtx", version="1.2", capability="12.0"), b"x", details={})
    assert folder.only("tensorrt") == ("10.9.0", "8.9", "")
    assert folder.only("tensorrt-rtx") == ("1.2", "12.0", "")
    folder.save(replace(SPEC, capability="9.0"), b"the plan", details={})
    with pytest.raises(EngineError, match="found 10.9.0 for 8.9, 10.9.0 for 9.0; build them"):
        folder.only("tensorrt")


def fail(number=errno.ENOSPC):
    raise OSError(number, os.strerror(number))


def full_disk(monkeypatch, function, *, at):
    """`os.<function>` raises "no space left" in its call number `at`, from 0."""
    real, calls = getattr(os, function), []

    def limited(*arguments):
        calls.append(arguments)
        return fail() if len(calls) > at else real(*arguments)

    monkeypatch.setattr(os, function, limited)


@pytest.mark.parametrize(
    ("function", "at"),
    [("fsync", 0), ("replace", 0), ("fsync", 1), ("fsync", 2), ("replace", 1), ("fsync", 3)],
    ids=["plan", "plan's name", "folder", "json", "json's name", "folder again"],
)
def test_disk_full(folder, monkeypatch, function, at):
    folder.save(replace(SPEC, stem="tail_3"), b"another", details={})
    before = files(folder)
    with monkeypatch.context() as patch:
        full_disk(patch, function, at=at)
        with pytest.raises(
            EngineError, match=r"tail_2-\w+\.(plan|json): [\d,]+ bytes cannot be written: .*28"
        ):
            folder.save(SPEC, b"the plan", details={})
    assert files(folder) == before  # no part of it, under no name
    assert folder.find(SPEC) is None
    folder.save(SPEC, b"the plan", details={})
    assert folder.require(SPEC).read_bytes() == b"the plan"


@pytest.mark.parametrize(
    ("function", "at"),
    [("fsync", 0), ("replace", 0), ("fsync", 1), ("fsync", 2), ("replace", 1), ("fsync", 3)],
    ids=["plan", "plan's name", "folder", "json", "json's name", "folder again"],
)
def test_disk_full_over_an_engine_of_the_same_key(folder, monkeypatch, function, at):
    """It is gone: never the old description of a new plan, or half of one."""
    folder.save(SPEC, b"old plan", details={})
    with monkeypatch.context() as patch:
        full_disk(patch, function, at=at)
        with pytest.raises(EngineError, match="cannot be written"):
            folder.save(SPEC, b"new plan", details={"seconds": 2})
    assert folder.find(SPEC) is None
    assert files(folder) == {}
    with pytest.raises(EngineError, match="found: none"):
        folder.require(SPEC)


def test_stopped_between_plan_and_json(folder, monkeypatch):
    """A build that is killed after the plan, over an older engine: nobody picks it up."""
    folder.save(SPEC, b"old plan", details={})
    real = os.replace

    def stop(source, target):
        if str(target).endswith(".json"):
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            folder.save(SPEC, b"new plan", details={})
    assert folder.find(SPEC) is None  # whether the plan is there or not
    with pytest.raises(EngineError, match="found: none"):
        folder.require(SPEC)
    with pytest.raises(EngineError, match="found none"):
        folder.only("tensorrt")


def test_write_whole_replaces_or_leaves(tmp_path, monkeypatch):
    path = tmp_path / "x.timing"
    write_whole(path, b"first")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: fail())
        with pytest.raises(EngineError, match=r"x.timing: 1,000 bytes cannot be written: .*No space left"):
            write_whole(path, b"x" * 1000)
    assert [p.name for p in tmp_path.iterdir()] == ["x.timing"]
    assert path.read_bytes() == b"first"
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
