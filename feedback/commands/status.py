"""`python -m feedback status`: what a store holds, beside its writer."""

from __future__ import annotations

import argparse
from pathlib import Path

from feedback.store.layout import open_environment
from feedback.store.meta import STATE, Meta


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    made = commands.add_parser("status", help="samples, counters, offsets and gaps of a store")
    made.add_argument("--store", type=Path, required=True, help="folder of the store")
    made.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print.

    Raises:
        FeedbackStoreError: there is no store, or it is damaged.
    """
    environment = open_environment(arguments.store, readonly=True)
    try:
        tables = {name: environment.open_db(name.encode(), create=False) for name in ("meta", "offsets")}
        with environment.begin() as txn, txn.cursor(db=tables["offsets"]) as cursor:
            meta = Meta.decode(txn.get(STATE, db=tables["meta"]))
            offsets = {bytes(key).decode(): bytes(value).decode() for key, value in cursor.iternext()}
    finally:
        environment.close()
    print(f"samples up to {meta.sequence}, {meta.waiting} requests waited for, {meta.rejected} not taken")
    for name, count in sorted(meta.counters.items()):
        print(f"  {name:<24} {count:>12,}")
    for source, offset in offsets.items():
        print(f"offset of {source}: {offset}")
    for source, gap in meta.gaps.items():
        print(f"lost of {source}: {gap}")
