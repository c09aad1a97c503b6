import os
import subprocess
import sys

import pytest

from serving import files
from serving.files import new_file, new_folder, sha256, undo_interrupted, write_file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", [b"\x00\xff", "zwölf\n"])
def test_a_file_is_written_over(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text("old, and longer than the new one" * 9)
    write_file(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(tmp_path) == ["a.json"]


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(TypeError), new_file(path) as partial:
        partial.write_text("half") + None
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("write", [lambda p: write_file(p / "a", b"x"), lambda p: fill(p / "a")])
def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch, write):
    synced, renamed = [], []
    monkeypatch.setattr(files, "sync", lambda path: synced.append(path.name))
    for name in ("replace", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda a, b, real=real: (renamed.append(len(synced)), real(a, b)))
    write(tmp_path)
    parts = ["one", "two", "deep", ".a.new"] if len(synced) > 2 else [".a.new"]
    assert sorted(synced[: renamed[0]]) == sorted(parts)
    assert synced[renamed[0] :] == [tmp_path.name]  # then the name itself


def fill(folder, *, replace=False, fail=False):
    with new_folder(folder, replace=replace) as work:
        (work / "deep").mkdir()
        (work / "deep" / "one").write_text("1")
        (work / "two").write_text("2")
        if fail:
            raise KeyError


def test_a_folder_appears_whole(tmp_path):
    fill(tmp_path / "not" / "yet" / "there")
    folder = tmp_path / "not" / "yet" / "there"
    assert names(folder) == ["deep", "two"]
    assert names(folder.parent) == ["there"]


def test_an_older_folder_is_replaced_or_kept(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "old").write_text("")
    with pytest.raises(FileExistsError, match="expected no such folder"):
        fill(folder)
    with pytest.raises(KeyError):
        fill(folder, replace=True, fail=True)
    assert names(folder) == ["old"]
    fill(folder, replace=True)
    assert names(folder) == ["deep", "two"]
    assert names(tmp_path) == ["a"]


KILLED = """
import os, pathlib, sys
from serving.files import new_folder
real, left = pathlib.Path.rename, int(sys.argv[2])
def rename(self, target):
    global left
    if not left:
        os._exit(9)
    left -= 1
    return real(self, target)
pathlib.Path.rename = rename
with new_folder(sys.argv[1], replace=True) as work:
    (work / "new").write_text("")
"""


@pytest.mark.parametrize(("renames", "kept"), [(0, ["old"]), (1, ["old"]), (2, ["new"])])
def test_killed_at_any_rename_one_of_the_two_is_whole(tmp_path, renames, kept):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "old").write_text("")
    subprocess.run([sys.executable, "-c", KILLED, folder, str(renames)], check=False)
    undo_interrupted(folder)
    assert names(folder) == kept
    fill(folder, replace=True)  # and nothing that was left is in the way
    assert names(folder) == ["deep", "two"]
    assert names(tmp_path) == ["a"]


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
