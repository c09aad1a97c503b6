"""A seeded ad log of any size as a Spark job would leave it: folders of Parquet parts, in the order of time.

python -m benchmarks.event_log --events 50_000_000 --out build/bench/log-50m

A request shows five ads; one impression in ten is clicked seconds later, three clicks in ten convert within
twenty minutes. Users and ads are skewed. Types are those of a warehouse (Int32 ads, times with a zone), not
those of the prepared tables.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl

from serving.files import new_folder

BEGIN, DAYS = 1_700_000_000, 30
SHOWN, CLICKS, CONVERSIONS = 5, 0.1, 0.3
PART = 2_000_000  # events of one part
WORDS = ("red", "blue", "light", "heavy", "game", "loan", "shoe", "phone", "travel", "bread")


def write_log(out: Path, *, events: int, users: int, ads: int, seed: int = 0) -> None:
    """Write ads.parquet/, users.parquet/ and events.parquet/ below `out`, exactly `events` events."""
    random = np.random.default_rng(seed)
    with new_folder(out, replace=True) as new:
        for name, table in (("ads", _ads(ads, random)), ("users", _users(users, random))):
            (new / f"{name}.parquet").mkdir()
            table.write_parquet(new / f"{name}.parquet" / "part-00000.parquet")
        folder = new / "events.parquet"
        folder.mkdir()
        parts = -(-events // PART)
        for part in range(parts):
            span = DAYS * 86_400 / parts
            rows = min(PART, events - part * PART)
            table = _events(
                rows, begin=BEGIN + part * span, span=span, users=users, ads=ads, part=part, random=random
            )
            table.write_parquet(folder / f"part-{part:05}.parquet")
        (folder / "_SUCCESS").touch()


def _ads(count: int, random: np.random.Generator) -> pl.DataFrame:
    words = np.array(WORDS)[random.integers(len(WORDS), size=(count, 3))]
    return pl.DataFrame(
        {
            "ad_id": np.arange(count, dtype=np.int32),
            "account_id": [f"account {i % 997}" for i in range(count)],
            "text": [" ".join(row) for row in words],
        }
    )


def _users(count: int, random: np.random.Generator) -> pl.DataFrame:
    ages = np.array(["18-24", "25-44", "45-64", "65+"])
    return pl.DataFrame({"user_id": np.arange(count), "age": ages[random.integers(4, size=count)]})


def _events(
    rows: int, *, begin: float, span: float, users: int, ads: int, part: int, random: np.random.Generator
) -> pl.DataFrame:
    requests = 100 + int(1.05 * rows / (SHOWN * (1 + CLICKS * (1 + CONVERSIONS))))  # some to spare
    user = (users * random.random(requests) ** 1.5).astype(np.int64)
    request = {"user_id": user, "request_id": part * PART + np.arange(requests, dtype=np.int64)}
    at = np.sort(begin + span * random.random(requests))
    shown = {name: np.repeat(column, SHOWN) for name, column in request.items()}
    shown |= {
        "ad_id": (ads * random.random(requests * SHOWN) ** 3).astype(np.int32),
        "timestamp": np.repeat(at, SHOWN),
        "position": np.tile(np.arange(SHOWN, dtype=np.int32), requests),
        "behavior": np.ones(requests * SHOWN, np.int8),
        "value": np.zeros(requests * SHOWN, np.float32),
    }
    clicked = _some(shown, CLICKS, later=10, behavior=2, random=random)
    bought = _some(clicked, CONVERSIONS, later=1200, behavior=3, random=random)
    bought["value"] = random.exponential(20, len(bought["value"])).astype(np.float32)
    every = {name: np.concatenate([shown[name], clicked[name], bought[name]]) for name in shown}
    # A request shows an ad once.
    table = pl.DataFrame(every).unique(["request_id", "ad_id", "behavior"], keep="first")
    seconds = pl.col("timestamp").floor().cast(pl.Int64)
    return (
        table.with_columns(
            pl.from_epoch(seconds, time_unit="s").dt.cast_time_unit("us").dt.replace_time_zone("UTC"),
            pl.col("behavior").replace_strict({1: "impression", 2: "click", 3: "conversion"}),
        )
        .sort("timestamp", "request_id", "ad_id", "behavior")
        .head(rows)
    )


def _some(
    rows: dict[str, np.ndarray], share: float, *, later: float, behavior: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    kept = np.flatnonzero(random.random(len(rows["behavior"])) < share)
    some = {name: column[kept] for name, column in rows.items()}
    some["timestamp"] = some["timestamp"] + 1 + later * random.random(len(kept))
    some["behavior"] = np.full(len(kept), behavior, np.int8)
    return some


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.event_log", description=__doc__)
    parser.add_argument("--events", type=int, default=50_000_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--ads", type=int, default=200_000)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write_log(arguments.out, events=arguments.events, users=arguments.users, ads=arguments.ads)


if __name__ == "__main__":
    main()
