"""Bad tables of every kind through `make data`: one clear report each, nothing written, no traceback."""

import json
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from training.data.prepare import main

DAY = 86_400
DAYS = list(range(0, 60, 3))
GOOD = {
    "ads": pl.DataFrame({"ad_id": [2, 1, 5], "text": ["a game", "a loan", "a shoe"]}),
    "users": pl.DataFrame({"user_id": [9, 4], "age": ["old", None]}),
    "events": pl.DataFrame(
        {
            "user_id": [9 if day % 2 else 4 for day in DAYS],
            "ad_id": [1 + day % 2 for day in DAYS],
            "timestamp": [day * DAY for day in DAYS],
            "behavior": ["conversion"] * len(DAYS),
            "value": [float(day) for day in DAYS],
        }
    ),
}


def write(folder: Path) -> None:
    folder.mkdir()
    for name, table in GOOD.items():
        table.write_parquet(folder / f"{name}.parquet")


def made(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], **data: object) -> tuple:
    """Status of `make data`, what it printed, and its errors."""
    preset = tmp_path / "preset.yaml"
    preset.write_text(json.dumps({"data": {"source": "parquet", "path": str(folder), **data}}))
    status = main(["--config", str(preset), "--out", str(tmp_path / "out"), "--fresh"])
    return status, *capsys.readouterr()


def column(table: str, name: str, values: object, dtype: object = None, row: int = 1) -> Callable:
    """A change: another column, or of the good one another value in a row."""

    def change(folder: Path) -> None:
        good = GOOD[table]
        if isinstance(values, pl.Expr):
            bad = good.with_columns(values.alias(name))
        elif isinstance(values, list):
            every = values + values[-1:] * (good.height - len(values))
            bad = good.with_columns(pl.Series(name, every, dtype=dtype, strict=False))
        else:
            every = good[name].to_list() if name in good.columns else [0] * good.height
            every[row] = values
            bad = good.with_columns(pl.Series(name, every, dtype=dtype, strict=False))
        bad.write_parquet(folder / f"{table}.parquet")

    return change


def without(table: str, name: str) -> Callable:
    return lambda folder: GOOD[table].drop(name).write_parquet(folder / f"{table}.parquet")


def empty(table: str) -> Callable:
    return lambda folder: GOOD[table].clear().write_parquet(folder / f"{table}.parquet")


def content(name: str, change: Callable[[bytes], bytes]) -> Callable:
    def write_changed(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return write_changed


def parts(**files: object) -> Callable:
    """The events as a folder of parts; the names of the files have _ for / and . where they need one."""

    def change(folder: Path) -> None:
        (folder / "events.parquet").unlink()
        for name, table in files.items():
            path = folder / "events" / name.replace("__", "/").replace("_EQ_", "=").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(table, bytes):
                path.write_bytes(table)
            elif path.suffix == ".csv":
                table.write_csv(path)
            else:
                table.write_parquet(path)

    return change


def csv(text: Callable[[str], str]) -> Callable:
    """The events as CSV, its text changed."""

    def change(folder: Path) -> None:
        (folder / "events.parquet").unlink()
        changed = text(GOOD["events"].write_csv())
        path = folder / "events.csv"
        path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())

    return change


def both(folder: Path) -> None:
    GOOD["events"].write_csv(folder / "events.csv")


