"""The three tables every source delivers, and their checks."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from serving.index.audience import Audience, AudienceError
from serving.model.features import BEHAVIORS
from training.data.checks import ROW, Place, TableChecks, TableError, one_of, raise_faults
from training.data.columns import (
    ADS_COLUMNS,
    AUDIENCE,
    CATEGORICAL,
    EVENTS_COLUMNS,
    MODALITY,
    NOTHING_NAMED,
    NUMERIC,
    PROFILE,
    SPLIT_COLUMN,
    STATUSES,
    UNKNOWN,
    USER_ID,
    Column,
    Named,
    given_column,
    given_columns,
)
from training.data.event_order import KEY, Repeats, sort_events
from training.data.keys import Keys, with_ids
from training.data.modalities import check_modalities, is_of_modality, joined
from training.data.split import PARTS


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
        ads: columns `ADS_COLUMNS` and those of `given_column` that the source has, sorted by ad_id.
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


@dataclass(frozen=True)
class Unchecked:
    """One table before its checks.

    Attributes:
        frame: its columns; of the events it is read in batches.
        where: its name in messages.
        place: see `TableChecks`; None for a table of one file.
        unusable: columns with a fault that is known.
        source_columns: all that its files have, for messages; None for those of the frame.
    """

    frame: pl.LazyFrame
    where: str
    place: Callable[[int], Place] | None = None
    unusable: frozenset[str] = frozenset()
    source_columns: tuple[str, ...] | None = None

    def checks(self) -> TableChecks:
        """Of this table, none yet."""
        return TableChecks(
            self.frame,
            self.where,
            place=self.place,
            unusable=self.unusable,
            source_columns=self.source_columns,
        )


def check_ads(table: Unchecked, named: Named = NOTHING_NAMED) -> TableChecks:
    """Check the ads table, with the columns that a preset names.

    Faults: missing column, wrong dtype, empty table, null, negative id or time, time not in seconds, empty
    text where neither embedding nor semantic ID is given, embeddings of several lengths or not finite,
    negative code of a semantic ID, an audience that is none, unknown status, ad_id twice.
    """
    checks = table.checks()
    given = {name: rule for name in checks.schema if (rule := given_column(name)) is not None}
    numeric = {name: NUMERIC for name in named.numeric if name not in ADS_COLUMNS | given}
    modal = {n: MODALITY for n in checks.schema if n not in given and is_of_modality(n, named.modalities)}
    schema = dict(ADS_COLUMNS)
    has_other = bool(modal or given.keys() - {"audience"})
    if has_other:
        schema["text"] = replace(schema["text"], required=False)
    checks.columns(schema | given | numeric | modal)
    check_modalities(checks, named.modalities)
    checks.ids("ad_id")
    checks.seconds("created_at")
    if not has_other:
        checks.rows("text", bad=pl.col("text").str.strip_chars() == "", expected="non-empty text")
    checks.rows("status", bad=~pl.col("status").is_in(STATUSES), expected=one_of(STATUSES))
    for name, rule in given.items():
        _check_given(checks, name, rule)
    for name in numeric:
        checks.rows(name, bad=~pl.col(name).cast(pl.Float32).is_finite(), expected="a finite number or null")
    checks.unique(("ad_id",))
    return checks


def _check_given(checks: TableChecks, name: str, rule: Column) -> None:
    column = pl.col(name)
    if rule is AUDIENCE:
        bad = column.map_elements(lambda text: not _is_audience(text), return_dtype=pl.Boolean)
        checks.rows(name, bad=bad, expected="an audience (docs/audience.md) or null")
    elif rule.kind == "integer":
        checks.rows(name, bad=column < 0, expected="a code >= 0")
    elif isinstance(checks.schema[name], pl.List):
        length = column.list.len()
        checks.rows(name, bad=(length == 0) | (length != length.first()), expected="lists of one length > 0")
        bad = column.list.eval(~pl.element().is_finite().fill_null(False)).list.any()
        checks.rows(name, bad=bad, expected="finite numbers")
    else:
        checks.rows(name, bad=~column.is_finite(), expected="a finite number")


@functools.lru_cache(maxsize=1 << 16)
def _is_audience(text: str) -> bool:
    try:
        Audience.parse(text)
    except AudienceError:
        return False
    return True


def check_users(table: Unchecked, named: Named = NOTHING_NAMED) -> TableChecks:
    """Check the users table; all of its columns but user_id are profile columns.

    Faults: user_id missing, a dtype other than Int64 or String (user_id) or String (profile), empty table,
    null, negative or repeated user_id.
    """
    checks = table.checks()
    every = [name for name in checks.schema if name != "user_id"]
    profile = dict.fromkeys(every if named.profile is None else named.profile, PROFILE)
    checks.columns({"user_id": USER_ID, **profile})
    checks.ids("user_id")
    checks.unique(("user_id",))
    return checks


def check_events(table: Unchecked, named: Named = NOTHING_NAMED) -> TableChecks:
    """Check the events table, but for rows that come twice; see `Repeats`.

    Faults: missing column, wrong dtype, empty table, null, negative id, time or position, time not in
    seconds, unknown behavior or part, value that is negative, NaN or infinite in float32.
    """
    checks = table.checks()
    checks.columns(dict.fromkeys(named.request, CATEGORICAL) | EVENTS_COLUMNS)
    for column in ("user_id", "ad_id"):
        checks.ids(column)
    checks.seconds("timestamp")
    checks.rows("behavior", bad=~pl.col("behavior").is_in(list(BEHAVIORS)), expected=one_of(BEHAVIORS))
    # What a model learns is float32, where 1e300 is infinite.
    value = pl.col("value").cast(pl.Float32)
    checks.rows("value", bad=~value.is_finite() | (value < 0), expected="a finite value >= 0, in float32")
    bad = ~pl.col("position").is_between(0, 2**31, closed="left")
    checks.rows("position", bad=bad, expected="a position in [0, 2^31)")
    known = pl.col(SPLIT_COLUMN).is_in(PARTS)
    checks.rows(SPLIT_COLUMN, bad=~known.fill_null(False), expected=one_of(PARTS))
    return checks


def check_tables(
    ads: Unchecked | None,
    users: Unchecked | None,
    *,
    events: Unchecked | None,
    named: Named,
) -> list[TableError]:
    """All that is wrong with the tables, but for events that come twice.

    Args:
        ads: ads table; None for one that cannot be read, which others are not compared with.
        users: users table.
        events: events table, read in batches.
        named: columns that a preset names, which must be there.
    """
    found = []
    if ads is not None:
        found.append(check_ads(ads, named))
    if users is not None:
        found.append(check_users(users, named))
    if events is not None:
        found.append(check_events(events, named))
        for column, table, name in (("user_id", users, "users"), ("ad_id", ads, "ads")):
            if table is not None:
                _check_reference(found[-1], column, table=table, name=name)
    return [fault for checks in found for fault in checks.faults]


def _check_reference(events: TableChecks, column: str, *, table: Unchecked, name: str) -> None:
    """Every id of events must exist in the table that it is of."""
    dtype = table.frame.collect_schema().get(column)
    events.same_type(column, dtype, other=name)
    if dtype is not None and dtype == events.schema.get(column) and column not in table.unusable:
        ids = table.frame.select(column).collect()[column]
        known = pl.col(column).is_in(pl.lit(ids.implode()))
        events.rows(column, bad=~known, expected=f"an id of the {name} table")


def complete_ads(ads: pl.DataFrame, named: Named = NOTHING_NAMED) -> pl.DataFrame:
    """Columns of checked ads, defaults for those that are missing, in the order of their ids."""
    others = dict.fromkeys([*given_columns(ads.columns), *named.numeric])
    columns = _complete(ads.schema, ADS_COLUMNS, others)
    if named.modalities:
        columns.append(joined(ads.columns, named.modalities))
    return with_ids(ads.select(columns)).sort("ad_id")


def complete_users(users: pl.DataFrame, named: Named = NOTHING_NAMED) -> pl.DataFrame:
    """Checked users in the order of their ids, with the profile columns in theirs."""
    every = [name for name in users.columns if name != "user_id"]
    profile = every if named.profile is None else named.profile
    columns = (pl.col(name).fill_null(UNKNOWN) for name in profile)
    return with_ids(users.select("user_id", *columns)).sort("user_id")


def complete_events(events: pl.LazyFrame, named: Named = NOTHING_NAMED) -> pl.LazyFrame:
    """Columns of checked events, defaults for those that are missing, and the number of the row."""
    schema = events.collect_schema()
    rows = events if ROW in schema else events.with_row_index(ROW)
    return with_ids(rows.select(*_complete(schema, EVENTS_COLUMNS, named.request), ROW))


def _complete(schema: pl.Schema, rules: Mapping[str, Column], others: Iterable[str]) -> list[pl.Expr]:
    columns: list[pl.Expr] = []
    for name, rule in rules.items():
        if name in schema:
            columns.append(pl.col(name))
        elif rule.default is not None:
            columns.append(rule.default.alias(name))
    return columns + [pl.col(name) for name in others if name in schema and name not in rules]


def make_tables(
    ads: pl.DataFrame,
    users: pl.DataFrame,
    *,
    events: pl.DataFrame,
    stats: LoadStats,
    provenance: str,
    where: Sequence[str],
    named: Named = NOTHING_NAMED,
) -> Tables:
    """Check everything and assemble tables in memory.

    Args:
        ads: ads table.
        users: users table.
        events: events table.
        stats: rows read and dropped.
        provenance: sentence for results.
        where: names of the three tables in messages, in the order ads, users, events.
        named: columns that a preset names.

    Raises:
        TableError: any fault of `check_ads`, `check_users` and `check_events`, an event of an unknown user or
            ad, an event that comes twice, or two keys of one id; all faults of the tables in one report.
    """
    frames = (table.lazy() for table in (ads, users, events))
    of_ads, of_users, of_events = map(Unchecked, frames, where)
    faults = check_tables(of_ads, of_users, events=of_events, named=named)
    repeats = Repeats()
    if not {fault.column for fault in faults} & set(KEY):
        events = sort_events(complete_events(events.lazy(), named).collect())
        repeats.add(events)
    raise_faults(faults + repeats.faults(where[2]))
    keys = Keys.of(ads, users, where=(where[0], where[1]))
    # Sorted, so that row i of users is user i of the EventLog and of the encoded profiles, and so that the
    # same logs give the same files.
    return Tables(
        ads=complete_ads(ads, named),
        users=complete_users(users, named),
        events=events.drop(ROW),
        stats=stats,
        provenance=provenance,
        keys=keys,
    )
