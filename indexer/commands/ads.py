"""`show` and `export`: what the index has of one ad, and of all of them; beside the sidecar."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from indexer.events.event import CONTENT_FIELDS
from indexer.store.records import decode_ad, decode_content
from indexer.store.transaction import ReadTransaction, read_store
from indexer.store.views import read_audience, read_key, view_ad
from serving.index.layout import STATUSES
from serving.keys import id_of


def show(index: Path, ad: int | str) -> str:
    """What an index has of an ad, of its number or, as text, its key: a line of JSON.

    Raises:
        ValueError: it is not in the index.
        IndexStoreError: missing or damaged.
    """
    ad_id = id_of(ad) if isinstance(ad, str) else ad
    with read_store(index) as reading:
        view = view_ad(reading, ad_id) if 0 <= ad_id < 1 << 63 else None
        if view is None or (isinstance(ad, str) and view.key != ad):
            raise ValueError(f"expected an ad that is in the index, got unknown ad {ad!a}")
        return json.dumps(asdict(view) | {"sequence": reading.meta.sequence})


def export(index: Path, out: Path) -> int:
    """Write every ad an index knows to a Parquet file; returns how many they are.

    Columns: ad_id, key (null where its ids are numbers), status, account_id, conversion_type, text (null for
    ads that came with given SIDs), audience (JSON; null for everybody).

    Raises:
        IndexStoreError: missing or damaged.
        OSError: the file cannot be written.
    """
    import polars as pl  # a sidecar need not wait for it

    strings = dict.fromkeys(("key", "status", *CONTENT_FIELDS, "audience"), pl.String())
    with read_store(index) as reading:
        table = pl.DataFrame(_rows(reading), schema={"ad_id": pl.Int64(), **strings}, orient="row")
    table.write_parquet(out)
    return table.height


def _rows(reading: ReadTransaction) -> Iterator[tuple[Any, ...]]:
    with reading.txn.cursor(db=reading.tables.ads) as cursor:
        for key, value in cursor:
            ad_id, (code, *_, number, _) = int.from_bytes(key, "big"), decode_ad(value)
            content = decode_content(reading.txn.get(bytes(key), db=reading.tables.content)) or {}
            audience = json.dumps(read_audience(reading, number)) if number else None
            known = map(content.get, CONTENT_FIELDS)
            yield ad_id, read_key(reading, ad_id), STATUSES[code], *known, audience


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    command = commands.add_parser("show", help="one ad: key, status, versions, content, semantic IDs")
    command.add_argument("--index", type=Path, required=True)
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("ad_id", type=int, nargs="?")
    which.add_argument("--key", help="of an ad whose id is a text")
    command.set_defaults(run=lambda a: print(show(a.index, a.ad_id if a.key is None else a.key)))
    command = commands.add_parser("export", help="all ads as a Parquet file, with their keys")
    command.add_argument("--index", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.set_defaults(run=lambda a: print(f"{a.out}: {export(a.index, a.out):,} ads"))
