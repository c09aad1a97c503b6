"""Features of candidates against plain loops over the raw table, and what they must not know."""

import hashlib
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from serving.ranking.features import NUMBERS, VERSION
from tests.tiny_log import DAY, open_run, write_run
from training.data.prepared import load_prepared
from training.data.samples import RequestDataset
from training.reward.catalogue import Catalogue, CatalogueError
from training.reward.requests import RequestFeatures

ALL_ADS = np.arange(60)
CONVERSIONS = ("conversion",)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def dataset(run):
    return open_run(run)[2]


@pytest.fixture(scope="module")
def ads(run):
    return pl.read_parquet(run[1] / "data" / "ads.parquet")


@pytest.fixture(scope="module")
def events(run):
    return pl.read_parquet(run[1] / "data" / "events.parquet").sort("timestamp")


def features_of(dataset, ads, **options):
    made = {"target_behaviors": CONVERSIONS, "weeks": 2} | options
    return RequestFeatures(dataset, Catalogue.of(dataset, ads), **made)


def groups_of(dataset, part="train"):
    return dataset.groups(part, target_behaviors=CONVERSIONS, min_history=3)


def column(found, name):
    return found.numbers[:, NUMBERS.index(name)]


def keys_of(dataset, ads):
    """Of each ad what it shares with others, by the name of the key."""
    keys = {}
    for ad, item, text, account in ads.select("ad_id", "item_id", "text", "account_id").rows():
        sid = dataset.ad_sids[np.flatnonzero(dataset.ad_ids == ad)[0]].tolist()
        keys[ad] = {"ad": ad, "item": item, "text": text, "account": account}
        keys[ad] |= {"prefix_1": sid[0], "prefix_2": tuple(sid[:2])}
    return keys


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_what_the_history_says_is_counted_by_hand(dataset, ads, events, part):
    features, groups, keys = features_of(dataset, ads), groups_of(dataset, part), keys_of(dataset, ads)
    for row in range(0, len(groups), 5):
        found = features.of(groups, row, ALL_ADS)
        user, now = int(dataset.log.user_ids[groups.user_row[row]]), int(groups.now[row])
        past = [
            r for r in events.filter(pl.col("user_id") == user).iter_rows(named=True) if r["timestamp"] < now
        ]
        past = past[-dataset.spec.max_history :]
        had = [r for r in past if r["behavior"] == "conversion"]
        visits = sorted({r["timestamp"] for r in had})
        assert column(found, "visits")[0] == pytest.approx(math.log1p(len(visits)))
        assert column(found, "visit_days")[0] == pytest.approx(math.log1p((now - visits[-1]) / DAY))
        for place, ad in enumerate(ALL_ADS):
            shown = [r for r in past if r["ad_id"] == ad]
            assert column(found, "shown")[place] == pytest.approx(math.log1p(len(shown)))
            for key in ("ad", "text", "account", "prefix_1", "prefix_2"):
                times = [r["timestamp"] for r in had if keys[r["ad_id"]][key] == keys[ad][key]]
                recent = sum(now - t <= 28 * DAY for t in times)
                days = (now - times[-1]) / DAY if times else 3650
                assert column(found, f"count.{key}")[place] == pytest.approx(math.log1p(len(times)))
                assert column(found, f"share.{key}")[place] == pytest.approx(len(times) / len(had))
                assert column(found, f"recent.{key}")[place] == pytest.approx(math.log1p(recent))
                assert column(found, f"days.{key}")[place] == pytest.approx(math.log1p(days), rel=1e-5)
                if len(times) > 1:
                    gap = (times[-1] - times[0]) / DAY / (len(times) - 1)
                    assert column(found, f"gap.{key}")[place] == pytest.approx(math.log1p(gap), abs=1e-5)
        assert np.isfinite(found.numbers).all()


def test_statistics_of_ads_are_counted_by_hand(dataset, ads, events):
    features, keys = features_of(dataset, ads), keys_of(dataset, ads)
    end = dataset.split.train_end
    for now, expected_end in ((end - 1, end - 14 * DAY), (end - 14 * DAY - 1, end - 28 * DAY), (end, end)):
        statistics = features.statistics(now)
        past = [
            r
            for r in events.iter_rows(named=True)
            if r["timestamp"] < expected_end and r["behavior"] == "conversion"
        ]
        total = len(past)
        recent = [r for r in past if r["timestamp"] >= expected_end - 28 * DAY]
        for row, ad in enumerate(dataset.ad_ids.tolist()):
            codes = features.codes[row : row + 1]
            for k, key in enumerate(("ad", "item", "text", "account", "prefix_1", "prefix_2")):
                same = sum(keys[r["ad_id"]][key] == keys[ad][key] for r in past)
                same_recently = sum(keys[r["ad_id"]][key] == keys[ad][key] for r in recent)
                share = float(statistics.of_key("share", k, codes[:, k])[0])
                share_recent = float(statistics.of_key("recent", k, codes[:, k])[0])
                assert share == pytest.approx(math.log1p(1e6 * same / total), rel=1e-5)
                assert share_recent == pytest.approx(math.log1p(1e6 * same_recently / len(recent)), rel=1e-5)
            mean = sum(r["value"] for r in past) / total
            for key in ("prefix_1", "prefix_2", "text", "ad"):
                values = [r["value"] for r in past if keys[r["ad_id"]][key] == keys[ad][key]]
                mean = (sum(values) + 5 * mean) / (len(values) + 5)
            assert float(statistics.of_ad("value", codes)[0]) == pytest.approx(mean, rel=1e-5)
            mine = [(r["user_id"], r["timestamp"]) for r in past if r["ad_id"] == ad]
            buyers = len({user for user, _ in mine})
            if len(mine) > 20:  # then the prior moves it by little
                assert float(statistics.of_ad("again", codes)[0]) == pytest.approx(
                    len(mine) / buyers, rel=0.5
                )