EVENTS, HALF = GOOD["events"], GOOD["events"].head(10)
AT = "events.parquet, row 1, column"
BAD = {
    # ads
    "no ad ids": (without("ads", "ad_id"), "ads.parquet, column 'ad_id': expected columns ['ad_id'], got"),
    "half an ad id": (
        column("ads", "ad_id", [2.0, 1.5, 5.0]),
        "row 1, column 'ad_id': expected a whole number",
    ),
    "ad id null": (
        column("ads", "ad_id", None),
        "ads.parquet, row 1, column 'ad_id': expected a value, got None",
    ),
    "ad id negative": (column("ads", "ad_id", -1), "ads.parquet, row 1, column 'ad_id': expected an id >= 0"),
    "ad id twice": (column("ads", "ad_id", 2), "row 1, column 'ad_id': expected each key once, got 2 again"),
    "ad id beyond int64": (
        column("ads", "ad_id", [2, 1 << 63, 5], pl.UInt64),
        "row 1, column 'ad_id': expected an integer below 2^63, got 9223372036854775808",
    ),
    "ad id of 38 digits": (
        column("ads", "ad_id", [Decimal(2), Decimal(10**30), Decimal(5)], pl.Decimal(38, 0)),
        "row 1, column 'ad_id': expected an integer below 2^63",
    ),
    "ad id with cents": (
        column("ads", "ad_id", [Decimal("2.00"), Decimal("1.50"), Decimal("5.00")], pl.Decimal(9, 2)),
        "row 1, column 'ad_id': expected an integer below 2^63, got Decimal('1.50')",
    ),
    "ad id a date": (column("ads", "ad_id", [date(2020, 1, 1)]), "column 'ad_id': expected dtype Int64 or"),
    "ad id a list": (
        column("ads", "ad_id", [[1]]),
        "column 'ad_id': expected dtype Int64 or String, got dtype",
    ),
    "key empty": (
        column("ads", "ad_id", ["a", "", "c"]),
        "row 1, column 'ad_id': expected a key of 1 to 256",
    ),
    "no text": (without("ads", "text"), "ads.parquet, column 'text': expected columns ['text'], got"),
    "text empty": (column("ads", "text", ""), "row 1, column 'text': expected non-empty text, got ''"),
    "text blank": (
        column("ads", "text", " \n "),
        "row 1, column 'text': expected non-empty text, got ' \\n '",
    ),
    "text null": (column("ads", "text", None), "row 1, column 'text': expected a value, got None"),
    "text a number": (
        column("ads", "text", [0.5]),
        "column 'text': expected dtype String, got dtype Float64",
    ),
    "text not utf-8": (column("ads", "text", [b"\xff"]), "invalid utf8"),
    "status unknown": (
        column("ads", "status", ["active", "gone"]),
        "row 1, column 'status': expected one of",
    ),
    "status null": (column("ads", "status", ["active", None]), "row 1, column 'status': expected a value"),
    "created in milliseconds": (
        column("ads", "created_at", [0, 1_500_000_000_000]),
        "got 1500000000000: milliseconds? As such it is 2017-07-14 02:40",
    ),
    "created before 1970": (
        column("ads", "created_at", [0, -5]),
        "row 1, column 'created_at': expected unix",
    ),
    "created never": (column("ads", "created_at", [0.0, float("nan")]), "expected a finite time, got nan"),
    "created at a time of day": (
        column("ads", "created_at", [time(1)]),
        "expected dtype Int64, got dtype Time",
    ),
    "account half": (column("ads", "account_id", [0.5]), "column 'account_id': expected dtype String"),
    "item null": (
        column("ads", "item_id", ["a", None]),
        "row 1, column 'item_id': expected a value, got None",
    ),
    "embedding not a number": (
        column("ads", "embedding_0", [0.5, float("nan")]),
        "row 1, column 'embedding_0': expected a finite number, got nan",
    ),
    "embedding null": (column("ads", "embedding_3", [0.5, None]), "column 'embedding_3': expected a value"),
    "embedding of texts": (column("ads", "embedding_0", ["a"]), "column 'embedding_0': expected a number"),
    "embeddings of two lengths": (
        column("ads", "embedding", [[1.0, 2.0], [1.0]]),
        "row 1, column 'embedding': expected lists of one length > 0, got [1.0]",
    ),
    "embedding of nothing": (column("ads", "embedding", [[]], pl.List(pl.Float32)), "one length > 0, got []"),
    "embedding with a hole": (
        column("ads", "embedding", [[1.0, 2.0], [1.0, None]]),
        "row 1, column 'embedding': expected finite numbers, got [1.0, None]",
    ),
    "embedding of words": (column("ads", "embedding", [["a"]]), "column 'embedding': expected dtype List"),
    "code negative": (column("ads", "sid_0", [0, -1]), "row 1, column 'sid_0': expected a code >= 0, got -1"),
    "code half": (column("ads", "sid_1", [0.0, 0.5]), "row 1, column 'sid_1': expected a whole number"),
    "no ads": (empty("ads"), "ads.parquet: expected at least one row, got an empty table"),
    # users
    "no user ids": (without("users", "user_id"), "users.parquet, column 'user_id': expected columns"),
    "user twice": (column("users", "user_id", 9), "column 'user_id': expected each key once, got 9 again"),
    "user null": (
        column("users", "user_id", None),
        "users.parquet, row 1, column 'user_id': expected a value",
    ),
    "user negative": (
        column("users", "user_id", -4),
        "users.parquet, row 1, column 'user_id': expected an id",
    ),
    "user a yes": (
        column("users", "user_id", [0.5, 1.0]),
        "row 0, column 'user_id': expected a whole number",
    ),
    "profile of floats": (
        column("users", "age", [0.5]),
        "column 'age': expected dtype String, got dtype Float64",
    ),
    "profile of lists": (
        column("users", "age", [["a"]]),
        "column 'age': expected dtype String, got dtype List",
    ),
    "no users": (empty("users"), "users.parquet: expected at least one row, got an empty table"),
    # events
    **{
        f"no {name}": (without("events", name), f"events.parquet, column '{name}': expected columns")
        for name in EVENTS.columns
    },
    **{f"{name} null": (column("events", name, None), f"{AT} '{name}': expected") for name in EVENTS.columns},
    "no events": (empty("events"), "events.parquet: expected at least one row, got an empty table"),
    "user of nobody": (column("events", "user_id", 8), f"{AT} 'user_id': expected an id of the users table"),
    "ad of nobody": (column("events", "ad_id", 8), f"{AT} 'ad_id': expected an id of the ads table, got 8"),
    "keys for numbers": (
        column("events", "user_id", pl.col("user_id").cast(pl.String)),
        "column 'user_id': expected dtype Int64 as in the users table, got dtype String",
    ),
    "behavior unknown": (
        column("events", "behavior", "buy"),
        f"{AT} 'behavior': expected one of impression|",
    ),
    "behavior coded": (column("events", "behavior", [3]), "column 'behavior': expected one of impression|"),
    "value negative": (column("events", "value", -0.5), f"{AT} 'value': expected a finite value >= 0"),
    "value not a number": (column("events", "value", float("nan")), "got nan"),
    "value infinite": (
        column("events", "value", float("inf")),
        "expected a finite value >= 0, in float32, got inf",
    ),
    "value beyond float32": (column("events", "value", 1e300), "finite value >= 0, in float32, got 1e+300"),
    "value beyond 2^53": (
        column("events", "value", [0, 1 << 60]),
        f"{AT} 'value': expected at most 2^53, got 115",
    ),
    "value of words": (
        column("events", "value", ["1", "much"]),
        f"{AT} 'value': expected a number, got 'much'",
    ),
    "value of lists": (
        column("events", "value", [[1.0]]),
        "column 'value': expected dtype Float64, got dtype",
    ),
    "microseconds": (
        column("events", "timestamp", 1_500_000_000_000_000),
        "microseconds? As such it is 2017",
    ),
    "time negative": (column("events", "timestamp", -1), f"{AT} 'timestamp': expected unix seconds in [0,"),
    "time of words": (
        column("events", "timestamp", ["2020-01-01", "soon"]),
        "or a date and time, got 'soon'",
    ),
    "time before 1970": (
        column("events", "timestamp", [datetime(1960, 1, 1)]),
        "events.parquet, row 0, column 'timestamp': expected unix seconds in [0,",
    ),
    "time a duration": (
        column("events", "timestamp", [timedelta(1)]),
        "expected dtype Int64, got dtype Duration",
    ),
    "position negative": (
        column("events", "position", -1),
        f"{AT} 'position': expected a position in [0, 2^31)",
    ),
    "position too large": (
        column("events", "position", 1 << 31),
        "expected a position in [0, 2^31), got 2147",
    ),
    "position half": (column("events", "position", [0.0, 0.5]), f"{AT} 'position': expected a whole number"),
    "request half": (
        column("events", "request_id", [1.0, 0.5]),
        f"{AT} 'request_id': expected a whole number",
    ),
    "request a list": (
        column("events", "request_id", [[1]]),
        "expected dtype Int64 or String, got dtype List",
    ),
    "split unknown": (column("events", "split", ["train", "dev"]), f"{AT} 'split': expected one of train|"),
    "split null": (column("events", "split", ["train", None]), f"{AT} 'split': expected one of train|"),
    "an event twice": (
        lambda folder: pl.concat([EVENTS, EVENTS.slice(3, 2)]).write_parquet(folder / "events.parquet"),
        "row 20, column 'user_id, timestamp, ad_id, behavior': expected each key once, "
        "got (9, 777600, 2, 'conversion') again (and 1 more such rows: row 21)",
    ),
    # files
    "no file": (
        lambda folder: (folder / "ads.parquet").unlink(),
        "ads.parquet: expected a Parquet file, got no",
    ),
    "two files": (both, "expected one table of events, got events.parquet and events.csv"),
    "not Parquet": (
        content("ads.parquet", lambda old: b"ad_id,text\n1,a\n"),
        "expected a readable table, got",
    ),
    "nothing in a file": (
        content("ads.parquet", lambda old: b""),
        "ads.parquet: expected a readable table, got",
    ),
    "cut off": (
        content("events.parquet", lambda old: old[:-20]),
        "events.parquet: expected a readable table",
    ),
    "its middle lost": (
        content("events.parquet", lambda old: old[:40] + old[90:]),
        "events.parquet: expected",
    ),
    "an empty folder": (
        parts(_SUCCESS=b""),
        "expected a folder of Parquet or CSV files, got an empty folder",
    ),
    "a foreign file": (
        parts(a_DOT_parquet=HALF, notes_DOT_txt=b"hm"),
        "events: expected either Parquet or CSV files and no others, got notes.txt",
    ),
    "two kinds of files": (
        parts(a_DOT_parquet=HALF, b_DOT_csv=HALF),
        "either Parquet or CSV files and no others",
    ),
    "another schema": (
        parts(a_DOT_parquet=HALF, b_DOT_parquet=EVENTS.tail(10).cast({"ad_id": pl.Int32})),
        "b.parquet: expected the schema of a.parquet (ad_id Int64), got ad_id Int32",
    ),
    "a part without a column": (
        parts(a_DOT_parquet=HALF, b_DOT_parquet=EVENTS.tail(10).drop("value")),
        "b.parquet: expected the schema of a.parquet (value Float64), got value missing",
    ),
    "a damaged part": (
        parts(a_DOT_parquet=HALF, b_DOT_parquet=b"PAR1"),
        "b.parquet: expected a readable table",
    ),
    "hive folders for some": (
        parts(day_EQ_1__a_DOT_parquet=HALF, b_DOT_parquet=EVENTS.tail(10)),
        "expected the same hive folders above every part, got day=.. and none",
    ),
    "a bad row of a part": (
        parts(a_DOT_parquet=HALF, b_DOT_parquet=EVENTS.tail(10).with_columns(pl.lit(-1.0).alias("value"))),
        "b.parquet, row 0, column 'value': expected a finite value >= 0, in float32, got -1.0 (and 9 more",
    ),
    "a CSV with ragged rows": (csv(lambda text: text + "1,2,3,4,5,6,7\n"), "events.csv: expected a readable"),
    "a CSV without values": (
        csv(lambda text: text.splitlines()[0] + "\n"),
        "events.csv: expected at least one",
    ),
    "a CSV without a header": (
        csv(lambda text: text.partition("\n")[2]),
        "column 'user_id': expected columns",
    ),
    "a CSV of another code": (csv(lambda text: b"\xff\xfe" + text.encode("utf-16-le")), "events.csv"),
    "a CSV with a word": (
        csv(lambda text: text.replace("conversion,3.0", "conversion,three")),
        "events.csv, row 1, column 'value': expected a number, got 'three'",
    ),
    "a CSV with a word for a time": (csv(lambda text: text.replace("259200", "soon")), "got 'soon'"),
    "a CSV of keys": (
        csv(lambda text: text.replace("\n9,", "\n009,")),
        "as in the users table, got dtype String",
    ),
    # the log
    "no targets": (
        column("events", "behavior", ["click"]),
        "expected events of conversion, got none among 20 click",
    ),
    "too short": (column("events", "timestamp", pl.int_range(20)), "expected events over at least 6 weeks"),
    "one event far away": (
        column("events", "timestamp", 4_000_000_000),
        "far from the rest, which lies in 1970",
    ),
}


