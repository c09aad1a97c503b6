"""Sequence files of benchmarks as tables."""

import gzip
import json
import re
import sys
from pathlib import Path

import polars as pl
import pytest

from examples import sequences
from training.preset.preset import Preset

LINES = "1 10 20 10\n\n2 20\n"


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["sequences", *map(str, words)])
    sequences.main()


@pytest.mark.parametrize("packed", [False, True])
def test_every_item_of_a_line_is_an_event_in_its_order(tmp_path, monkeypatch, packed):
    pack = gzip.compress if packed else bytes
    (tmp_path / "s").write_bytes(pack(LINES.encode()))
    (tmp_path / "t").write_bytes(pack(json.dumps({"10": "a red lipstick", "99": "of nobody"}).encode()))
    run(monkeypatch, tmp_path / "s", "--titles", tmp_path / "t", "--out", tmp_path / "out")
    ads, users, events = (
        pl.read_parquet(tmp_path / "out" / f"{n}.parquet") for n in ("ads", "users", "events")
    )
    assert ads.rows() == [(10, "a red lipstick"), (20, "20")]
    assert users.rows() == [(1,), (2,)]
    assert events.select("user_id", "ad_id").rows() == [(1, 10), (1, 20), (1, 10), (2, 20)]
    times = events.filter(pl.col("user_id") == 1)["timestamp"].to_list()
    assert times == sorted(set(times))
    assert set(events["behavior"]) == {"conversion"}


@pytest.mark.parametrize("line", ["1", "1 x", "1 2 3.5", "-1 2"])
def test_other_lines_are_refused_by_number(tmp_path, monkeypatch, line):
    (tmp_path / "s").write_text(f"1 2\n{line}\n")
    with pytest.raises(SystemExit, match="s, line 2: expected a user and its items"):
        run(monkeypatch, tmp_path / "s", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="nowhere"):
        run(monkeypatch, tmp_path / "nowhere", "--out", tmp_path / "out")


def test_the_preset_of_the_docs_is_one():
    preset = Preset.load("configs/sequences.yaml", [])
    assert preset.evaluation.exclude_seen


def test_presets_that_the_docs_show_are_presets(tmp_path):
    blocks = re.findall(
        r"```yaml\n(data:\n  source: .*?)```", Path("docs/data.md").read_text(), flags=re.DOTALL
    )
    assert len(blocks) == 2
    for block in blocks:
        (tmp_path / "preset.yaml").write_text(block)
        Preset.load(tmp_path / "preset.yaml", [])
