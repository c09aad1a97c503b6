"""Other people's types and files: every way to write the tables gives the prepared data of the plain ones."""

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.unit.test_bad_tables import DAYS, GOOD, made, write
from training.data import prepare
from training.data.blocks import write_blocks
from training.data.checks import ROW, TableError
from training.data.event_order import sort_events
from training.data.files import open_table
from training.data.parquet import open_parquet
from training.data.prepared import load_prepared
from training.data.schema import complete_events
from training.preset.data import DataConfig
from training.workers import Here

EVENTS = GOOD["events"]
KEY = ["user_id", "timestamp", "ad_id", "behavior"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "mine")
    return tmp_path / "mine"


def prepared(folder: Path, tmp_path: Path, capsys, **data: object) -> tuple[dict[str, pl.DataFrame], str]:
    status, out, err = made(folder, tmp_path, capsys, **data)
    assert (status, err) == (0, "")
    tables = load_prepared(tmp_path / "out").tables
    return {"ads": tables.ads, "users": tables.users, "events": tables.events}, out


def expected() -> dict[str, pl.DataFrame]:
    """The plain tables as they are prepared: defaults, "unknown", sorted."""
    ads = GOOD["ads"].select(
        "ad_id",
        pl.col("ad_id").cast(pl.String).alias("item_id"),
        pl.lit("unknown").alias("account_id"),
        pl.lit("unknown").alias("conversion_type"),
        "text",
        pl.lit(0, pl.Int64).alias("created_at"),
        pl.lit("active").alias("status"),
    )
    return {
        "ads": ads.sort("ad_id"),
        "users": GOOD["users"].with_columns(pl.col("age").fill_null("unknown")).sort("user_id"),
        "events": EVENTS.with_columns(pl.lit("unknown").alias("provenance")).sort(KEY),
    }


def same(tables: dict[str, pl.DataFrame], want: dict[str, pl.DataFrame]) -> None:
    for name in want:
        assert tables[name].equals(want[name]), name


def test_columns_that_may_be_missing_have_defaults(folder, tmp_path, capsys):
    tables, out = prepared(folder, tmp_path, capsys)
    same(tables, expected())
    assert "read as" not in out
    assert "not used" not in out


SECONDS = pl.from_epoch("timestamp", time_unit="s")
CASTS = [
    ("events", "user_id", pl.col("user_id").cast(pl.Int32), "Int32 read as Int64"),
    ("events", "user_id", pl.col("user_id").cast(pl.UInt64), "UInt64 read as Int64"),
    ("events", "user_id", pl.col("user_id").cast(pl.Float64), "Float64 read as Int64"),
    (
        "events",
        "user_id",
        pl.col("user_id").cast(pl.Decimal(20, 2)),
        "Decimal(precision=20, scale=2) read as Int64",
    ),
    ("events", "ad_id", pl.col("ad_id").cast(pl.UInt8), "UInt8 read as Int64"),
    ("events", "timestamp", pl.col("timestamp").cast(pl.UInt32), "UInt32 read as Int64"),
    ("events", "timestamp", SECONDS.dt.date(), "Date read as unix seconds of its midnight, UTC"),
    ("events", "timestamp", SECONDS.dt.cast_time_unit("ns"), "read as unix seconds, as UTC"),
    (
        "events",
        "timestamp",
        SECONDS.dt.cast_time_unit("us").dt.replace_time_zone("UTC"),
        "read as unix seconds",
    ),
    (
        "events",
        "timestamp",
        SECONDS.dt.cast_time_unit("ms").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo"),
        "Datetime(time_unit='ms', time_zone='Asia/Tokyo') read as unix seconds",
    ),
    ("events", "timestamp", SECONDS.dt.strftime("%Y-%m-%dT%H:%M:%SZ"), "String read as unix seconds"),
    ("events", "timestamp", SECONDS.dt.strftime("%Y-%m-%d %H:%M:%S"), "String read as unix seconds"),
    ("events", "value", pl.col("value").cast(pl.Float32), "Float32 read as Float64"),
    ("events", "value", pl.col("value").cast(pl.Int16), "Int16 read as Float64"),
    ("events", "value", pl.col("value").cast(pl.Decimal(12, 4)), "read as Float64"),
    ("events", "behavior", pl.col("behavior").cast(pl.Categorical), "Categorical read as String"),
    ("events", "behavior", pl.col("behavior").cast(pl.Enum(["click", "conversion"])), "read as String"),
    ("ads", "text", pl.col("text").cast(pl.Binary), "Binary read as String"),
    ("ads", "text", pl.col("text").cast(pl.Categorical), "Categorical read as String"),
    ("users", "age", pl.col("age").cast(pl.Categorical), "Categorical read as String"),
]


