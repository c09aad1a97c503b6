"""How fast the tastes of a log move: `python -m benchmarks.closed_loop.drift_of_logs --run build/demo`.

Of series of counts a week (purchases of a category; of an ad within its category; of a category within a
group of households of one income) the variance of the change of their log share over a time, less what counts
that small vary by themselves (1 / n of each). `drift.Walk` is that variance over time, variance (1 - exp(-t /
days)); beside it stands what the shipped walks give. Letters: s series, w blocks of weeks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.closed_loop.drift import AD, CATEGORY, SEGMENT, Walk

_WEEK = 7 * 86_400
LEAST = {"category": 30, "ad": 20, "segment": 40}  # mean count of a block, else a series is left out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("build/demo"), help="run folder [%(default)s]")
    data = parser.parse_args().run / "data"
    events = _events(data)
    for name, keys, of, weeks, walk in (
        ("category", ["category"], [], 1, CATEGORY),
        ("ad", ["ad_id", "category"], ["category"], 4, AD),
        ("segment", ["income", "category"], ["category"], 4, SEGMENT),
    ):
        rows = events.filter(pl.col("income") != "unknown") if name == "segment" else events
        counts, totals = tables(rows, keys, of, weeks=weeks)
        print(f"{name}, blocks of {weeks} weeks")
        for lag in (1, 2, 4, 8, 13, 26) if weeks == 1 else (1, 2, 3, 6):
            found = variance(counts, totals, lag=lag, least=LEAST[name])
            print(
                f"  {lag * weeks:3} weeks: {found:.4f} measured, {_expected(walk, 7 * lag * weeks):.4f} drawn"
            )


def tables(
    events: pl.DataFrame, keys: list[str], of: list[str], *, weeks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Counts float64 [s, w], and those of what each is a share of."""
    blocks = events.with_columns(block=pl.col("week") // weeks)
    names = [str(b) for b in range(int(blocks["block"].max()) + 1)]  # type: ignore[arg-type]

    def counted(by: list[str]) -> pl.DataFrame:
        wide = blocks.group_by([*by, "block"]).len().pivot("block", index=by, values="len")
        missing = [pl.lit(None, pl.UInt32).alias(n) for n in names if n not in wide.columns]
        return wide.with_columns(missing).fill_null(0)

    series = counted(keys)
    counts = series.select(names).to_numpy().astype(np.float64)
    if not of:
        return counts, np.broadcast_to(counts.sum(axis=0), counts.shape)
    whole = series.select(of).join(counted(of), on=of, how="left", maintain_order="left")
    return counts, whole.select(names).to_numpy().astype(np.float64)


def variance(counts: np.ndarray, totals: np.ndarray, *, lag: int, least: float) -> float:
    """Mean squared change of log share over `lag` blocks, less the noise of counts; of large series."""
    kept = counts.mean(axis=1) >= least
    n, t = counts[kept] + 0.5, totals[kept] + 0.5
    share, noise = np.log(n / t), 1 / n - 1 / t
    change = share[:, lag:] - share[:, :-lag]
    return float((change**2 - noise[:, lag:] - noise[:, :-lag]).mean())


def _expected(walk: Walk, days: float) -> float:
    return walk.variance * (1 - np.exp(-days / walk.days))


def _events(data: Path) -> pl.DataFrame:
    ads, users, events = (pl.read_parquet(data / f"{name}.parquet") for name in ("ads", "users", "events"))
    poor, middle = ("Under 15K", "15-24K", "25-34K"), ("35-49K", "50-74K")
    income = pl.col("income")
    groups = users.select(
        "user_id",
        income=pl.when(income == "unknown")
        .then(pl.lit("unknown"))
        .when(income.is_in(poor))
        .then(pl.lit("low"))
        .when(income.is_in(middle))
        .then(pl.lit("middle"))
        .otherwise(pl.lit("high")),
    )
    category = pl.col("text").str.split(", ").list.slice(0, 2).list.join(", ")
    begin = events["timestamp"].to_numpy().min()
    return (
        events.join(ads.select("ad_id", category=category), on="ad_id")
        .join(groups, on="user_id")
        .with_columns(week=(pl.col("timestamp") - begin) // _WEEK)
        .filter(pl.col("week") < 52)
    )


if __name__ == "__main__":
    main()
