"""Commands of `python -m indexer` but `serve`, as the command line runs them."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from indexer.__main__ import main
from indexer.commands.build import build
from indexer.events.event import CONTENT_FIELDS
from indexer.store.file import StoreFile
from serving.index.layout import ad_key, ready_generations
from tests.index_store import (
    SIZES,
    FakeEncoder,
    apply,
    as_reader_sees,
    create,
    empty_store,
    open_store,
    pause,
)


def run_command(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["indexer", *map(str, arguments)])
    main()
    return capsys.readouterr().out


def tables_of_ads(folder: Path, **content) -> dict:
    ads = {"ad_id": [1, 2], "status": ["active", "paused"]} | content
    pl.DataFrame(ads).write_parquet(folder / "ads.parquet")
    pl.DataFrame({"ad_id": [2, 1], "s1": [3, 0], "s2": [0, 1], "s3": [0, 2]}).write_parquet(
        folder / "sids.parquet"
    )
    files = {"ads": folder / "ads.parquet", "sids": folder / "sids.parquet", "out": folder / "index"}
    return files | {"level_sizes": SIZES, "tokenizer_id": "tok"}


def test_an_index_is_built_once_until_something_changes(tmp_path, monkeypatch, capsys):
    """A build over events of a running sidecar would be in vain, and in its way."""
    manifest = SimpleNamespace(tokenizer_id="tok", level_sizes=SIZES)
    monkeypatch.setattr("indexer.commands.build.read_manifest", lambda *_, **__: manifest)
    monkeypatch.setattr("indexer.commands.build.current_version", lambda _: 1)
    tables = tables_of_ads(tmp_path)
    paths = [f"--{name}={tables[name]}" for name in ("ads", "sids", "out")]

    def build_it(*more):
        return run_command(monkeypatch, capsys, "build", "--bundles=b", *paths, *more)

    assert "version 1, built in" in build_it()
    assert build_it() == f"{tmp_path / 'index'}: up to date\n"
    assert "version 2, built in" in build_it("--fresh")
    tables_of_ads(tmp_path, status=["paused", "paused"])
    assert "out of date: ads " in build_it()
    # Another tokenizer's generation took the place of this one, by events: the record does not know.
    build(**tables | {"tokenizer_id": "other", "replace_all": True})
    assert "built in" in build_it()
    assert "tok" in ready_generations(tmp_path / "index")


def test_build_command(tmp_path):
    arguments = tables_of_ads(tmp_path)
    assert build(**arguments) == 1
    with open_store(tmp_path / "index") as store:
        assert as_reader_sees(store) == {1: (True, (0, 1, 2)), 2: (False, (3, 0, 0))}
        assert store.ad(1).content is None
    content = {
        "account_id": ["a", "b"],
        "conversion_type": ["c", "d"],
        "text": ["e", "é"],
        "item_id": ["x", "y"],
    }
    assert build(**tables_of_ads(tmp_path, **content)) == 2
    with open_store(tmp_path / "index") as store:
        assert store.ad(2).content == {"account_id": "b", "conversion_type": "d", "text": "é"}
    pl.DataFrame({"ad_id": [1], "s1": [0], "s2": [1], "s3": [2]}).write_parquet(tmp_path / "sids.parquet")
    with pytest.raises(ValueError, match="expected a SID for every ad .* 1 have none, first ad_id 2"):
        build(**arguments)


def test_commands(tmp_path, monkeypatch, capsys):
    content = {name: ["x", "y"] for name in CONTENT_FIELDS}
    build(**tables_of_ads(tmp_path, **content))
    index = tmp_path / "index"

    def run(*arguments):
        return run_command(monkeypatch, capsys, *arguments)

    assert run("set-status", "--index", index, "--status", "active", 2, 1, 2) == "index version 2\n"
    with open_store(index) as store:
        assert as_reader_sees(store) == {1: (True, (0, 1, 2)), 2: (True, (3, 0, 0))}
        assert store.ad(2).status_version == 1
        apply(store, pause(7, 1), create(8, 1))
    with pytest.raises(SystemExit, match="error: expected ads that are in the index, got unknown ad 12345"):
        run("set-status", "--index", index, "--status", "paused", 1, 12345)
    text = run("stats", "--index", index)
    assert "version 2, 2 ads known, 2 with content, 2 dead letters" in text
    assert f"tokenizer tok, levels {SIZES}, 2 ads, 2 active on 2 SIDs, base 1, 1 transactions since" in text
    assert "applied.resume 2" in text
    assert "is sound" in run("verify", "--index", index)
    assert run("compact", "--index", index) == "tokenizer tok: base 2\n"
    assert "version 2, 2 ads" in run("backup", "--index", index, "--out", tmp_path / "copy")
    letters = [json.loads(line) for line in run("dead-letters", "list", "--index", index).splitlines()]
    assert [(x["number"], x["reason"]) for x in letters] == [(0, "unknown_ad"), (1, "no_encoder")]
    assert len(run("dead-letters", "list", "--index", index, "--limit", 1).splitlines()) == 1
    assert run("dead-letters", "replay", "--index", index, "--all") == "0 applied, 0 stale, 2 rejected\n"
    assert run("dead-letters", "drop", "--index", index, "--number", 0) == "1 dropped\n"
    assert run("restore", "--backup", tmp_path / "copy", "--index", index) == "index version 3\n"
    assert len(run("dead-letters", "list", "--index", index).splitlines()) == 2
    with StoreFile(index) as file, file.write() as writing:
        writing.txn.put(ad_key(9), b"{}", db=file.tables.content)
    with pytest.raises(SystemExit, match="1 problems in"):
        run("verify", "--index", index)


def test_a_generation_is_dropped_by_command(tmp_path, monkeypatch, capsys):
    old, new = FakeEncoder("old"), FakeEncoder("new")
    empty_store(tmp_path, old, new).close()
    assert run_command(monkeypatch, capsys, "drop-generation", "--index", tmp_path, "old") == (
        "tokenizer old: dropped, left: new\n"
    )
    with open_store(tmp_path) as store:
        assert list(store.meta.generations) == ["new"]
    with pytest.raises(SystemExit, match="new is the only generation that is ready"):
        run_command(monkeypatch, capsys, "drop-generation", "--index", tmp_path, "new")


def test_commands_that_write_name_who_holds_the_index(tmp_path, monkeypatch, capsys):
    with empty_store(tmp_path):
        for arguments in (
            ("set-status", "--status", "paused", "1"),
            ("compact",),
            ("dead-letters", "replay", "--all"),
            ("dead-letters", "drop", "--all"),
            ("drop-generation", "tok"),
        ):
            with pytest.raises(SystemExit, match=rf"process {os.getpid()}\); stop it first"):
                run_command(monkeypatch, capsys, *arguments, "--index", tmp_path)