def test_features_know_nothing_of_the_request_itself_and_of_what_comes_later(run, ads):
    """Whatever a user does in and after a request, its features stay."""
    _, spec, dataset = open_run(run)
    groups = groups_of(dataset)
    prepared = load_prepared(run[1] / "data")
    features = features_of(dataset, ads)
    for row in range(0, len(groups), 11):
        now = int(groups.now[row])
        tables = prepared.tables
        later = pl.col("timestamp") >= now
        changed = tables.events.with_columns(
            value=pl.when(later).then(99.0).otherwise(pl.col("value")),
            ad_id=pl.when(later).then((pl.col("ad_id") + 7) % 60).otherwise(pl.col("ad_id")),
        ).sort("user_id", "timestamp", "ad_id", "behavior")
        log = type(prepared.log).from_tables(replace(tables, events=changed), attribution_window_s=0)
        other = replace(
            prepared,
            tables=replace(tables, events=changed),
            log=log,
            parts=type(prepared.parts).of(prepared.split, log),
        )
        sids = pl.read_parquet(run[1] / "tokenizer" / "sids.parquet")
        less = RequestDataset(other, sids, spec=spec.features, profile=prepared.profile)
        its_groups = groups_of(less)
        same = np.flatnonzero((its_groups.now == now) & (its_groups.user_row == groups.user_row[row]))
        found = features_of(less, ads).of(its_groups, int(same[0]), ALL_ADS)
        expected = features.of(groups, row, ALL_ADS)
        np.testing.assert_array_equal(found.numbers, expected.numbers)
        np.testing.assert_array_equal(found.value, expected.value)


def test_a_user_without_history_and_ads_that_nobody_knows(dataset, ads):
    features = features_of(dataset, ads)
    groups = dataset.groups("train", target_behaviors=CONVERSIONS, min_history=0)
    first = int(np.flatnonzero(groups.history == 0)[0])
    found = features.of(groups, first, np.array([3, -1, 10_000]))
    assert np.isfinite(found.numbers).all()
    assert (column(found, "count.ad") == 0).all()
    np.testing.assert_array_equal(found.numbers[1], found.numbers[2])
    assert found.value[1] > 0
    assert features.of(groups, first, np.zeros(0, np.int64)).numbers.shape == (0, len(NUMBERS))


def test_an_ad_that_came_since_has_its_history_and_the_figures_of_its_prefix(dataset, ads):
    whole = Catalogue.of(dataset, ads)
    groups = groups_of(dataset, "test")
    row, event = next(
        (row, event)
        for row in range(len(groups))
        for event in dataset.history(groups, row)
        if dataset.log.behavior[event] == 3
        and (whole.codes[:, -1] == whole.codes[dataset.event_ad[event], -1]).sum() > 1
    )
    new = int(dataset.log.ad_ids[event])
    kept = whole.ad_ids != new
    older = Catalogue(whole.ad_ids[kept], whole.sids[kept], whole.codes[kept])
    older.codes[:, 0] = np.arange(kept.sum())
    features = RequestFeatures(dataset, older, target_behaviors=CONVERSIONS, weeks=2)
    found = features.of(groups, row, np.array([new]))
    assert column(found, "count.ad")[0] > 0
    assert column(found, "count.prefix_2")[0] >= column(found, "count.ad")[0]
    assert column(found, "popular.ad")[0] == 0
    prefix = features.codes[dataset.ad_ids == new][0, -1]
    assert found.value[0] == features.newest.arrays["value.prefix_2"][prefix]


def test_another_catalogue_is_refused(dataset, ads):
    whole = Catalogue.of(dataset, ads)
    other = whole.sids.copy()
    other[7, 2] += 1
    with pytest.raises(CatalogueError, match=r"got others of 1 of 60 ads; first ad_id 7: expected \["):
        Catalogue(whole.ad_ids, other, whole.codes).codes_of(dataset)
    with pytest.raises(CatalogueError, match="expected ads of its catalogue of 60, got 60 others"):
        Catalogue(whole.ad_ids + 1000, whole.sids, whole.codes).codes_of(dataset)
    with pytest.raises(CatalogueError, match="expected SIDs of 2 levels, got 3"):
        Catalogue(whole.ad_ids, whole.sids[:, :2], whole.codes).codes_of(dataset)


def test_other_values_are_another_version(dataset, ads):
    """A model that was fitted on other values of these features is told by the version alone.

    So this has to fail with any change of a value; then raise VERSION, and put the new digest here.
    """
    features, digest = features_of(dataset, ads), hashlib.sha256()
    for part in ("train", "test"):
        groups = groups_of(dataset, part)
        for row in range(0, len(groups), 7):
            found = features.of(groups, row, np.array([*ALL_ADS[::3], -1]))
            # Rounded, so that another order of additions is the same; -0 is 0.
            numbers = np.column_stack([found.numbers, found.value]).astype(np.float64).round(3) + 0.0
            digest.update(numbers.tobytes())
            digest.update(found.profile.astype("<i4"))
    assert (VERSION, digest.hexdigest()[:16]) == (1, "5e0117a3676bbfe9")