@pytest.mark.parametrize(("table", "name", "how", "line"), CASTS)
def test_casts_lose_nothing_and_are_told(table, name, how, line, folder, tmp_path, capsys):
    GOOD[table].with_columns(how.alias(name)).write_parquet(folder / f"{table}.parquet")
    tables, out = prepared(folder, tmp_path, capsys)
    same(tables, expected())
    [told] = [text for text in out.splitlines() if " read as " in text]
    assert told.startswith(f"{folder / table}.parquet, column {name!r}: ")
    assert line in told


def test_fractions_of_a_second_are_dropped_and_counted(folder, tmp_path, capsys):
    times = [datetime.fromtimestamp(day * 86_400 + (0.999 if day % 2 else 0), UTC) for day in DAYS]
    EVENTS.with_columns(pl.Series("timestamp", times)).write_parquet(folder / "events.parquet")
    tables, out = prepared(folder, tmp_path, capsys)
    same(tables, expected())
    assert "read as unix seconds; 10 rows lose their fraction of a second" in out


def test_other_types_of_other_columns(folder, tmp_path, capsys):
    """Account and profile as numbers or yes and no, times of ads as dates, embeddings and codes."""
    GOOD["ads"].with_columns(
        account_id=pl.Series([3, 4, 5], dtype=pl.Int16),
        created_at=pl.Series([date(1970, 1, 2)] * 3),
        embedding_0=pl.Series([1, 2, 3]),
        embedding_1=pl.Series([0.5, 1, 2], dtype=pl.Float32),
        embedding=pl.Series([[1.0, 2.0]] * 3, dtype=pl.Array(pl.Float32, 2)),
        sid_0=pl.Series([1, 2, 3], dtype=pl.UInt16),
        price=pl.Series([Decimal(1)] * 3),
    ).write_parquet(folder / "ads.parquet")
    GOOD["users"].with_columns(member=pl.Series([True, False]), level=pl.Series([7, None])).write_parquet(
        folder / "users.parquet"
    )
    tables, out = prepared(folder, tmp_path, capsys)
    ads = tables["ads"]
    assert ads["account_id"].to_list() == ["4", "3", "5"]
    assert ads["created_at"].to_list() == [86_400] * 3
    assert {name: str(ads.schema[name]) for name in ads.columns[7:]} == {
        "embedding_0": "Float64",
        "embedding_1": "Float32",
        "embedding": "List(Float32)",
        "sid_0": "Int64",
    }
    assert tables["users"]["member"].to_list() == ["false", "true"]
    assert tables["users"]["level"].to_list() == ["unknown", "7"]
    assert f"{folder}/ads.parquet: columns that are not used: price" in out
    tables, out = prepared(folder, tmp_path, capsys, profile_columns=["level"])
    assert tables["users"].columns == ["user_id", "level"]
    assert f"{folder}/users.parquet: columns that are not used: age, member" in out


def test_a_folder_of_spark(folder, tmp_path, capsys):
    (folder / "events.parquet").unlink()
    parts = folder / "events.parquet"
    (parts / "_temporary" / "0").mkdir(parents=True)
    for i, at in enumerate(range(0, 20, 7)):
        part = EVENTS.slice(at, 7).with_columns(extra=pl.lit(i))
        part.select(part.columns[:: 1 - 2 * (i % 2)]).write_parquet(parts / f"part-{i:05}-x.snappy.parquet")
    for hidden in ("_SUCCESS", ".part-00000.crc", "_temporary/0/part-00009.parquet"):
        (parts / hidden).write_bytes(b"not Parquet")
    tables, out = prepared(folder, tmp_path, capsys)
    same(tables, expected())
    assert "columns that are not used: extra" in out


@pytest.mark.parametrize("name", ["events", "events.parquet"])
def test_hive_folders_are_columns(name, folder, tmp_path, capsys):
    (folder / "events.parquet").unlink()
    for (user, behavior), part in EVENTS.group_by("user_id", "behavior"):
        place = folder / name / f"user_id={user}" / f"behavior={behavior}"
        place.mkdir(parents=True)
        part.drop("user_id", "behavior").write_parquet(place / "0.parquet")
    same(prepared(folder, tmp_path, capsys)[0], expected())


def test_hive_folders_without_a_value_and_with_odd_names(tmp_path):
    for at, name in enumerate(["a%3Db", "__HIVE_DEFAULT_PARTITION__", "c d"]):
        place = tmp_path / "k=v" / "events" / f"kind={name}"  # folders above the table's say nothing
        place.mkdir(parents=True)
        pl.DataFrame({"ad_id": [at]}).write_parquet(place / "0.parquet")
    found = open_table(tmp_path / "k=v", "events", rule_of=lambda name: name)
    assert sorted(found.frame.collect().rows(), key=str) == [(0, "a=b"), (1, None), (2, "c d")]


@pytest.mark.parametrize("folders", [False, True])
def test_csv(folders, folder, tmp_path, capsys):
    for name, table in GOOD.items():
        (folder / f"{name}.parquet").unlink()
        halves = [table] if not folders else [table.head(1), table.slice(1)]
        for i, half in enumerate(halves):
            path = folder / (f"{name}/{i}.csv" if folders else f"{name}.csv")
            path.parent.mkdir(exist_ok=True)
            half.write_csv(path)
    tables, out = prepared(folder, tmp_path, capsys)
    same(tables, expected())
    assert "column 'value': String read as Float64" in out


