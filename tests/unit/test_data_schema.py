"""Table schemas: every kind of bad row is refused with file, row, column, expected and actual."""

import re

import polars as pl
import pytest

from training.data.checks import ROW, TableError
from training.data.columns import Named
from training.data.event_order import Repeats, sort_events
from training.data.schema import (
    LoadStats,
    Unchecked,
    check_ads,
    check_events,
    check_users,
    make_tables,
)


def ads(**replace: object) -> pl.DataFrame:
    """Three good ads, with columns replaced."""
    columns = {
        "ad_id": [7, 3, 5],
        "item_id": ["a", "b", "c"],
        "account_id": ["x", "x", "y"],
        "conversion_type": ["coupon", "plain", "plain"],
        "text": ["ice", "bread", "milk"],
        "created_at": [10, 20, 30],
        "status": ["active", "paused", "deleted"],
    }
    return pl.DataFrame({**columns, **replace})


def users(**replace: object) -> pl.DataFrame:
    """Two good users, with columns replaced."""
    return pl.DataFrame({"user_id": [2, 1], "age": ["45-54", None], **replace})


def events(**replace: object) -> pl.DataFrame:
    """Four good events, with columns replaced."""
    columns = {
        "user_id": [1, 1, 2, 2],
        "ad_id": [3, 5, 7, 7],
        "timestamp": [100, 100, 50, 60],
        "behavior": ["click", "conversion", "impression", "conversion"],
        "value": [0.0, 1.5, 0.0, 2.5],
        "provenance": ["test"] * 4,
    }
    return pl.DataFrame({**columns, **replace})


def test_good_tables_pass_and_are_sorted() -> None:
    tables = make_tables(
        ads(), users(), events=events(), stats=LoadStats(4), provenance="p", where=("A", "U", "E")
    )
    assert tables.ads["ad_id"].to_list() == [3, 5, 7]
    assert tables.ads["text"].to_list() == ["bread", "milk", "ice"]
    assert tables.users.rows() == [(1, "unknown"), (2, "45-54")]
    assert tables.events.height == 4


BAD = [
    # table, replaced columns, row, column, expected, actual, more
    ("ads", {"ad_id": [7, -3, 5]}, 1, "ad_id", ">= 0", "-3", 0),
    ("ads", {"ad_id": [7, 3, 7]}, 2, "ad_id", "each key once", "7 again", 0),
    ("ads", {"ad_id": [7.5, 3.0, 5.0]}, None, "ad_id", "Int64 or String", "Float64", 0),
    ("ads", {"ad_id": ["7", "", "5"]}, 1, "ad_id", "a key of 1 to 256 characters", "''", 0),
    ("ads", {"item_id": ["a", None, None]}, 1, "item_id", "a value", "None", 1),
    ("ads", {"text": ["ice", "  ", ""]}, 1, "text", "non-empty text", "'  '", 1),
    ("ads", {"status": ["active", "active", "gone"]}, 2, "status", "active|paused|deleted", "'gone'", 0),
    ("ads", {"created_at": [-1, 0, 0]}, 0, "created_at", "unix seconds", "-1", 0),
    ("ads", {"audience": [None, "{}", '{"end": "x"}']}, 2, "audience", "an audience", "'{\"end", 0),
    ("ads", {"audience": ["{}"] * 3, "text": ["ice", " ", "a"]}, 1, "text", "non-empty text", "' '", 0),
    ("users", {"user_id": [2, 2]}, 1, "user_id", "each key once", "2 again", 0),
    ("users", {"user_id": [2, -1]}, 1, "user_id", ">= 0", "-1", 0),
    ("users", {"user_id": [2, None]}, 1, "user_id", "a value", "None", 0),
    ("users", {"age": [45, 54]}, None, "age", "String", "Int64", 0),
    ("events", {"user_id": [1, None, 2, 2]}, 1, "user_id", "a value", "None", 0),
    ("events", {"timestamp": [100, 100, -5, -6]}, 2, "timestamp", "unix seconds", "-5", 1),
    ("events", {"timestamp": [100, 1_500_000_000_000, 50, 60]}, 1, "timestamp", "unix seconds", "15000", 0),
    ("events", {"behavior": ["click", "buy", "buy", "buy"]}, 1, "behavior", "impression|click", "'buy'", 2),
    ("events", {"value": [0.0, float("nan"), 0.0, 1.0]}, 1, "value", "finite value >= 0", "nan", 0),
    ("events", {"value": [0.0, 1.0, float("inf"), 1.0]}, 2, "value", "finite value >= 0", "inf", 0),
    ("events", {"value": [0.0, 1.0, 1.0, -0.5]}, 3, "value", "finite value >= 0", "-0.5", 0),
    ("events", {"value": [0, 1, 1, 5]}, None, "value", "Float64", "Int64", 0),
    ("events", {"provenance": ["t", "t", "t", None]}, 3, "provenance", "a value", "None", 0),
    ("events", {"position": [0, None, -2, 7]}, 2, "position", "a position in [0, 2^31)", "-2", 0),
    ("events", {"position": [0, 1, 2, 1 << 31]}, 3, "position", "a position in", "2147483648", 0),
    ("events", {"request_id": [0.5, 1.0, 2.0, 3.0]}, None, "request_id", "Int64 or String", "Float64", 0),
    ("events", {"split": ["train", None, "dev", "test"]}, 1, "split", "train|validation|test", "None", 1),
]
CHECK = {"ads": (ads, check_ads), "users": (users, check_users), "events": (events, check_events)}


