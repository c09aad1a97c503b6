"""The user's own Parquet tables, and the prepare command end to end."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from training.data import prepare as module
from training.data.checks import TableError
from training.data.parquet import open_parquet
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


def test_parquet_source(source: Path, tmp_path: Path) -> None:
    config = DataConfig(source="parquet", path=str(source), profile_columns=("home", "age"))
    found = open_parquet(config)
    assert (found.stats.rows_read, found.faults, found.lines) == (20, (), ())
    assert "tracker-1" in found.provenance
    assert str(source) in found.provenance
    prepare(config, tmp_path / "out")
    tables = load_prepared(tmp_path / "out").tables
    assert tables.users.rows() == [(4, "y", "unknown"), (9, "x", "old")]
    assert tables.users.columns == ["user_id", "home", "age"]
    assert tables.ads["ad_id"].to_list() == [1, 2]


def test_parquet_source_names_the_bad_file(source: Path, tmp_path: Path) -> None:
    config = DataConfig(source="parquet", path=str(source))
    events = pl.read_parquet(source / "events.parquet")
    values = [0.0, float("nan"), *events["value"].to_list()[2:]]
    events.with_columns(pl.Series("value", values)).write_parquet(source / "events.parquet")
    with pytest.raises(
        TableError, match=r"mine/events.parquet, row 1, column 'value': .*>= 0, in float32, got nan"
    ):
        prepare(config, tmp_path / "out")
    (source / "events.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(TableError, match=r"mine/events.parquet: expected a readable table, got"):
        prepare(config, tmp_path / "out")
    (source / "events.parquet").unlink()
    with pytest.raises(TableError, match=r"mine/events.parquet: expected a Parquet file, got no such file"):
        prepare(config, tmp_path / "out")


def test_prepare_and_load(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "build" / "data"
    config = DataConfig(source="parquet", path=str(source))
    prepare(config, out)
    tables = load_prepared(out).tables
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
    ads, users, events = (pl.read_parquet(source / f"{name}.parquet") for name in ("ads", "users", "events"))
    assert tables.ads.equals(ads.sort("ad_id"))
    assert tables.users.equals(users.sort("user_id").with_columns(pl.col("age").fill_null("unknown")))
    assert tables.events.equals(events.sort("user_id", "timestamp"))
    loaded = load_prepared(out)
    assert loaded.tables.stats.rows_read == 20
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


def changed(source: Path, *more: tuple, **replace: object) -> Path:
    """The events with rows (user, ad, timestamp, behavior) added and columns replaced."""
    events = pl.read_parquet(source / "events.parquet")
    rows = [(*row, 1.0, "tracker-1") for row in more]
    events = pl.concat([events, pl.DataFrame(rows, schema=events.schema, orient="row")])
    events.with_columns(**replace).write_parquet(source / "events.parquet")
    return source


def said(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[str, str, int]:
    """What the command line prints, its errors and warnings, and its status."""
    config = tmp_path / "c.yaml"
    config.write_text(f"data: {{source: parquet, path: {source}}}\n")
    sets = [word for text in words for word in ("--set", text)]
    status = main(["--config", str(config), "--out", str(tmp_path / "out"), *sets])
    printed = capsys.readouterr()
    return printed.out, printed.err, status


def test_parts_and_what_rules_drop_are_printed(source, tmp_path, capsys) -> None:
    words = ["data.split={validation: 1, test: 2}", "training.min_history=4", "training.recent_weeks=1"]
    out, err, status = said(source, tmp_path, capsys, *words)
    assert (err, status) == ("", 0)
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    # Days 0, 3, .. 57, users 4 and 9 in turn; the validation begins right after day 36, the test after 43.
    assert lines["train"] == [
        *("1970-01-01", "00:00", "1970-02-06", "00:00"),
        *("13", "13", "2", "61.5%", "0.0%"),
    ]
    assert lines["validation"] == [
        *("1970-02-09", "00:00", "1970-02-12", "00:00"),
        *("2", "2", "2", "0.0%", "0.0%"),
    ]
    assert lines["test"] == [
        *("1970-02-15", "00:00", "1970-02-27", "00:00"),
        *("5", "5", "2", "0.0%", "0.0%"),
    ]
    assert "20 exposures of 20 events, by what came of them: 0 impression, 0 click, 20 conversion" in out
    assert "(conversion); dropped are those with fewer than training.min_history 4 earlier events" in out
    assert "training.recent_weeks 1 drops 40.0% of those left to train on" in out


def test_impressions_and_late_outcomes_are_counted(source, tmp_path, capsys) -> None:
    more = [
        (9, 1, 43 * DAY - 100, "impression"),
        (9, 1, 43 * DAY + 200, "conversion"),
        (9, 2, 5, "impression"),
    ]
    out, err, _ = said(changed(source, *more), tmp_path, capsys, "data.split={validation: 1, test: 2}")
    assert "22 exposures of 23 events, by what came of them: 1 impression, 0 click, 21 conversion" in out
    assert "20 of them have a click or a conversion and no impression" in out
    assert "1 outcomes come after the end of their request's part and are not known in it" in out
    assert not err


def test_a_time_far_from_the_rest_is_named(source, tmp_path, capsys) -> None:
    far = (4, 2, 1_893_456_000, "conversion")
    out, err, status = said(changed(source, far), tmp_path, capsys)
    assert status == 1
    assert not (tmp_path / "out").exists()
    assert (
        "got none in validation; column 'timestamp': far from the rest, which lies in 1970-01-01 00:00 .. "
        "1970-02-27 00:00: 2030-01-01 00:00 (1893456000) of user 4, ad 2; see data.split" in err
    )
    out, err, status = said(source, tmp_path, capsys, "data.split={by: fractions}")
    assert status == 0
    assert err.startswith("warning: column 'timestamp': far from the rest")


def test_no_event_of_the_target_behavior(source, tmp_path, capsys) -> None:
    _, err, status = said(source, tmp_path, capsys, "data.target_behaviors=[click]")
    assert (status, err) == (
        1,
        "error: data.target_behaviors: expected events of click, got none among 20 conversion\n",
    )


def test_parts_of_users_and_of_a_column_are_kept(source, tmp_path, capsys) -> None:
    assert said(source, tmp_path, capsys, "data.split={by: last_events, test: 2}")[2] == 0
    loaded = load_prepared(tmp_path / "out")
    for user in (4, 9):
        own = loaded.tables.events.filter(pl.col("user_id") == user)
        assert own["split"].to_list() == ["train"] * 7 + ["validation"] + ["test"] * 2
    assert loaded.split.train_end == 39 * DAY + 1
    names = ["train"] * 10 + ["validation"] * 4 + ["test"] * 6
    changed(source, split=pl.Series(names))
    assert said(source, tmp_path, capsys, "data.split={by: column}")[2] == 0
    loaded = load_prepared(tmp_path / "out")
    assert loaded.tables.events.sort("timestamp")["split"].to_list() == names
    assert loaded.parts.request.tolist() == [
        ["train", "validation", "test"].index(n) for user in (0, 1) for n in names[user::2]
    ]
    assert said(source, tmp_path, capsys)[2] == 0  # by weeks: the column is not kept, nothing reads it
    assert "split" not in load_prepared(tmp_path / "out").tables.events.columns
