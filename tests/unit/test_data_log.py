"""Exposures, requests and samples of a log, against plain loops over the rows."""

import random
from collections import defaultdict
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from training.data import log as module
from training.data.groups import TargetGroups, history, target_groups
from training.data.log import EventLog
from training.data.parts import Parts
from training.data.schema import LoadStats, Tables, make_tables
from training.data.split import PARTS, Split

CODES = {"impression": 1, "click": 2, "conversion": 3}


def random_tables(
    seed: int, *, users: int = 12, events: int = 300, span: int = 60, ids: int = 0, null: float = 0.0
) -> Tables:
    """Random logs with many events in the same second; the last two users have none.

    Behaviors come in no order. Each user has some of `ids` request ids, a share `null` of the events none.
    """
    rng = random.Random(seed)
    keys = {
        (
            rng.randrange(users - 2) * 3 + 1,
            rng.randrange(20 if not ids else 4),
            rng.randrange(span) + 1,
            rng.choice(list(CODES)),
            None if not ids or rng.random() < null else f"r{rng.randrange(ids)}",
        )
        for _ in range(events)
    }
    rows = [
        (*key[:4], round(rng.random(), 3), "random", key[4], rng.choice([None, 0, 1, 2]))
        for key in sorted(keys, key=str)
    ]
    rng.shuffle(rows)
    names = ["user_id", "ad_id", "timestamp", "behavior", "value", "provenance", "request_id", "position"]
    table = pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)
    if not ids:
        table = table.drop("request_id", "position")
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
        events=table,
        stats=LoadStats(len(rows)),
        provenance="random",
        where=("ads", "users", "events"),
    )


def plain_exposures(tables: Tables, window: int) -> list[dict]:
    """The definition: rows in the order of time, each joining an exposure that is there or opening one."""
    rows = [
        (
            row["user_id"],
            row["timestamp"],
            row["ad_id"],
            CODES[row["behavior"]],
            row.get("request_id") or "",
            i,
        )
        for i, row in enumerate(tables.events.to_dicts())
    ]
    rows.sort()
    exposures: list[dict] = []
    for user, time, ad, behavior, request, i in rows:
        own = [e for e in exposures if (e["user"], e["ad"]) == (user, ad)]
        if request:
            joined = [e for e in own if e["id"] == request]
        elif not window:
            joined = []
        else:
            # That of the latest event with an id, else the latest one without an id that began in time.
            with_id = max(((at, n) for e in own if e["id"] for at, n in e["id_rows"]), default=(-(10**9), -1))
            joined = [e for e in own if e["id"] and with_id in e["id_rows"] and time - with_id[0] <= window]
            joined = joined or [e for e in own if not e["id"] and time - e["rows"][0][0] <= window][-1:]
        if not joined:
            exposures.append({"user": user, "ad": ad, "id": request, "rows": [], "id_rows": []})
            joined = exposures[-1:]
        joined[0]["rows"].append((time, behavior, i))
        if request:
            joined[0]["id_rows"].append(
                (time, len(rows) + rows.index((user, time, ad, behavior, request, i)))
            )
    return exposures


def plain_requests(tables: Tables, window: int) -> list[dict]:
    """Exposures that were shown at once, with the time of the first row of the lowest behavior."""

    def time_of(rows: list) -> int:
        return min(rows, key=lambda row: (row[1], row[0]))[0]

    found = defaultdict(list)
    for exposure in plain_exposures(tables, window):
        key = ("id", exposure["id"]) if exposure["id"] else ("time", time_of(exposure["rows"]))
        found[exposure["user"], key].append(exposure)
    return [
        {
            "user": user,
            "now": time_of([row for e in exposures for row in e["rows"]]),
            "exposures": exposures,
            "rows": {row[2] for e in exposures for row in e["rows"]},
        }
        for (user, _), exposures in found.items()
    ]


def plain_samples(
    tables: Tables, *, window: int, start: int, stop: int, targets: list[str], min_history: int
) -> list[tuple]:
    """User, time, events before it that are not its own, and of each target ad, behavior and value."""
    codes, events, samples = [CODES[name] for name in targets], tables.events.to_dicts(), []
    for request in plain_requests(tables, window):
        past = [
            i
            for i, row in enumerate(events)
            if row["user_id"] == request["user"]
            and row["timestamp"] < request["now"]
            and i not in request["rows"]
        ]
        wanted = []
        for exposure in request["exposures"]:
            counted = [row for row in exposure["rows"] if row[1] in codes and row[0] < stop]
            if counted:
                best = max(behavior for _, behavior, _ in counted)
                outcome = [i for _, behavior, i in counted if behavior == best][-1]  # the last one in time
                wanted.append((exposure["ad"], best, events[outcome]["value"]))
        if start <= request["now"] < stop and wanted and len(past) >= min_history:
            samples.append((request["user"], request["now"], sorted(past), sorted(wanted)))
    return sorted(samples)