@pytest.mark.parametrize(("table", "replace", "row", "column", "expected", "actual", "more"), BAD)
def test_bad_row_is_named(
    table: str, replace: dict, row: int | None, column: str, expected: str, actual: str, more: int
) -> None:
    make, check = CHECK[table]
    [fault] = check(Unchecked(make(**replace).lazy(), "some/file.parquet")).faults
    message = str(fault)
    assert message.startswith("some/file.parquet")
    assert f"column '{column}'" in message
    assert (f"row {row}," in message) if row is not None else ("row" not in message)
    want, got = message.split(", got ")
    assert expected in want
    assert actual in got
    assert ("more such rows" in got) == (more > 0)
    if more:
        assert f"(and {more} more such rows: row " in got
    assert (fault.row, fault.column, fault.more) == (row, column, more)


def repeats(table: pl.DataFrame) -> list[TableError]:
    found = Repeats()
    found.add(sort_events(table.with_row_index(ROW)))
    return found.faults("e")


def test_repeated_event_is_refused() -> None:
    [fault] = repeats(pl.concat([events().head(3), events().slice(1, 1)]))
    assert str(fault) == (
        "e, row 3, column 'user_id, timestamp, ad_id, behavior': expected each key once, "
        "got (1, 100, 5, 'conversion') again"
    )


def test_repeats_are_counted_over_blocks_and_the_first_rows_shown() -> None:
    twice = pl.concat([events(), events(), events().head(3)]).with_row_index(ROW)
    found = Repeats()
    for user in (2, 1):
        found.add(sort_events(twice.filter(pl.col("user_id") == user)))
    [fault] = found.faults("e", place=lambda row: (f"part-{row // 6}", row % 6))
    assert str(fault) == (
        "part-0, row 4, column 'user_id, timestamp, ad_id, behavior': expected each key once, "
        "got (1, 100, 3, 'click') again (and 6 more such rows: row 5, part-1 row 0, ..)"
    )


def test_an_event_of_two_requests_is_two_events() -> None:
    twice = pl.concat([events(request_id=["a", "b", None, "a"])] * 2)
    assert len(repeats(twice)) == 1
    other = twice.with_columns(pl.Series("request_id", ["a", "b", None, "a", "c", "d", "e", None]))
    assert not repeats(other)


@pytest.mark.parametrize("table", ["ads", "users", "events"])
def test_missing_column_and_empty_table(table: str) -> None:
    make, check = CHECK[table]
    column = "user_id" if table != "ads" else "text"
    [fault] = check(Unchecked(make().drop(column).lazy(), "f")).faults
    assert re.search(f"column '{column}': expected columns .* got columns", str(fault))
    [fault] = check(Unchecked(make().clear().lazy(), "f")).faults
    assert str(fault) == "f: expected at least one row, got an empty table"


