"""Who may see the ads of source `completejourney`: seasonal goods in their weeks, alcohol by age.

* Flight. An ad of a seasonal category that was ever in a mailer or under a coupon runs from the first to the
  end of the last of these weeks and campaigns, one interval an ad.
* Household. An ad of an alcohol category is for households whose age class is known and is not 19-24, in
  which not everybody may buy it.

Both are properties that an advertiser knows beforehand; what was bought has no say. All other ads are for
everybody. Why not every ad in the weeks of its promotions: docs/decisions.md, "Audiences are masks of the
trie".
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from serving.index.audience import Audience, Rule

SEASONAL = (
    "CHRISTMAS SEASONAL",
    "EASTER",
    "EASTER LILY",
    "FALL AND WINTER SEASONAL",
    "HALLOWEEN",
    "SEASONAL",
    "SPRING/SUMMER SEASONAL",
    "VALENTINE",
)
ALCOHOL = ("BEERS/ALES", "DOMESTIC WINE", "IMPORTED WINE", "LIQUOR", "MISC WINE")
AGE = "age"
"""Profile column that audiences of this source name."""

_NOT_ALL_ADULTS = "19-24"
_SECOND_WEEK = pl.date(2017, 1, 2)  # a Monday: week 1 of the files is the Sunday before


def audiences_of(
    products: pl.DataFrame,
    *,
    coupons: pl.DataFrame,
    campaigns: pl.DataFrame,
    promotions: Path,
    time_zone: str,
) -> pl.DataFrame:
    """Audiences of ads that have one: ad_id, audience (JSON).

    Args:
        products: ad_id and product_category.
        coupons: ad_id and campaign_id.
        campaigns: campaign_id, start_date and end_date, which is its last day.
        promotions: file with product_id, week and mailer_location.
        time_zone: in whose days and weeks they are.
    """
    category = pl.col("product_category").str.replace_all(r"\s+", " ").str.strip_chars()
    seasonal = products.filter(category.is_in(SEASONAL)).select("ad_id")
    alcohol = products.filter(category.is_in(ALCOHOL)).select("ad_id")
    days = pl.concat(
        [
            _mailer_days(promotions, seasonal),
            coupons.join(campaigns, on="campaign_id").select(
                "ad_id",
                pl.col("start_date").dt.date().alias("first"),
                pl.col("end_date").dt.date().dt.offset_by("1d").alias("end"),
            ),
        ]
    )
    flights = (
        days.join(seasonal, on="ad_id", how="semi")
        .group_by("ad_id")
        .agg(_midnight("first", time_zone).min().alias("start"), _midnight("end", time_zone).max())
    )
    by_age = Audience(rules=((AGE, Rule((_NOT_ALL_ADULTS,), negated=True)),)).text
    rows = [(ad, Audience(start=start, end=end).text) for ad, start, end in flights.rows()]
    rows += [(ad, by_age) for ad in alcohol["ad_id"]]
    return pl.DataFrame(rows, schema={"ad_id": pl.Int64, "audience": pl.String}, orient="row")


def _mailer_days(promotions: Path, ads: pl.DataFrame) -> pl.DataFrame:
    """Weeks in which ads were in a mailer: ad_id, first (its first day), end (the first day after it)."""
    week = pl.col("week")
    return (
        # "0" is the files' own "not in the mailer"; 21 M rows are scanned, never held.
        pl.scan_parquet(promotions, hive_partitioning=False, glob=False)
        .filter(pl.col("mailer_location") != "0")
        .select(pl.col("product_id").cast(pl.Int64).alias("ad_id"), week.cast(pl.Int64))
        .join(ads.lazy(), on="ad_id", how="semi")
        .unique()
        .collect(engine="streaming")
        .select(
            "ad_id",
            (_SECOND_WEEK + pl.duration(weeks=week - 2)).alias("first"),
            (_SECOND_WEEK + pl.duration(weeks=week - 1)).alias("end"),
        )
    )


def _midnight(day: str, time_zone: str) -> pl.Expr:
    """Begin of a day, unix seconds."""
    return pl.col(day).cast(pl.Datetime("us")).dt.replace_time_zone(time_zone).dt.epoch("s")
