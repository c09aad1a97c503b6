"""Ways to cut a log, against plain loops over its requests."""

import numpy as np
import polars as pl
import pytest

from tests.unit.test_data_log import CODES, one_user, random_tables
from training.data.groups import target_groups
from training.data.log import EventLog
from training.data.parts import Parts, cut, parts_of, with_parts
from training.data.schema import Tables
from training.data.split import PARTS
from training.preset.data import SplitConfig

DAY = 86_400
TARGETS = ["conversion"]


def cut_log(log: EventLog, **config):
    settings, span = SplitConfig(**config), (int(log.timestamp.min()), int(log.timestamp.max()))
    split = cut(settings, [log], span=span, target_behaviors=TARGETS)
    return split, parts_of(settings, split, log=log, target_behaviors=TARGETS)


def long_log(seed: int = 0) -> tuple[Tables, EventLog]:
    tables = random_tables(seed, events=900, span=40 * DAY, ids=40)
    return tables, EventLog.from_tables(tables, attribution_window_s=1800)


def requests_with_targets(log: EventLog) -> list[tuple[int, int, int]]:
    """User row, time and number of every request with a conversion, by a loop."""
    conversions = {int(r) for r, b in zip(log.exposures.request, log.behavior, strict=True) if b == 3}
    return sorted((int(log.exposures.user_row[r]), int(log.times()[r]), r) for r in conversions)


@pytest.mark.parametrize(("by", "unit"), [("weeks", 7 * DAY), ("days", DAY)])
def test_by_weeks_and_days(by, unit):
    _, log = long_log()
    split, parts = cut_log(log, by=by, validation=1, test=2)
    end = int(log.timestamp.max()) + 1
    for times, found in ((log.timestamp, parts.event), (log.times(), parts.request)):
        want = [
            "test" if t >= end - 2 * unit else "validation" if t >= end - 3 * unit else "train" for t in times
        ]
        assert [PARTS[part] for part in found] == want
    assert (split.by, split.end) == ("time", end)


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.1), (0.3, 0.05), (0.001, 0.5)])
def test_by_fractions_of_the_requests(validation, test):
    _, log = long_log()
    split, parts = cut_log(log, by="fractions", validation=validation, test=test)
    asked = sorted(time for _, time, _ in requests_with_targets(log))
    in_test = sum(time >= split.validation_end for time in asked)
    in_validation = sum(split.train_end <= time < split.validation_end for time in asked)
    assert in_test == int(np.ceil(test * len(asked)))
    assert in_test + in_validation == in_test + int(np.ceil(validation * len(asked)))
    assert parts.request.tolist() == [
        (t >= split.train_end) + (t >= split.validation_end) for t in log.times().tolist()
    ]


def test_fractions_keep_requests_of_one_second_together():
    log = EventLog.from_tables(
        one_user(*[(ad, time, "conversion", 1.0, None) for time in (1, 5, 9) for ad in range(4)]),
        attribution_window_s=0,
    )
    split, _ = cut_log(log, by="fractions", validation=0.2, test=0.2)
    assert (split.train_end, split.validation_end, split.end) == (5, 9, 10)
    short = EventLog.from_tables(one_user((1, 5, "conversion", 1.0, None)), attribution_window_s=0)
    with pytest.raises(
        ValueError, match=r"enough different times .* got 1 times of 1 requests; see data.split"
    ):
        cut_log(short, by="fractions")


