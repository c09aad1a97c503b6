"""Table schemas: every kind of bad row is refused with file, row, column, expected and actual."""

import polars as pl
import pytest

from training.data.checks import TableError
from training.data.schema import (
    LoadStats,
    make_tables,
    validate_ads,
    validate_events,
    validate_tables,
    validate_users,
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
    ("ads", {"ad_id": ["7", "3", "5"]}, None, "ad_id", "Int64", "String", 0),
    ("ads", {"item_id": ["a", None, None]}, 1, "item_id", "a value", "None", 1),
    ("ads", {"text": ["ice", "  ", ""]}, 1, "text", "non-empty text", "'  '", 1),
    ("ads", {"status": ["active", "active", "gone"]}, 2, "status", "active|paused|deleted", "'gone'", 0),
    ("ads", {"created_at": [-1, 0, 0]}, 0, "created_at", "unix seconds", "-1", 0),
    ("ads", {"color": ["r", "g", "b"]}, None, "color", "ad_id", "unknown column 'color'", 0),
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
]
VALIDATE = {"ads": (ads, validate_ads), "users": (users, validate_users), "events": (events, validate_events)}


@pytest.mark.parametrize(("table", "replace", "row", "column", "expected", "actual", "more"), BAD)
def test_bad_row_is_named(
    table: str, replace: dict, row: int | None, column: str, expected: str, actual: str, more: int
) -> None:
    make, validate = VALIDATE[table]
    with pytest.raises(TableError) as caught:
        validate(make(**replace), "some/file.parquet")
    message = str(caught.value)
    assert message.startswith("some/file.parquet")
    assert f"column '{column}'" in message
    assert (f"row {row}," in message) if row is not None else ("row" not in message)
    want, got = message.split(", got ")
    assert expected in want
    assert actual in got
    assert ("more such rows" in got) == (more > 0)
    if more:
        assert f"(and {more} more such rows)" in got
    assert (caught.value.row, caught.value.column, caught.value.more) == (row, column, more)


def test_repeated_event_is_refused() -> None:
    with pytest.raises(
        TableError, match=r"row 3, .*user_id, ad_id, timestamp, behavior.*each key once"
    ) as caught:
        validate_events(pl.concat([events().head(3), events().slice(1, 1)]), "e")
    assert "(1, 5, 100, 'conversion') again" in str(caught.value)


@pytest.mark.parametrize("table", ["ads", "users", "events"])
def test_missing_column_and_empty_table(table: str) -> None:
    make, validate = VALIDATE[table]
    column = "user_id" if table != "ads" else "text"
    with pytest.raises(TableError, match=f"column '{column}': expected columns .* got columns"):
        validate(make().drop(column), "f")
    with pytest.raises(TableError, match="f: expected at least one row, got an empty table"):
        validate(make().clear(), "f")


@pytest.mark.parametrize(
    ("replace", "row", "column", "name"),
    [({"ad_id": [3, 5, 9, 7]}, 2, "ad_id", "ads"), ({"user_id": [1, 8, 8, 2]}, 1, "user_id", "users")],
)
def test_unknown_ids(replace: dict, row: int, column: str, name: str) -> None:
    bad = events(**replace)
    with pytest.raises(TableError) as caught:
        validate_tables(ads(), users(), bad, where="events.parquet")
    assert f"events.parquet, row {row}, column '{column}': expected an id of the {name} table" in str(
        caught.value
    )
    assert f"got {bad[column][row]}" in str(caught.value)


def test_missing_profile_column() -> None:
    with pytest.raises(
        TableError, match=r"U, column 'income': expected .*income.*got profile columns \['age'\]"
    ):
        make_tables(
            ads(),
            users(),
            events=events(),
            stats=LoadStats(4),
            provenance="",
            where=("A", "U", "E"),
            profile_columns=("income",),
        )
