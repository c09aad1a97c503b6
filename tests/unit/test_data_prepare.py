"""The user's own Parquet tables, and the prepare command end to end."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from training.data import prepare as module
from training.data.checks import TableError
from training.data.parquet import load_parquet
from training.data.prepare import main, prepare
from training.data.prepared import load_prepared
from training.preset.data import DataConfig

DAY = 86_400


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    pl.DataFrame(
        {
            "ad_id": [2, 1],
            "item_id": ["i2", "i1"],
            "account_id": ["a", "a"],
            "conversion_type": ["app", "lead"],
            "text": ["a game", "a loan"],
            "created_at": [0, 0],
            "status": ["active", "paused"],
        }
    ).write_parquet(folder / "ads.parquet")
    pl.DataFrame({"user_id": [9, 4], "age": ["old", None], "home": ["x", "y"]}).write_parquet(
        folder / "users.parquet"
    )
    days = list(range(0, 60, 3))
    pl.DataFrame(
        {
            "user_id": [9 if day % 2 else 4 for day in days],
            "ad_id": [1 + day % 2 for day in days],
            "timestamp": [day * DAY for day in days],
            "behavior": ["conversion"] * len(days),
            "value": [float(day) for day in days],
            "provenance": ["tracker-1"] * len(days),
        }
    ).write_parquet(folder / "events.parquet")
    return folder


def test_parquet_source(source: Path) -> None:
    tables = load_parquet(DataConfig(source="parquet", path=str(source), profile_columns=("home", "age")))
    assert tables.users.rows() == [(4, "y", "unknown"), (9, "x", "old")]
    assert tables.ads["ad_id"].to_list() == [1, 2]
    assert tables.stats.rows_read == 20
    assert "tracker-1" in tables.provenance
    assert str(source) in tables.provenance


def test_parquet_source_names_the_bad_file(source: Path) -> None:
    config = DataConfig(source="parquet", path=str(source))
    events = pl.read_parquet(source / "events.parquet")
    values = [0.0, float("nan"), *events["value"].to_list()[2:]]
    events.with_columns(pl.Series("value", values)).write_parquet(source / "events.parquet")
    with pytest.raises(TableError, match=r"mine/events.parquet, row 1, column 'value': .*>= 0, got nan"):
        load_parquet(config)
    (source / "events.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(TableError, match=r"mine/events.parquet: expected a readable Parquet file, got"):
        load_parquet(config)
    (source / "events.parquet").unlink()
    with pytest.raises(TableError, match=r"mine/events.parquet: expected a Parquet file, got no such file"):
        load_parquet(config)


def test_prepare_and_load(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "build" / "data"
    config = DataConfig(source="parquet", path=str(source))
    tables = prepare(config, out).tables
    names = {path.name for path in out.iterdir()}
    assert names == {
        "ads.parquet",
        "users.parquet",
        "events.parquet",
        "split.json",
        "profile.json",
        "stats.json",
    }
    assert [path.name for path in out.parent.iterdir()] == ["data"]  # nothing left beside it
    loaded = load_prepared(out)
    assert loaded.tables.ads.equals(tables.ads)
    assert loaded.tables.users.equals(tables.users)
    assert loaded.tables.events.equals(tables.events)
    assert (loaded.tables.stats, loaded.tables.provenance) == (tables.stats, tables.provenance)
    assert loaded.split.validation_end == 57 * DAY + 1 - 21 * DAY
    assert loaded.profile.encode(loaded.tables.users).tolist() == [[0, 2], [1, 1]]
    prepare(config, out)  # again: replaces
    assert {path.name for path in out.iterdir()} == names


def test_prepare_refuses_foreign_folders_and_leaves_the_old_one_on_errors(
    source: Path, tmp_path: Path
) -> None:
    config = DataConfig(source="parquet", path=str(source))
    somebodys = tmp_path / "somebodys"  # has the names of our tables, but prepare did not write it
    shutil.copytree(source, somebodys)
    for out in (source, somebodys, tmp_path):
        with pytest.raises(FileExistsError, match="expected"):
            prepare(config, out)
    assert len(list(source.iterdir())) == len(list(somebodys.iterdir())) == 3
    out = tmp_path / "data"
    prepare(config, out)
    with pytest.raises(ValueError, match="at least 21 weeks"):
        prepare(DataConfig(source="parquet", path=str(source), split={"test": 18}), out)
    assert json.loads((out / "stats.json").read_text())["events"] == 20


def test_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = tmp_path / "c.yaml", tmp_path / "out"
    config.write_text(f"model: {{width: 8}}\ndata:\n  source: parquet\n  path: {source}\n")
    assert main(["--config", str(config), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "tracker-1" in printed
    assert "events" in printed
    for text, message in [
        ("model: {}\n", "data: expected this section"),
        (f"data: {{source: parquet, path: {tmp_path}/no}}\n", "no such file"),
    ]:
        config.write_text(text)
        assert main(["--config", str(config), "--out", str(out)]) == 1
        assert message in capsys.readouterr().err


def test_damaged_stats(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(DataConfig(source="parquet", path=str(source)), out)
    (out / "stats.json").write_text("{}")
    with pytest.raises(ValueError, match="expected rows_read, rows_dropped, provenance, got {}"):
        load_prepared(out)


def test_every_source_has_a_loader() -> None:
    assert set(module._LOADERS) == set(DataConfig.model_fields["source"].annotation.__args__)
