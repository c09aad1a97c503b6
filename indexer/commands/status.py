"""`set-status` and `stats`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from indexer.events.event import AdEvent
from indexer.store.index_store import Incoming, IndexStore
from indexer.store.tables import Tables, read_counters
from serving.index.layout import STATUSES, open_environment

_KINDS = {"active": "resume", "paused": "pause", "deleted": "delete"}


def set_status(index: Path, ad_ids: list[int], status: str) -> int:
    """Change the status of known ads in one transaction; returns the new sequence number.

    Raises:
        ValueError: an ad is not in the index.
        IndexStoreError: a writer (the sidecar) holds the index.
    """
    items = []
    with IndexStore(index) as store:
        for ad_id in dict.fromkeys(ad_ids):
            ad = store.ad(ad_id) if 0 <= ad_id < 1 << 63 else None
            if ad is None:
                raise ValueError(f"expected ads that are in the index, got unknown ad {ad_id}")
            event = AdEvent(_KINDS[status], ad_id, ad.status_version + 1)  # type: ignore[arg-type]
            items.append(Incoming(event, json.dumps(event.fields()).encode(), "set-status"))
        return store.apply(items)[0].sequence


def stats(index: Path) -> str:
    """What an index holds, for people; works beside the sidecar.

    Raises:
        IndexStoreError: missing or damaged.
    """
    environment = open_environment(index, readonly=True)
    try:
        with environment.begin() as transaction:
            tables = Tables.open(environment, transaction, create=False)
            meta = tables.read_meta(environment, transaction)
            counters = read_counters(tables, transaction, where=str(index))

            def count(table: object) -> int:
                return transaction.stat(table)["entries"]  # type: ignore[arg-type]

            lines = [
                f"version {meta.sequence}, {count(tables.ads):,} ads known, {count(tables.content):,} with "
                f"content, {count(tables.dead):,} dead letters"
            ]
            for name, generation in meta.generations.items():
                handles = tables.generations[name]
                with transaction.cursor(db=handles.sids) as cursor:
                    sids = sum(1 for _ in cursor.iternext_nodup(keys=True, values=False))
                lines.append(
                    f"tokenizer {name}, levels {generation.level_sizes}, "
                    f"{count(handles.codes):,} ads, {count(handles.sids):,} active on {sids:,} SIDs, "
                    + (
                        f"base {generation.base}, {count(handles.changes):,} transactions since"
                        if generation.ready
                        else "not ready"
                    )
                )
            return "\n".join([*lines, *(f"{name} {value:,}" for name, value in sorted(counters.items()))])
    finally:
        environment.close()


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    command = commands.add_parser("set-status", help="activate, pause or delete ads; servers see it at once")
    command.add_argument("--index", type=Path, required=True)
    command.add_argument("--status", choices=STATUSES, required=True)
    command.add_argument("ad_ids", type=int, nargs="+")
    command.set_defaults(run=lambda a: print(f"index version {set_status(a.index, a.ad_ids, a.status)}"))
    command = commands.add_parser("stats", help="what an index holds")
    command.add_argument("--index", type=Path, required=True)
    command.set_defaults(run=lambda a: print(stats(a.index)))