def test_the_good_tables_are_good(tmp_path, capsys):
    write(tmp_path / "mine")
    status, out, err = made(tmp_path / "mine", tmp_path, capsys)
    assert (status, err) == (0, "")
    assert "20 exposures of 20 events" in out
    assert len(BAD) >= 60


@pytest.mark.parametrize("name", BAD)
def test_one_clear_report(name, tmp_path, capsys):
    change, message = BAD[name]
    folder = tmp_path / "mine"
    write(folder)
    change(folder)
    status, out, err = made(folder, tmp_path, capsys)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert "expected" in err
    assert ", got " in err
    assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "preset.yaml"}


def test_all_faults_of_all_tables_in_one_report(tmp_path, capsys):
    folder = tmp_path / "mine"
    write(folder)
    (folder / "users.parquet").write_bytes(b"no")
    column("ads", "text", "")(folder)
    bad = pl.concat([EVENTS, EVENTS.head(1)]).with_columns(value=-1.0, position=0.5)
    bad.write_parquet(folder / "events.parquet")
    _, _, err = made(folder, tmp_path, capsys)
    for fault in (
        "4 faults:",
        "users.parquet: expected a readable table",
        "ads.parquet, row 1, column 'text': expected non-empty text",
        "events.parquet, row 0, column 'position': expected a whole number of at most 2^53, got 0.5 "
        "(and 20 more such rows: row 1 0.5, row 2 0.5, ..)",
        "events.parquet, row 0, column 'value': expected a finite value >= 0, in float32, got -1.0",
    ):
        assert fault in err
    GOOD["users"].write_parquet(folder / "users.parquet")
    _, _, err = made(folder, tmp_path, capsys, profile_columns=["income"])
    assert "5 faults:" in err
    assert (
        "users.parquet, column 'income': expected columns ['income'], got columns ['user_id', 'age']" in err
    )
    assert "row 20, column 'user_id, timestamp, ad_id, behavior': expected each key once" in err
