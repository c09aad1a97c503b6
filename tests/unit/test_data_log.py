"""EventLog and samples, against a plain double loop over the rows."""

import random
from collections import defaultdict

import numpy as np
import polars as pl
import pytest

from training.data.log import EventLog, iter_samples, target_groups
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
    tables: Tables, start: int, stop: int, targets: list[str], min_history: int, max_history: int
) -> list[dict]:
    """The definition, row by row."""
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
                history = history[-max_history:]
                samples.append(
                    {
                        "user_id": user,
                        "now": now,
                        "history_ad_ids": [row[1] for row in history],
                        "history_behaviors": [row[2] for row in history],
                        "history_timestamps": [row[0] for row in history],
                        "target_ad_ids": [row[1] for row in target],
                        "target_values": [row[4] for row in target],
                    }
                )
    return samples


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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("min_history", [0, 1, 5])
@pytest.mark.parametrize("targets", [["conversion"], ["click", "conversion"], ["impression"]])
def test_samples_equal_the_double_loop(seed: int, min_history: int, targets: list[str]) -> None:
    tables = random_tables(seed)
    log = EventLog.from_tables(tables)
    start, stop = (0, 1_000) if seed == 0 else (15, 45)
    groups = target_groups(log, start=start, stop=stop, target_behaviors=targets, min_history=min_history)
    samples = list(iter_samples(log, groups, max_history=8))
    want = reference_samples(tables, start, stop, targets, min_history, 8)
    assert len(groups) == len(samples) == len(want) > 20
    for sample, expected in zip(samples, want, strict=True):
        assert sample.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(sample[key], value, rtol=1e-6, err_msg=key)


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
        for sample in iter_samples(log, groups, max_history=16):
            assert sample["history_timestamps"].size >= 1
            assert (sample["history_timestamps"] < sample["now"]).all()
            seen.append((sample["user_id"], sample["now"]))
    assert len(seen) == len(set(seen))
    every = target_groups(log, start=0, stop=split.end, target_behaviors=["conversion"])
    assert len(seen) == len(every)


def test_no_sample_is_legal() -> None:
    log = EventLog.from_tables(random_tables(1))
    groups = target_groups(log, start=500, stop=600, target_behaviors=["conversion"])
    assert len(groups) == 0
    assert list(iter_samples(log, groups, max_history=4)) == []
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
    groups = target_groups(log, start=0, stop=9, target_behaviors=["click"])
    with pytest.raises(ValueError, match="max_history: expected >= 1, got 0"):
        next(iter_samples(log, groups, max_history=0))