@pytest.mark.parametrize(("validation", "test"), [(1, 1), (3, 2)])
def test_by_the_last_requests_of_each_user(validation, test):
    tables, log = long_log(1)
    _, parts = cut_log(log, by="last_events", validation=validation, test=test)
    by_user: dict[int, list[int]] = {}
    for user, _, request in requests_with_targets(log):
        by_user.setdefault(user, []).append(request)
    order = {r: i for i, r in enumerate(sorted(range(len(log.times())), key=lambda r: (log.times()[r], r)))}
    want = []
    for request in range(len(log.times())):
        own = by_user.get(int(log.exposures.user_row[request]), [])
        part = 0
        if len(own) > validation + test:
            part += order[request] >= order[own[-test]]
            part += order[request] >= order[own[-test - validation]]
        want.append(part)
    assert parts.request.tolist() == want
    assert parts.event.tolist() == [want[r] for r in log.exposures.request]
    assert len(set(want)) == 3
    for part in (1, 2):
        groups = parts.groups(log, part, target_behaviors=TARGETS, min_history=0)
        sizes = np.unique(groups.user_row, return_counts=True)[1]
        assert set(sizes.tolist()) == {(0, validation, test)[part]}

    # Kept as a column: read again, the parts are the same.
    kept = Tables(tables.ads, tables.users, with_parts(tables.events, parts), tables.stats, provenance="")
    again = EventLog.from_tables(kept, attribution_window_s=1800)
    split, read = cut_log(again, by="column")
    assert read.event.tolist() == parts.event.tolist()
    assert Parts.of(split, again).request.tolist() == parts.request.tolist()
    assert split.train_end == max(t for t, p in zip(log.times(), want, strict=True) if p == 0) + 1


def test_a_user_with_few_requests_stays_in_training():
    rows = [(ad, ad * 100, "conversion", 1.0, None) for ad in range(1, 4)]
    log = EventLog.from_tables(one_user(*rows), attribution_window_s=0)
    assert cut_log(log, by="last_events")[1].request.tolist() == [0, 1, 2]
    assert cut_log(log, by="last_events", test=2)[1].request.tolist() == [0, 0, 0]


def test_by_a_column_a_late_outcome_is_not_known_in_an_earlier_part():
    rows = [(7, 100, "impression", 0.0, "a"), (8, 100, "impression", 0.0, "a"), (8, 110, "click", 0.0, "a")]
    rows += [(7, 5_000, "click", 1.0, "a"), (9, 5_000, "impression", 0.0, "b")]
    tables = one_user(*rows, split=["train", "train", "train", "test", "test"])
    log = EventLog.from_tables(tables, attribution_window_s=0)
    split, parts = cut_log(log, by="column")
    assert (split.by, split.train_end, split.end) == ("column", 101, 5_001)
    assert parts.request.tolist() == [0, 2]
    groups = parts.groups(log, 0, target_behaviors=["click"], min_history=0)
    assert log.ad_ids[groups.target_events].tolist() == [8]
    every = target_groups(
        log, requests=parts.request == 0, events=parts.event >= 0, target_behaviors=["click"], min_history=0
    )
    assert sorted(log.ad_ids[every.target_events].tolist()) == [7, 8]


def test_a_column_that_is_missing_or_cuts_through_a_request():
    rows = [(ad, 100 + 50 * (ad // 3), "conversion", 1.0, None) for ad in range(6)]
    log = EventLog.from_tables(one_user(*rows), attribution_window_s=0)
    with pytest.raises(ValueError, match="expected events with the column 'split', got none"):
        cut_log(log, by="column")
    tables = one_user(*rows, split=["train", "test", "train", "validation", "test", "test"])
    log = EventLog.from_tables(tables, attribution_window_s=0)
    with pytest.raises(
        ValueError, match=r"one part for all .*, got train and test for user 1 at 100 \(and 1 more such req"
    ):
        cut_log(log, by="column")


def test_names_of_the_parts_are_in_the_order_of_the_table():
    tables, log = long_log(3)
    split, parts = cut_log(log, by="days", validation=5, test=5)
    named = with_parts(tables.events, parts)
    part = pl.col("split").replace_strict({name: i for i, name in enumerate(PARTS)}, return_dtype=pl.Int64)
    want = (pl.col("timestamp") >= split.train_end).cast(pl.Int64) + (
        pl.col("timestamp") >= split.validation_end
    )
    assert named.select((part == want).all()).item()
    assert named.drop("split").equals(tables.events)
    assert set(CODES) == set(named["behavior"].unique())
