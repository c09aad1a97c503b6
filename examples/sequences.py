"""Tables of a sequence file as benchmarks have it: a user a line, `user item item ..` in order of time.

    python -m examples.sequences Beauty.txt.gz --titles Beauty.titles.json.gz --out build/tables

An item may come with a title, with the numbers of its attributes (categories, brand), which become words of
its text, and with a semantic ID, for `tokenizer.sids: given`, as they are published: `["<a_183>", "<b_70>",
..]`, a word a level, under the item's number or that number less one.

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
    parser.add_argument("--attributes", type=Path, help="JSON, item -> numbers of its attributes")
    parser.add_argument("--sids", type=Path, help="JSON, item or item - 1 -> words of its semantic ID")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables, made anew")
    arguments = parser.parse_args()
    try:
        write_tables(
            arguments.sequences,
            arguments.out,
            titles=arguments.titles,
            attributes=arguments.attributes,
            sids=arguments.sids,
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


def write_tables(
    sequences: Path,
    out: Path,
    *,
    titles: Path | None = None,
    attributes: Path | None = None,
    sids: Path | None = None,
) -> None:
    """Read the files, write the tables, say how many rows they have.

    Raises:
        OSError: a file cannot be read.
        ValueError: one is not of the form that it should have.
    """
    tables = tables_of(
        _text(sequences),
        titles=_object(titles),
        attributes=_object(attributes),
        sids=_object(sids) if sids else None,
        name=sequences.name,
    )
    with new_folder(out) as work:
        for name, table in tables.items():
            table.write_parquet(work / f"{name}.parquet")
    rows = ", ".join(f"{table.height:,} {name}" for name, table in tables.items())
    print(f"{out}: {rows}", flush=True)


def tables_of(
    text: str,
    *,
    titles: dict[str, Any],
    name: str,
    attributes: dict[str, Any] | None = None,
    sids: dict[str, Any] | None = None,
) -> dict[str, pl.DataFrame]:
    """Tables `ads`, `users` and `events`, with every item bought once a line.

    Args:
        text: lines.
        titles: by item; items without one are called by their number.
        name: of the file, for errors.
        attributes: by item, numbers.
        sids: by item, or by item - 1, a word a level.

    Raises:
        ValueError: a line is not of whole numbers, or has no item; or an item has no semantic ID.
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
    texts = []
    for ad in map(str, ads["ad_id"]):
        words = [f"attribute{number}" for number in (attributes or {}).get(ad, ())]
        texts.append(" ".join([str(titles.get(ad) or ad), *words]))
    ads = ads.with_columns(text=pl.Series(texts))
    return {
        "ads": ads if sids is None else ads.with_columns(_codes(ads["ad_id"].to_list(), sids)),
        "users": events.select(pl.col("user_id").unique().sort()),
        "events": events,
    }


def _codes(items: list[int], sids: dict[str, Any]) -> list[pl.Series]:
    """Columns sid_0, sid_1, ..: of each level's words in the order of their numbers, its codes from 0."""
    less = 0 if all(str(item) in sids for item in items) else 1
    missing = [item for item in items if str(item - less) not in sids]
    if missing:
        raise ValueError(
            f"semantic IDs: expected one of every item, under its number or that less one, got none of "
            f"{len(missing)}, the first is {missing[0]}"
        )
    words = [tuple(sids[str(item - less)]) for item in items]
    lengths = sorted(set(map(len, words)))
    if len(lengths) > 1:
        raise ValueError(f"semantic IDs: expected as many levels of every item, got {lengths}")
    columns = []
    for level, column in enumerate(zip(*words, strict=True)):
        codes = {word: code for code, word in enumerate(sorted(set(column), key=_number))}
        columns.append(pl.Series(f"sid_{level}", [codes[word] for word in column]))
    return columns


def _number(word: str) -> tuple[int, str]:
    digits = "".join(c for c in word if c.isdigit())
    return int(digits or 0), word


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


def _object(path: Path | None) -> dict[str, Any]:
    """Of a JSON file; nothing where there is none.

    Raises:
        ValueError: it holds something else.
    """
    if path is None:
        return {}
    found = json.loads(_text(path))
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected an object, item -> value, got {type(found).__name__}")
    return found


def _text(path: Path) -> str:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()


if __name__ == "__main__":
    main()
