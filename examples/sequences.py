"""Tables of a sequence file as benchmarks have it: a user a line, `user item item ..` in order of time.

    python -m examples.sequences Beauty.txt.gz --titles Beauty.titles.json.gz --out build/tables

Such files have no times. Every user's events get the same ones, a minute apart, so that gaps say nothing that
was not in the file.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from serving.files import new_folder

FIRST, STEP_S = 1_600_000_000, 60


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.sequences", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("sequences", type=Path, help="text, also packed with gzip")
    parser.add_argument("--titles", type=Path, help="JSON, item -> title, also packed [item 17 is called 17]")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables, made anew")
    arguments = parser.parse_args()
    try:
        titles = json.loads(_text(arguments.titles)) if arguments.titles else {}
        tables = tables_of(_text(arguments.sequences), titles=titles, name=arguments.sequences.name)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    with new_folder(arguments.out) as work:
        for name, table in tables.items():
            table.write_parquet(work / f"{name}.parquet")
    rows = ", ".join(f"{table.height:,} {name}" for name, table in tables.items())
    print(f"{arguments.out}: {rows}")


def tables_of(text: str, *, titles: dict[str, Any], name: str) -> dict[str, pl.DataFrame]:
    """Tables `ads`, `users` and `events`, with every item bought once a line.

    Args:
        text: lines.
        titles: by item; items without one are called by their number.
        name: of the file, for errors.

    Raises:
        ValueError: a line is not of whole numbers, or has no item.
    """
    rows = [
        (user, item, FIRST + place * STEP_S)
        for user, items in _lines(text, name)
        for place, item in enumerate(items)
    ]
    events = pl.DataFrame(
        rows, schema={"user_id": pl.Int64, "ad_id": pl.Int64, "timestamp": pl.Int64}, orient="row"
    )
    events = events.with_columns(behavior=pl.lit("conversion"), value=pl.lit(1.0))
    ads = events.select(pl.col("ad_id").unique().sort())
    called = [str(titles.get(str(ad)) or ad) for ad in ads["ad_id"]]
    return {
        "ads": ads.with_columns(text=pl.Series(called)),
        "users": events.select(pl.col("user_id").unique().sort()),
        "events": events,
    }


def _lines(text: str, name: str) -> Iterator[tuple[int, list[int]]]:
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) < 2 or not all(word.isascii() and word.isdigit() for word in words):
            raise ValueError(
                f"{name}, line {number}: expected a user and its items, whole numbers, got {line[:60]!r}"
            )
        user, *items = map(int, words)
        yield user, items


def _text(path: Path) -> str:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()


if __name__ == "__main__":
    main()
