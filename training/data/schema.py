"""The three tables every source delivers, and their checks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from serving.model.features import BEHAVIORS
from training.data.checks import TableChecks, TableError, one_of, raise_faults
from training.data.keys import Keys, with_ids
from training.data.split import PARTS

STATUSES = ("active", "paused", "deleted")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Column:
    """What is demanded of one column.

    Attributes:
        dtypes: that its values may have, once read.
        required: whether the table must have it.
        default: what a table without it gets; None leaves it out.
        nullable: whether it may hold nulls.
    """

    dtypes: tuple[pl.DataType, ...]
    required: bool = True
    default: pl.Expr | None = None
    nullable: bool = False


_ID = Column((pl.Int64(), pl.String()))  # numbers or keys
ADS_COLUMNS: dict[str, Column] = {
    "ad_id": _ID,
    "item_id": Column((pl.String(),), required=False, default=pl.col("ad_id").cast(pl.String)),
    "account_id": Column((pl.String(),), required=False, default=pl.lit(UNKNOWN)),
    "conversion_type": Column((pl.String(),), required=False, default=pl.lit(UNKNOWN)),
    "text": Column((pl.String(),), default=pl.lit("")),
    "created_at": Column((pl.Int64(),), required=False, default=pl.lit(0, pl.Int64)),
    "status": Column((pl.String(),), required=False, default=pl.lit("active")),
}
# Given by the user instead of being made here: embeddings as one list or a column each, semantic IDs.
GIVEN_ADS_COLUMNS = re.compile(r"embedding|embedding_\d+|sid_\d+")
SPLIT_COLUMN = "split"
EVENTS_COLUMNS: dict[str, Column] = {
    "user_id": _ID,
    "ad_id": _ID,
    "timestamp": Column((pl.Int64(),)),
    "behavior": Column((pl.String(),)),
    "value": Column((pl.Float64(),)),
    "provenance": Column((pl.String(),), required=False, default=pl.lit(UNKNOWN)),
    "request_id": Column((pl.Int64(), pl.String()), required=False, nullable=True),
    "position": Column((pl.Int64(),), required=False, nullable=True),
    SPLIT_COLUMN: Column((pl.String(),), required=False, nullable=True),  # its own check names the parts
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
        ads: columns `ADS_COLUMNS` and those of `GIVEN_ADS_COLUMNS` that the source has, sorted by ad_id.
        users: user_id and String profile columns, sorted by user_id.
        events: columns `EVENTS_COLUMNS`, those without a default only where the source has them, sorted by
            user_id, timestamp, ad_id, behavior (impression, click, conversion), request_id.
        stats: rows read and dropped.
        provenance: the sentence that belongs beside every result made from these tables.
        keys: the source's own ids of ads and users, where they are texts.
    """

    ads: pl.DataFrame
    users: pl.DataFrame
    events: pl.DataFrame
    stats: LoadStats
    provenance: str
    keys: Keys = field(default_factory=Keys)


def check_ads(df: pl.DataFrame, where: str) -> TableChecks:
    """Check the ads table.

    Faults: missing column, wrong dtype, empty table, null, no key, negative id or time, time not in seconds,
    empty text where neither embedding nor semantic ID is given, unknown status, ad_id twice.
    """
    checks = TableChecks(df, where)
    given = [name for name in df.columns if GIVEN_ADS_COLUMNS.fullmatch(name)]
    schema = dict(ADS_COLUMNS)
    if given:
        schema["text"] = replace(schema["text"], required=False)
    checks.columns(schema)
    for name in given:
        checks.rows(name, bad=pl.col(name).is_null(), expected="a value")
    checks.ids("ad_id")
    checks.seconds("created_at")
    if not given:
        checks.rows("text", bad=pl.col("text").str.strip_chars() == "", expected="non-empty text")
    checks.rows("status", bad=~pl.col("status").is_in(STATUSES), expected=one_of(STATUSES))
    checks.unique(("ad_id",))
    return checks


def check_users(df: pl.DataFrame, where: str) -> TableChecks:
    """Check the users table; all of its columns but user_id are profile columns.

    Faults: user_id missing, a dtype other than Int64 or String (user_id) or String (profile), empty
    table, null, no key, negative or repeated user_id.
    """
    profile = {name: Column((pl.String(),), nullable=True) for name in df.columns if name != "user_id"}
    checks = TableChecks(df, where)
    checks.columns({"user_id": _ID, **profile})
    checks.ids("user_id")
    checks.unique(("user_id",))
    return checks


def check_events(df: pl.DataFrame, where: str) -> TableChecks:
    """Check the events table.

    Faults: missing column, wrong dtype, empty table, null, negative id, time or position, time not
    in seconds, unknown behavior or part, value that is negative, NaN or infinite, the same key (user_id,
    ad_id, timestamp, behavior and, where there is one, request_id) twice.
    """
    checks = TableChecks(df, where)
    checks.columns(EVENTS_COLUMNS)
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
    """Every user_id and ad_id of events must exist, as keys or as numbers."""
    for column, table, name in (("user_id", users, "users"), ("ad_id", ads, "ads")):
        if column not in table.columns or column not in events.df.columns:
            continue
        events.same_type(column, table.schema[column], other=name)
        if table.schema[column] == events.df.schema[column]:
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
            ad, a profile column that users does not have, or two keys of one id; all faults of the three
            tables in one report.
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
    keys = Keys.of(ads, users, where=(ads_name, users_name))
    events = with_ids(_complete(events, EVENTS_COLUMNS))
    profile = [pl.col(name).fill_null(UNKNOWN) for name in kept]
    code = pl.col("behavior").replace_strict(dict(BEHAVIORS), return_dtype=pl.Int8)
    key = ["user_id", "timestamp", "ad_id", code, *(name for name in events.columns if name == "request_id")]
    # Sorted, so that row i of users is user i of the EventLog and of the encoded profiles, and so that the
    # same logs give the same files.
    return Tables(
        ads=with_ids(_complete(ads, ADS_COLUMNS, given=GIVEN_ADS_COLUMNS)).sort("ad_id"),
        users=with_ids(users.select("user_id", *profile)).sort("user_id"),
        events=events.sort(key),
        stats=stats,
        provenance=provenance,
        keys=keys,
    )


def _complete(
    df: pl.DataFrame, schema: Mapping[str, Column], *, given: re.Pattern[str] | None = None
) -> pl.DataFrame:
    """Columns of a schema in its order, defaults where they are missing; then those that match `given`."""
    columns: list[pl.Expr] = []
    for name, rule in schema.items():
        if name in df.columns:
            columns.append(pl.col(name))
        elif rule.default is not None:
            columns.append(rule.default.alias(name))
    return df.select(*columns, *(name for name in df.columns if given and given.fullmatch(name)))
