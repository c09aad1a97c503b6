"""The three tables every source delivers, and their checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from serving.model.features import BEHAVIORS
from training.data.checks import (
    TableError,
    check_columns,
    check_ids,
    check_rows,
    check_seconds,
    check_unique,
    one_of,
)

STATUSES = ("active", "paused", "deleted")
UNKNOWN = "unknown"

ADS_COLUMNS: dict[str, pl.DataType] = {
    "ad_id": pl.Int64(),
    "item_id": pl.String(),
    "account_id": pl.String(),
    "conversion_type": pl.String(),
    "text": pl.String(),
    "created_at": pl.Int64(),
    "status": pl.String(),
}
EVENTS_COLUMNS: dict[str, pl.DataType] = {
    "user_id": pl.Int64(),
    "ad_id": pl.Int64(),
    "timestamp": pl.Int64(),
    "behavior": pl.String(),
    "value": pl.Float64(),
    "provenance": pl.String(),
}
EVENT_KEY = ("user_id", "ad_id", "timestamp", "behavior")


@dataclass(frozen=True)
class LoadStats:
    """What a source read and what it left out.

    Attributes:
        rows_read: rows of the event-bearing files.
        rows_dropped: reason -> rows left out or merged for that reason.
    """

    rows_read: int
    rows_dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Tables:
    """Checked tables of one source; `make_tables` builds it.

    Attributes:
        ads: columns `ADS_COLUMNS`, sorted by ad_id.
        users: user_id and String profile columns, sorted by user_id.
        events: columns `EVENTS_COLUMNS`, sorted by user_id, timestamp, ad_id, behavior name.
        stats: rows read and dropped.
        provenance: the sentence that belongs beside every result made from these tables.
    """

    ads: pl.DataFrame
    users: pl.DataFrame
    events: pl.DataFrame
    stats: LoadStats
    provenance: str


def validate_ads(df: pl.DataFrame, where: str) -> pl.DataFrame:
    """Check the ads table; returns it with its columns in schema order.

    Raises:
        TableError: missing or unknown column, wrong dtype, empty table, null, negative id or time, time not
            in seconds, empty text, unknown status, ad_id twice.
    """
    check_columns(df, where, schema=ADS_COLUMNS)
    check_ids(df, where, column="ad_id")
    check_seconds(df, where, column="created_at")
    check_rows(
        df, where, column="text", bad=pl.col("text").str.strip_chars() == "", expected="non-empty text"
    )
    check_rows(df, where, column="status", bad=~pl.col("status").is_in(STATUSES), expected=one_of(STATUSES))
    check_unique(df, where, key=("ad_id",))
    return df.select(list(ADS_COLUMNS))


def validate_users(df: pl.DataFrame, where: str) -> pl.DataFrame:
    """Check the users table and replace null in its profile columns, which are all but user_id, by "unknown".

    Raises:
        TableError: user_id missing, a dtype other than Int64 (user_id) or String (profile), empty table,
            null, negative or repeated user_id.
    """
    profile = {name: pl.String() for name in df.columns if name != "user_id"}
    check_columns(df, where, schema={"user_id": pl.Int64(), **profile}, nullable=tuple(profile))
    check_ids(df, where, column="user_id")
    check_unique(df, where, key=("user_id",))
    return df.select("user_id", *(pl.col(name).fill_null(UNKNOWN) for name in profile))


def validate_events(df: pl.DataFrame, where: str) -> pl.DataFrame:
    """Check the events table; returns it with its columns in schema order.

    Raises:
        TableError: missing or unknown column, wrong dtype, empty table, null, negative id or time, time not
            in seconds, unknown behavior, value that is negative, NaN or infinite, the same (user_id, ad_id,
            timestamp, behavior) twice.
    """
    check_columns(df, where, schema=EVENTS_COLUMNS)
    for column in ("user_id", "ad_id"):
        check_ids(df, where, column=column)
    check_seconds(df, where, column="timestamp")
    check_rows(
        df,
        where,
        column="behavior",
        bad=~pl.col("behavior").is_in(list(BEHAVIORS)),
        expected=one_of(BEHAVIORS),
    )
    value = pl.col("value")
    check_rows(
        df, where, column="value", bad=~value.is_finite() | (value < 0), expected="a finite value >= 0"
    )
    # Delivery "at least once" repeats events, and a repeated purchase would count its value twice: only the
    # writer of the logs can tell.
    check_unique(df, where, key=EVENT_KEY)
    return df.select(list(EVENTS_COLUMNS))


def validate_tables(ads: pl.DataFrame, users: pl.DataFrame, events: pl.DataFrame, *, where: str) -> None:
    """Check that every user_id and ad_id of events exists.

    Raises:
        TableError: an event names an unknown user or ad.
    """
    for column, table, name in (("user_id", users, "users"), ("ad_id", ads, "ads")):
        known = pl.lit(table[column].implode())
        check_rows(
            events,
            where,
            column=column,
            bad=~pl.col(column).is_in(known),
            expected=f"an id of the {name} table",
        )


def make_tables(
    ads: pl.DataFrame,
    users: pl.DataFrame,
    *,
    events: pl.DataFrame,
    stats: LoadStats,
    provenance: str,
    where: Sequence[str],
    profile_columns: Sequence[str] | None = None,
) -> Tables:
    """Check everything and assemble the result of a source.

    Args:
        ads: ads table.
        users: users table.
        events: events table.
        stats: rows read and dropped.
        provenance: sentence for results.
        where: names of the three tables in messages, in the order ads, users, events.
        profile_columns: profile columns to keep, in this order; None keeps all.

    Raises:
        TableError: any fault of `validate_ads`, `validate_users`, `validate_events`, `validate_tables`, or a
            profile column that users does not have.
    """
    ads_name, users_name, events_name = where
    ads, users, events = (
        validate_ads(ads, ads_name),
        validate_users(users, users_name),
        validate_events(events, events_name),
    )
    if profile_columns is not None:
        available = [name for name in users.columns if name != "user_id"]
        missing = [name for name in profile_columns if name not in available]
        if missing:
            raise TableError(
                users_name,
                f"profile columns {missing}",
                actual=f"profile columns {available}",
                column=missing[0],
            )
        users = users.select("user_id", *profile_columns)
    validate_tables(ads, users, events, where=events_name)
    # Sorted, so that row i of users is user i of the EventLog and of the encoded profiles, and so that the
    # same logs give the same files.
    return Tables(
        ads=ads.sort("ad_id"),
        users=users.sort("user_id"),
        events=events.sort("user_id", "timestamp", "ad_id", "behavior"),
        stats=stats,
        provenance=provenance,
    )