def table_rows(tables: Tables) -> np.ndarray:
    """Row of the table of each event of the log."""
    order = [
        (r["user_id"], r["timestamp"], r["ad_id"], CODES[r["behavior"]]) for r in tables.events.to_dicts()
    ]
    ids = (
        tables.events["request_id"].to_list()
        if "request_id" in tables.events.columns
        else [None] * len(order)
    )
    keyed = [(*key, request is not None, request or "") for key, request in zip(order, ids, strict=True)]
    return np.array(sorted(range(len(order)), key=keyed.__getitem__))


def found_samples(tables: Tables, log: EventLog, groups: TargetGroups) -> list[tuple]:
    """The same of what `target_groups` found."""
    rows, samples = table_rows(tables), []
    for i, request in enumerate(groups.request):
        events = groups.target_events[groups.target_ptr[i] : groups.target_ptr[i + 1]]
        assert (np.diff(events) > 0).all()
        wanted = [
            (int(log.ad_ids[e]), int(log.behavior[e]), tables.events["value"][int(rows[e])]) for e in events
        ]
        past = history(log, int(request))
        assert (np.diff(log.timestamp[past]) >= 0).all()
        samples.append(
            (int(log.user_ids[groups.user_row[i]]), int(groups.now[i]), sorted(rows[past]), sorted(wanted))
        )
    order = [sample[:2] for sample in samples]
    assert order == sorted(order)
    return sorted(samples)


def groups_between(log: EventLog, start: int, stop: int, **settings) -> TargetGroups:
    """Requests in [start, stop), with what came before `stop`."""
    now = log.times()
    return target_groups(log, requests=(now >= start) & (now < stop), events=log.timestamp < stop, **settings)


def test_arrays_are_sorted_and_cover_all_users() -> None:
    tables = random_tables(0)
    log = EventLog.from_tables(tables, attribution_window_s=0)
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
    want = sorted(
        (r["user_id"], r["timestamp"], r["ad_id"], CODES[r["behavior"]]) for r in tables.events.to_dicts()
    )
    assert flat == want
    assert (log.position == -1).all()


LOGS = {"no ids": {}, "ids": {"ids": 6}, "some ids": {"ids": 6, "null": 0.5}}


@pytest.mark.parametrize("kind", LOGS)
@pytest.mark.parametrize("window", [0, 1, 7, 1000])
@pytest.mark.parametrize("targets", [["conversion"], ["click", "impression"]])
def test_samples_equal_the_loops(kind: str, window: int, targets: list[str]) -> None:
    for seed, (start, stop), min_history in ((0, (0, 1_000), 0), (1, (15, 45), 5)):
        tables = random_tables(seed, **LOGS[kind])
        log = EventLog.from_tables(tables, attribution_window_s=window)
        groups = groups_between(log, start, stop, target_behaviors=targets, min_history=min_history)
        rules = {
            "window": window,
            "start": start,
            "stop": stop,
            "targets": targets,
            "min_history": min_history,
        }
        want = plain_samples(tables, **rules)
        assert found_samples(tables, log, groups) == want
        assert len(groups) == len(want) > 5


@pytest.mark.parametrize("kind", LOGS)
def test_all_exposures_equal_the_loops(kind: str) -> None:
    tables = random_tables(2, **LOGS[kind])
    log = EventLog.from_tables(tables, attribution_window_s=9)
    found = defaultdict(set)
    for event, row in enumerate(table_rows(tables)):
        found[int(log.exposures.exposure[event])].add(int(row))
    want = plain_exposures(tables, 9)
    assert sorted(map(sorted, found.values())) == sorted(sorted(row[2] for row in e["rows"]) for e in want)
    assert len(want) < tables.events.height
    if "position" in tables.events.columns:  # of each exposure, the largest that any event of it says
        said = tables.events["position"].fill_null(-1).to_list()
        place = {row[2]: max(said[r[2]] for r in e["rows"]) for e in want for row in e["rows"]}
        assert log.position.tolist() == [place[int(row)] for row in table_rows(tables)]


