"""EventLog and samples, against a plain double loop over the rows."""

import random
from collections import defaultdict

import numpy as np
import polars as pl
import pytest

from training.data.log import EventLog, TargetGroups, target_groups
from training.data.schema import LoadStats, Tables, make_tables
from training.data.split import TimeSplit

CODES = {"impression": 1, "click": 2, "conversion": 3}


def random_tables(seed: int, *, users: int = 12, events: int = 300, span: int = 60) -> Tables:
    """Random logs with many events in the same second; the last two users have none."""
    rng = random.Random(seed)
    keys = {
        (
            rng.randrange(users - 2) * 3 + 1,
            rng.randrange(20),
            rng.randrange(span) + 1,
            rng.choice(list(CODES)),
        )
        for _ in range(events)
    }
    rows = [(*key, round(rng.random(), 3), "random") for key in keys]
    rng.shuffle(rows)
    names = ["user_id", "ad_id", "timestamp", "behavior", "value", "provenance"]
    ads = pl.DataFrame(
        {
            "ad_id": list(range(20)),
            **{name: ["x"] * 20 for name in ("item_id", "account_id", "conversion_type", "text")},
            "created_at": [0] * 20,
            "status": ["active"] * 20,
        }
    )
    return make_tables(
        ads,
        pl.DataFrame({"user_id": [u * 3 + 1 for u in reversed(range(users))]}),
        events=pl.DataFrame(rows, schema=names, orient="row"),
        stats=LoadStats(len(rows)),
        provenance="random",
        where=("ads", "users", "events"),
    )


def reference_samples(
    tables: Tables, *, start: int, stop: int, targets: list[str], min_history: int
) -> list[tuple]:
    """The definition, row by row: user, time, history, events of the group."""
    by_user = defaultdict(list)
    for user, ad, time, behavior, value, _ in tables.events.rows():
        by_user[user].append((time, ad, CODES[behavior], behavior, value))
    samples = []
    for user in sorted(by_user):
        rows = sorted(by_user[user])
        for now in sorted({row[0] for row in rows}):
            history = [row for row in rows if row[0] < now]
            target = [row for row in rows if row[0] == now and row[3] in targets]
            if start <= now < stop and target and len(history) >= min_history:
                samples.append((user, now, history, [row for row in rows if row[0] == now]))
    return samples


def found_samples(log: EventLog, groups: TargetGroups) -> list[tuple]:
    """The same of what `target_groups` found."""

    def rows(events: range) -> list[tuple]:
        names = {code: name for name, code in CODES.items()}
        return [
            (
                int(log.timestamp[e]),
                int(log.ad_ids[e]),
                int(log.behavior[e]),
                names[int(log.behavior[e])],
                pytest.approx(float(log.value[e]), rel=1e-6),
            )
            for e in events
        ]

    return [
        (int(log.user_ids[u]), int(now), rows(range(log.user_ptr[u], begin)), rows(range(begin, end)))
        for u, begin, end, now in zip(groups.user_row, groups.begin, groups.end, groups.now, strict=True)
    ]


def test_arrays_are_sorted_and_cover_all_users() -> None:
    tables = random_tables(0)
    log = EventLog.from_tables(tables)
    assert log.user_ids.tolist() == tables.users["user_id"].to_list()
    assert log.user_ptr.shape == (13,)
    assert log.user_ptr[[0, -1]].tolist() == [0, tables.events.height]
    assert log.user_ptr[-3:].tolist() == [tables.events.height] * 3  # two users without events
    dtypes = [
        a.dtype.name for a in (log.user_ids, log.user_ptr, log.ad_ids, log.behavior, log.timestamp, log.value)
    ]
    assert dtypes == ["int64", "int64", "int64", "int8", "int64", "float32"]
    user_of_event = np.repeat(log.user_ids, np.diff(log.user_ptr))
    flat = list(zip(user_of_event, log.timestamp, log.ad_ids, log.behavior, strict=True))
    want = sorted((u, t, a, CODES[b]) for u, a, t, b, _, _ in tables.events.rows())
    assert flat == want


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("min_history", [0, 5])
@pytest.mark.parametrize("targets", [["conversion"], ["click", "impression"]])
def test_samples_equal_the_double_loop(seed: int, min_history: int, targets: list[str]) -> None:
    tables = random_tables(seed)
    log = EventLog.from_tables(tables)
    start, stop = (0, 1_000) if seed == 0 else (15, 45)
    groups = target_groups(log, start=start, stop=stop, target_behaviors=targets, min_history=min_history)
    want = reference_samples(tables, start=start, stop=stop, targets=targets, min_history=min_history)
    assert found_samples(log, groups) == want
    assert len(groups) == len(want) > 20


def test_nothing_leaks_over_the_split() -> None:
    tables = random_tables(5, events=2_000, span=7 * 604_800)
    log = EventLog.from_tables(tables)
    split = TimeSplit.by_weeks(
        int(log.timestamp.min()), int(log.timestamp.max()), validation_weeks=1, test_weeks=2
    )
    ranges = {
        "train": (0, split.train_end),
        "validation": (split.train_end, split.validation_end),
        "test": (split.validation_end, split.end),
    }
    seen = []
    for start, stop in ranges.values():
        groups = target_groups(log, start=start, stop=stop, target_behaviors=["conversion"])
        assert len(groups) > 50
        assert groups.now.min() >= start
        assert groups.now.max() < stop
        for user, now, history, _ in found_samples(log, groups):
            assert history
            assert all(time < now for time, *_ in history)
            seen.append((user, now))
    assert len(seen) == len(set(seen))
    every = target_groups(log, start=0, stop=split.end, target_behaviors=["conversion"])
    assert len(seen) == len(every)


def test_no_sample_is_legal() -> None:
    log = EventLog.from_tables(random_tables(1))
    groups = target_groups(log, start=500, stop=600, target_behaviors=["conversion"])
    assert len(groups) == 0
    empty = np.zeros(0, np.int64)
    nothing = EventLog(
        np.array([4]), np.array([0, 0]), empty, empty.astype(np.int8), empty, empty.astype(np.float32)
    )
    assert len(target_groups(nothing, start=0, stop=9, target_behaviors=["click"])) == 0


def test_bad_arguments() -> None:
    log = EventLog.from_tables(random_tables(1))
    for targets in (["buy"], [], "conversion"):
        with pytest.raises(ValueError, match="target_behaviors: expected a list of some of .*impression"):
            target_groups(log, start=0, stop=9, target_behaviors=targets)
    with pytest.raises(ValueError, match="start <= stop, got 1, 9, 0"):
        target_groups(log, start=9, stop=0, target_behaviors=["click"])