def test_all_faults_of_the_three_tables_in_one_report() -> None:
    bad_events = events(
        value=[0.0, -1.0, 0.0, 1.0],
        user_id=[1, 9, 2, 2],
        behavior=["click", "buy", "x", "click"],
        rank=[1] * 4,
    ).drop("provenance")
    with pytest.raises(TableError) as caught:
        make_tables(
            ads(status=["gone"] * 3, text=["a", "", "c"]),
            users(age=[1, 2]),
            events=bad_events,
            stats=LoadStats(4),
            provenance="",
            where=("A", "U", "E"),
            named=Named(profile=("income", "age")),
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "7 faults:"
    for line, start in zip(
        lines[1:],
        [
            "A, row 1, column 'text': expected non-empty text, got ''",
            "A, row 0, column 'status': expected one of active|paused|deleted, got 'gone' (and 2 more",
            "U, column 'income': expected columns ['income'], got columns ['user_id', 'age']",
            "U, column 'age': expected dtype String, got dtype Int64",
            "E, row 1, column 'behavior': expected one of impression|click|conversion, got 'buy' (and 1 more",
            "E, row 1, column 'value': expected a finite value >= 0, in float32, got -1.0",
            "E, row 1, column 'user_id': expected an id of the users table, got 9",
        ],
        strict=True,
    ):
        assert line.strip().startswith(start)
    assert len(caught.value.faults) == 7
    assert (caught.value.where, caught.value.row, caught.value.column) == ("A", 1, "text")


@pytest.mark.parametrize(
    ("time", "said"),
    [
        (1_500_000_000_000, "1500000000000: milliseconds? As such it is 2017-07-14 02:40"),
        (1_500_000_000_000_000, "1500000000000000: microseconds? As such it is 2017-07-14 02:40"),
        (1_500_000_000_000_000_000, "1500000000000000000: nanoseconds? As such it is 2017-07-14 02:40"),
        (-1_500_000_000_000, "-1500000000000"),
    ],
)
def test_finer_times_are_called_by_their_name(time: int, said: str) -> None:
    [fault] = check_events(Unchecked(events(timestamp=[100, time, 50, time]).lazy(), "e")).faults
    expected = "e, row 1, column 'timestamp': expected unix seconds in [0, 100000000000), got "
    assert str(fault) == f"{expected}{said} (and 1 more such rows: row 3 {time})"
    [fault] = check_ads(Unchecked(ads(created_at=[0, 0, time]).lazy(), "a")).faults
    assert said in str(fault)


@pytest.mark.parametrize(
    ("replace", "row", "column", "name"),
    [({"ad_id": [3, 5, 9, 7]}, 2, "ad_id", "ads"), ({"user_id": [1, 8, 8, 2]}, 1, "user_id", "users")],
)
def test_unknown_ids(replace: dict, row: int, column: str, name: str) -> None:
    bad = events(**replace)
    with pytest.raises(TableError) as caught:
        make_tables(
            ads(),
            users(),
            events=bad,
            stats=LoadStats(4),
            provenance="",
            where=("ads", "users", "events.parquet"),
        )
    assert f"events.parquet, row {row}, column '{column}': expected an id of the {name} table" in str(
        caught.value
    )
    assert f"got {bad[column][row]}" in str(caught.value)


def test_missing_profile_column() -> None:
    with pytest.raises(
        TableError, match=r"U, column 'income': expected .*income.*got columns \['user_id', 'age'\]"
    ):
        make_tables(
            ads(),
            users(),
            events=events(),
            stats=LoadStats(4),
            provenance="",
            where=("A", "U", "E"),
            named=Named(profile=("income", "age")),
        )


def test_columns_that_a_preset_names_are_asked_for_and_kept() -> None:
    named = Named(numeric=("price", "ad_id"), request=("device", "hour", "position"))
    table = ads(price=[1.5, None, float("inf")], color=["r", "g", "b"])
    [fault] = check_ads(Unchecked(table.lazy(), "a"), named).faults
    assert str(fault) == "a, row 2, column 'price': expected a finite number or null, got inf"
    [fault] = check_ads(Unchecked(ads().lazy(), "a"), named).faults
    assert "column 'price': expected columns ['price'], got columns ['ad_id'" in str(fault)
    [fault] = check_events(Unchecked(events(device=["a"] * 4, hour=[0.5] * 4).lazy(), "e"), named).faults
    assert "column 'hour': expected dtype Int8 or Int16" in str(fault)
    tables = make_tables(
        ads(price=[1, None, 3], color=["r", "g", "b"]),
        users(),
        events=events(device=["a", None, "b", "c"], hour=[1, 2, None, 4], place=["x"] * 4),
        stats=LoadStats(4),
        provenance="p",
        where=("A", "U", "E"),
        named=named,
    )
    assert tables.ads.columns[7:] == ["price"]
    assert tables.ads["price"].to_list() == [None, 3, 1]
    assert tables.events.columns[6:] == ["device", "hour"]
    assert tables.events.select("timestamp", "hour").rows() == [(100, 1), (100, 2), (50, None), (60, 4)]
