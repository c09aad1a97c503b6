"""`set-status` and `stats`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from indexer.events.event import DeleteEvent, PauseEvent, ResumeEvent
from indexer.store.incoming import Incoming
from indexer.store.index_store import IndexStore
from indexer.store.tables import read_counters
from indexer.store.transaction import ReadTransaction, read_store
from serving.index.layout import STATUSES
from serving.keys import id_of

_EVENTS = {"active": ResumeEvent, "paused": PauseEvent, "deleted": DeleteEvent}


def set_status(index: Path, ads: Sequence[int | str], *, status: str) -> int:
    """Change the status of known ads, numbers or keys, in one transaction; the new sequence number.

    Raises:
        ValueError: an ad is not in the index.
        IndexStoreError: a writer (the sidecar) holds the index.
    """
    items = []
    with IndexStore(index) as store:
        for given in dict.fromkeys(ads):
            ad_id = id_of(given) if isinstance(given, str) else given
            ad = store.ad(ad_id) if 0 <= ad_id < 1 << 63 else None
            if ad is None or (isinstance(given, str) and ad.key != given):
                raise ValueError(f"expected ads that are in the index, got unknown ad {given!a}")
            event = _EVENTS[status](ad_id=given, version=ad.status_version + 1)
            items.append(Incoming(event, json.dumps(event.fields()).encode(), "set-status"))
        return store.apply(items)[0].sequence


def stats(index: Path) -> str:
    """What an index holds, for people; works beside the sidecar.

    Raises:
        IndexStoreError: missing or damaged.
    """
    with read_store(index) as reading:
        tables = reading.tables
        counters = read_counters(tables, reading.txn, where=reading.path)
        lines = [
            f"version {reading.meta.sequence}, {reading.entries(tables.ads):,} ads known, "
            f"{reading.entries(tables.content):,} with content, {reading.entries(tables.dead):,} dead letters"
        ]
        if tables.keys is not None and (keys := reading.entries(tables.keys)):
            lines.append(f"{keys:,} ads with keys")
        lines += [_generation(reading, name) for name in reading.meta.generations]
        return "\n".join([*lines, *(f"{name} {value:,}" for name, value in sorted(counters.items()))])


def _generation(reading: ReadTransaction, name: str) -> str:
    generation, handles = reading.meta.generations[name], reading.tables.generations[name]
    with reading.txn.cursor(db=handles.sids) as cursor:
        sids = sum(1 for _ in cursor.iternext_nodup(keys=True, values=False))
    since = f"base {generation.base}, {reading.entries(handles.changes):,} transactions since"
    return (
        f"tokenizer {name}, levels {generation.level_sizes}, {reading.entries(handles.codes):,} ads, "
        f"{reading.entries(handles.sids):,} active on {sids:,} SIDs, "
        f"{since if generation.ready else 'not ready'}"
    )


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    command = commands.add_parser("set-status", help="activate, pause or delete ads; servers see it at once")
    command.add_argument("--index", type=Path, required=True)
    command.add_argument("--status", choices=STATUSES, required=True)
    command.add_argument("ad_ids", type=int, nargs="*")
    command.add_argument("--key", action="append", default=[], help="of an ad whose id is a text; repeatable")
    command.set_defaults(run=_set_status)
    command = commands.add_parser("stats", help="what an index holds")
    command.add_argument("--index", type=Path, required=True)
    command.set_defaults(run=lambda a: print(stats(a.index)))


def _set_status(arguments: argparse.Namespace) -> None:
    ads = [*arguments.ad_ids, *arguments.key]
    if not ads:
        raise ValueError("expected ad ids or --key, got none")
    sequence = set_status(arguments.index, ads, status=arguments.status)
    print(f"index version {sequence}")