def test_ids_of_any_size() -> None:
    tables = random_tables(4, ids=6, null=0.5)
    ad = pl.col("ad_id") * 2**58
    large = replace(tables, ads=tables.ads.with_columns(ad), events=tables.events.with_columns(ad))
    found = EventLog.from_tables(large, attribution_window_s=9).exposures
    for name, column in vars(EventLog.from_tables(tables, attribution_window_s=9).exposures).items():
        np.testing.assert_array_equal(getattr(found, name), column)


@pytest.mark.parametrize("rows", [1, 40, 150])
def test_blocks_of_users_do_not_change_what_is_found(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = random_tables(4, ids=6, null=0.5)
    whole = EventLog.from_tables(tables, attribution_window_s=9).exposures
    monkeypatch.setattr(module, "_BLOCK", rows)
    blocks = EventLog.from_tables(tables, attribution_window_s=9).exposures
    for name, column in vars(whole).items():
        np.testing.assert_array_equal(getattr(blocks, name), column)
        assert getattr(blocks, name).dtype == np.int32


def one_user(*rows: tuple, split: list[str] | None = None) -> Tables:
    """Events (ad, time, behavior, value, request id) of user 1; every id None leaves the column out."""
    names = ["ad_id", "timestamp", "behavior", "value", "request_id"]
    table = pl.DataFrame(list(rows), schema=names, orient="row", infer_schema_length=None)
    table = table.with_columns(user_id=pl.lit(1, pl.Int64), provenance=pl.lit("p"))
    if table["request_id"].null_count() == len(rows):
        table = table.drop("request_id")
    if split:
        table = table.with_columns(pl.Series("split", split))
    base = random_tables(0)
    return make_tables(
        base.ads, base.users, events=table, stats=LoadStats(1), provenance="p", where=("a", "u", "e")
    )


def samples_of(tables: Tables, window: int, targets: list[str]) -> list[tuple]:
    log = EventLog.from_tables(tables, attribution_window_s=window)
    groups = groups_between(log, 0, 10**6, target_behaviors=targets, min_history=0)
    return [
        (
            int(groups.now[i]),
            [(int(log.ad_ids[e]), int(log.timestamp[e])) for e in history(log, int(request))],
            [
                (int(log.ad_ids[e]), int(log.behavior[e]), float(log.value[e]))
                for e in groups.target_events[groups.target_ptr[i] : groups.target_ptr[i + 1]]
            ],
        )
        for i, request in enumerate(groups.request)
    ]


FUNNEL = [(7, 100, "impression", 0.0, None), (7, 102, "click", 1.0, None), (7, 107, "conversion", 5.0, None)]


def test_a_funnel_within_the_window_is_one_sample_without_its_own_rows() -> None:
    before = (3, 50, "conversion", 2.0, None)
    assert samples_of(one_user(before, *FUNNEL), 1800, ["conversion"]) == [
        (50, [], [(3, 3, 2.0)]),
        (100, [(3, 50)], [(7, 3, 5.0)]),
    ]
    # A click that came to a conversion is a click all the same, and no impression without a click.
    assert samples_of(one_user(*FUNNEL), 1800, ["click"]) == [(100, [], [(7, 2, 1.0)])]
    # Without the window the impression and the click are in the history of their own conversion.
    assert samples_of(one_user(*FUNNEL), 0, ["conversion"]) == [(107, [(7, 100), (7, 102)], [(7, 3, 5.0)])]


def test_a_late_conversion_is_its_requests_and_does_not_move_it() -> None:
    a_day_later = [(7, 100, "impression", 0.0, "a"), (8, 100, "impression", 0.0, "a")]
    a_day_later += [(9, 5_000, "impression", 0.0, "b"), (7, 86_500, "conversion", 5.0, "a")]
    assert samples_of(one_user(*a_day_later), 60, ["conversion"]) == [(100, [], [(7, 3, 5.0)])]
    # What is known at 5,000 is that ads 7 and 8 were shown.
    assert samples_of(one_user(*a_day_later), 60, ["impression"])[1] == (
        5_000,
        [(7, 100), (8, 100)],
        [(9, 1, 0.0)],
    )


@pytest.mark.parametrize("request_id", ["a", None])
@pytest.mark.parametrize("conversion_at", [99, 95, 40])
def test_a_wrong_clock_puts_no_row_of_a_target_into_its_history(request_id, conversion_at) -> None:
    rows = [(3, 30, "conversion", 1.0, "z" if request_id else None), (7, 100, "impression", 0.0, request_id)]
    rows += [(7, 101, "click", 0.0, request_id), (7, conversion_at, "conversion", 5.0, request_id)]
    assert samples_of(one_user(*rows), 1800, ["conversion"])[-1] == (100, [(3, 30)], [(7, 3, 5.0)])


def test_a_conversion_without_id_joins_the_exposure_with_one() -> None:
    rows = [(7, 100, "impression", 0.0, "a"), (7, 102, "click", 0.0, "a"), (7, 107, "conversion", 5.0, None)]
    assert samples_of(one_user(*rows), 1800, ["conversion"]) == [(100, [], [(7, 3, 5.0)])]
    assert samples_of(one_user(*rows), 4, ["conversion"]) == [(107, [(7, 100), (7, 102)], [(7, 3, 5.0)])]


def test_the_window_begins_with_the_first_row_and_the_last_conversion_counts() -> None:
    rows = [(7, 100, "impression", 0.0, None), (7, 110, "conversion", 3.0, None)]
    rows += [(7, 120, "conversion", 4.0, None), (7, 121, "impression", 0.0, None)]
    assert samples_of(one_user(*rows), 20, ["conversion", "impression"]) == [
        (100, [], [(7, 3, 4.0)]),
        (121, [(7, 100), (7, 110), (7, 120)], [(7, 1, 0.0)]),
    ]


def test_nothing_leaks_over_the_split() -> None:
    tables = random_tables(5, events=2_000, span=7 * 604_800)
    log = EventLog.from_tables(tables, attribution_window_s=1800)
    split = Split.by_length(
        int(log.timestamp.min()), int(log.timestamp.max()), unit="weeks", validation=1, test=2
    )
    parts, seen = Parts.of(split, log), []
    ranges = (
        (0, split.train_end),
        (split.train_end, split.validation_end),
        (split.validation_end, split.end),
    )
    for part, (start, stop) in enumerate(ranges):
        groups = parts.groups(log, part, target_behaviors=["conversion"], min_history=1)
        assert len(groups) > 50, PARTS[part]
        assert groups.now.min() >= start
        assert groups.now.max() < stop
        assert log.timestamp[groups.target_events].max() < stop
        for i, request in enumerate(groups.request):
            past = history(log, int(request))
            assert len(past) >= 1
            assert (log.timestamp[past] < groups.now[i]).all()
            seen.append(int(request))
    assert len(seen) == len(set(seen))


def test_newest_history() -> None:
    tables = random_tables(3, ids=5, null=0.3, events=900)
    log = EventLog.from_tables(tables, attribution_window_s=9)
    assert (log.exposures.own_before > 0).any()
    for request in range(len(log.exposures.anchor)):
        every = history(log, request)
        for newest in (1, 5, 1000):
            assert history(log, request, newest=newest).tolist() == every[-newest:].tolist()


def test_no_sample_is_legal() -> None:
    log = EventLog.from_tables(random_tables(1), attribution_window_s=0)
    assert len(groups_between(log, 500, 600, target_behaviors=["conversion"])) == 0
    tables = random_tables(1)
    nothing = Tables(tables.ads, tables.users, tables.events.clear(), tables.stats, provenance="")
    empty = EventLog.from_tables(nothing, attribution_window_s=5)
    assert len(groups_between(empty, 0, 9, target_behaviors=["click"])) == 0


def test_bad_arguments() -> None:
    log = EventLog.from_tables(random_tables(1), attribution_window_s=0)
    for targets in (["buy"], [], "conversion"):
        with pytest.raises(ValueError, match="target_behaviors: expected a list of some of .*impression"):
            groups_between(log, 0, 9, target_behaviors=targets)
    with pytest.raises(ValueError, match="min_history >= 0, got -1"):
        groups_between(log, 0, 9, target_behaviors=["click"], min_history=-1)


def test_targets_of_the_following_requests_are_the_users_own() -> None:
    log = EventLog.from_tables(random_tables(2, users=9, events=200), attribution_window_s=0)
    groups = groups_between(log, 5, 1000, target_behaviors=["click", "conversion"])
    assert len(groups) > 50
    users, ptr = groups.user_row, groups.target_ptr
    for count in (1, 3, 1000):
        more = groups.with_following(count)
        assert np.array_equal(more.request, groups.request)
        for i in range(len(groups)):
            own = [j for j in range(i, min(i + count + 1, len(groups))) if users[j] == users[i]]
            expected = [event for j in own for event in groups.target_events[ptr[j] : ptr[j + 1]].tolist()]
            assert more.target_events[more.target_ptr[i] : more.target_ptr[i + 1]].tolist() == expected
