"""`python -m feedback export`: what was reported, as rows of an events table for `make data`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import polars as pl

from feedback.store.samples import Samples
from serving.files import new_file


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    made = commands.add_parser("export", help="rows of an events table (docs/data.md) of the samples kept")
    made.add_argument("--store", type=Path, required=True, help="folder of the store")
    made.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    made.add_argument("--after", type=int, default=0, help="samples behind this sequence number [0]")
    made.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Write, and say up to where.

    Raises:
        FeedbackStoreError: there is no store; samples behind `--after` are gone.
        OSError: the file cannot be written.
    """
    rows, last = event_rows(arguments.store, after=arguments.after)
    with new_file(arguments.out) as partial:
        pl.DataFrame(rows, schema=_schema(rows)).write_parquet(partial)
    print(f"{len(rows):,} rows of samples {arguments.after + 1} .. {last} in {arguments.out}")


def event_rows(store: Path, *, after: int) -> tuple[list[dict[str, Any]], int]:
    """Rows of the newest revision of each request, and the last sequence number that was read."""
    newest: dict[str, list[dict[str, Any]]] = {}
    with Samples(store) as samples:
        while found := samples.read(after=after):
            for sample in found:
                newest[sample.record.request_id or ""] = sample.rows()
            after = found[-1].sequence
    return [row for rows in newest.values() for row in rows], after


def _schema(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Users are numbers or keys, as in the other tables of the log."""
    kinds = {type(row["user_id"]) for row in rows}
    if len(kinds) > 1:
        raise ValueError("user_id: expected numbers or keys, got both: requests were sent with either")
    return {
        "user_id": pl.String if kinds == {str} else pl.Int64,
        "ad_id": pl.Int64,
        "timestamp": pl.Int64,
        "behavior": pl.String,
        "value": pl.Float64,
        "provenance": pl.String,
        "request_id": pl.String,
        "position": pl.Int64,
    }
