"""The three tables every source delivers, and their checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from serving.model.features import BEHAVIORS
from training.data.checks import TableChecks, TableError, one_of, raise_faults
from training.data.split import PARTS

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
SPLIT_COLUMN = "split"
OPTIONAL_EVENTS_COLUMNS: dict[str, tuple[pl.DataType, ...]] = {
    "request_id": (pl.Int64(), pl.String()),
    "position": (pl.Int64(),),
    SPLIT_COLUMN: (pl.String(),),
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
        events: columns `EVENTS_COLUMNS` and those of `OPTIONAL_EVENTS_COLUMNS` that the source has, sorted by
            user_id, timestamp, ad_id, behavior (impression, click, conversion), request_id.
        stats: rows read and dropped.
        provenance: the sentence that belongs beside every result made from these tables.
    """

    ads: pl.DataFrame
    users: pl.DataFrame
    events: pl.DataFrame
    stats: LoadStats
    provenance: str


def check_ads(df: pl.DataFrame, where: str) -> TableChecks:
    """Check the ads table.

    Faults: missing or unknown column, wrong dtype, empty table, null, negative id or time, time not in
    seconds, empty text, unknown status, ad_id twice.
    """
    checks = TableChecks(df, where)
    checks.columns(ADS_COLUMNS)
    checks.ids("ad_id")
    checks.seconds("created_at")
    checks.rows("text", bad=pl.col("text").str.strip_chars() == "", expected="non-empty text")
    checks.rows("status", bad=~pl.col("status").is_in(STATUSES), expected=one_of(STATUSES))
    checks.unique(("ad_id",))
    return checks


def check_users(df: pl.DataFrame, where: str) -> TableChecks:
    """Check the users table; all of its columns but user_id are profile columns.

    Faults: user_id missing, a dtype other than Int64 (user_id) or String (profile), empty table, null,
    negative or repeated user_id.
    """
    profile = {name: pl.String() for name in df.columns if name != "user_id"}
    checks = TableChecks(df, where)
    checks.columns({"user_id": pl.Int64(), **profile}, nullable=tuple(profile))
    checks.ids("user_id")
    checks.unique(("user_id",))
    return checks


def check_events(df: pl.DataFrame, where: str) -> TableChecks:
    """Check the events table.

    Faults: missing or unknown column, wrong dtype, empty table, null, negative id, time or position, time not
    in seconds, unknown behavior or part, value that is negative, NaN or infinite, the same key (user_id,
    ad_id, timestamp, behavior and, where there is one, request_id) twice.
    """
    checks = TableChecks(df, where)
    checks.columns(EVENTS_COLUMNS, optional=OPTIONAL_EVENTS_COLUMNS)
    for column in ("user_id", "ad_id"):
        checks.ids(column)
    checks.seconds("timestamp")
    checks.rows("behavior", bad=~pl.col("behavior").is_in(list(BEHAVIORS)), expected=one_of(BEHAVIORS))
    value = pl.col("value")
    checks.rows("value", bad=~value.is_finite() | (value < 0), expected="a finite value >= 0")
    if "position" in df.columns:
        bad = ~pl.col("position").is_between(0, 2**31, closed="left")
        checks.rows("position", bad=bad, expected="a position in [0, 2^31)")
    if SPLIT_COLUMN in df.columns:
        known = pl.col(SPLIT_COLUMN).is_in(PARTS)
        checks.rows(SPLIT_COLUMN, bad=~known.fill_null(False), expected=one_of(PARTS))
    # Delivery "at least once" repeats events, and a repeated purchase would count its value twice: only the
    # writer of the logs can tell.
    checks.unique((*EVENT_KEY, *(name for name in ("request_id",) if name in df.columns)))
    return checks


def _check_references(events: TableChecks, ads: pl.DataFrame, users: pl.DataFrame) -> None:
    """Every user_id and ad_id of events must exist."""
    for column, table, name in (("user_id", users, "users"), ("ad_id", ads, "ads")):
        if column in table.columns and table.schema[column] == events.df.schema.get(column):
            known = pl.col(column).is_in(pl.lit(table[column].implode()))
            events.rows(column, bad=~known, expected=f"an id of the {name} table")


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
        TableError: any fault of `check_ads`, `check_users` and `check_events`, an event of an unknown user or
            ad, or a profile column that users does not have; all faults of the three tables in one report.
    """
    ads_name, users_name, events_name = where
    checked = check_ads(ads, ads_name), check_users(users, users_name), check_events(events, events_name)
    _check_references(checked[-1], ads, users)
    faults = [fault for checks in checked for fault in checks.faults]
    available = [name for name in users.columns if name != "user_id"]
    kept = available if profile_columns is None else list(profile_columns)
    missing = [name for name in kept if name not in available]
    if missing:
        expected, actual = f"profile columns {missing}", f"profile columns {available}"
        faults.append(TableError(users_name, expected, actual=actual, column=missing[0]))
    raise_faults(faults)
    optional = [name for name in OPTIONAL_EVENTS_COLUMNS if name in events.columns]
    code = pl.col("behavior").replace_strict(dict(BEHAVIORS), return_dtype=pl.Int8)
    key = ["user_id", "timestamp", "ad_id", code, *(name for name in optional if name == "request_id")]
    # Sorted, so that row i of users is user i of the EventLog and of the encoded profiles, and so that the
    # same logs give the same files.
    return Tables(
        ads=ads.select(list(ADS_COLUMNS)).sort("ad_id"),
        users=users.select("user_id", *(pl.col(name).fill_null(UNKNOWN) for name in kept)).sort("user_id"),
        events=events.select(*EVENTS_COLUMNS, *optional).sort(key),
        stats=stats,
        provenance=provenance,
    )