def test_ids_of_a_csv_are_keys_where_one_table_has_keys(folder, tmp_path, capsys):
    """Also where the table in question holds digits only."""
    GOOD["ads"].with_columns(ad_id=pl.Series(["2", "1", "x"])).write_parquet(folder / "ads.parquet")
    (folder / "events.parquet").unlink()
    EVENTS.write_csv(folder / "events.csv")
    tables, out = prepared(folder, tmp_path, capsys)
    assert "string ids of 3 ads" in out
    assert tables["ads"]["item_id"].to_list() != ["1", "2", "x"]  # in the order of hashes
    assert sorted(tables["ads"]["item_id"]) == ["1", "2", "x"]
    assert tables["users"]["user_id"].to_list() == [4, 9]


def test_places_of_rows_in_parts(tmp_path):
    (tmp_path / "events").mkdir()
    for i, rows in enumerate((3, 1, 4)):
        pl.DataFrame({"ad_id": range(rows)}).write_parquet(tmp_path / "events" / f"{i}.parquet")
    table = open_table(tmp_path, "events", rule_of=lambda name: name)
    places = [table.place(row) for row in range(8)]
    assert [(Path(file).name, row) for file, row in places] == [
        ("0.parquet", 0),
        ("0.parquet", 1),
        ("0.parquet", 2),
        ("1.parquet", 0),
        *(("2.parquet", row) for row in range(4)),
    ]


def random_events(rows: int, users: int) -> pl.DataFrame:
    random = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "user_id": random.integers(users, size=rows) ** 2,
            "ad_id": random.integers(9, size=rows),
            "timestamp": random.integers(1 << 40, size=rows) >> 20,
            "behavior": random.choice(["impression", "click", "conversion"], rows),
            "value": random.random(rows),
        }
    )


class Readers(Here):
    """As many machines would: the source in several parts, the work in another order."""

    readers = 3

    def __call__(self, work, items):
        items = list(items)
        found = {item: work(item) for item in reversed(items)}
        return [found[item] for item in items]


@pytest.mark.parametrize("workers", [Here(), Readers()])
@pytest.mark.parametrize("rows", [1, 7, 100, 10_000])
def test_blocks_side_by_side_are_the_sorted_table(rows, workers, tmp_path):
    table = random_events(1000, 30)
    events = complete_events(table.lazy())
    found = write_blocks(events, tmp_path / "blocks", where="e", rows=rows, workers=workers)
    assert found.scan().collect().equals(sort_events(events.collect()).drop(ROW))
    assert len(found.files) == {1: 30, 7: 30, 100: 10, 10_000: 1}[rows] or rows == 100
    users = [log.user_ids.tolist() for _, _, log in found.logs(attribution_window_s=60)]
    assert sum(users, []) == sorted(set(table["user_id"]))
    assert not list((tmp_path / "blocks" / "divided").rglob("*.parquet"))


@pytest.mark.parametrize("by", ["weeks", "fractions", "last_events"])
def test_what_is_prepared_and_said_does_not_depend_on_the_blocks(by, folder, tmp_path, capsys, monkeypatch):
    random_events(3000, 30).with_columns(pl.col("timestamp") * 10).unique(KEY).write_parquet(
        folder / "events.parquet"
    )
    pl.DataFrame({"user_id": [user**2 for user in range(30)]}).write_parquet(folder / "users.parquet")
    pl.DataFrame({"ad_id": range(9), "text": ["a"] * 9}).write_parquet(folder / "ads.parquet")
    whole, said = prepared(folder, tmp_path, capsys, split={"by": by})
    monkeypatch.setattr(prepare, "_BLOCK", 200)
    small, said_of_small = prepared(folder, tmp_path, capsys, split={"by": by})
    same(small, whole)
    assert said == said_of_small
    assert ("split" in whole["events"].columns) == (by == "last_events")


@pytest.mark.slow
def test_three_thousand_damages_of_one_bit(tmp_path):
    """None ends anything but the reading of the table. Most pages carry no checksum, so values can differ."""
    write(tmp_path / "mine")
    path = tmp_path / "mine" / "events.parquet"
    table = pl.read_parquet(path)
    raw, random = path.read_bytes(), np.random.default_rng(0)
    config = DataConfig(source="parquet", path=str(path.parent))
    refused = unchanged = 0
    for bit in random.integers(len(raw) * 8, size=3000).tolist():
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            source = open_parquet(config)
        except TableError as error:
            assert error.where == str(path)  # noqa: PT017
            refused += 1
            continue
        refused += bool(source.faults)
        if not source.faults:
            unchanged += source.events.drop(ROW, "provenance").collect().equals(table)
    assert refused > 1000
    assert unchanged > 300
