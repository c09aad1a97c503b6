"""`gaps list | acknowledge`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from json import dumps
from pathlib import Path

from indexer.store.file import StoreFile
from indexer.store.gaps import acknowledge_gaps, read_gaps
from indexer.store.transaction import read_store


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    group = commands.add_parser("gaps", help="events that a stream lost before they were applied")
    actions = group.add_subparsers(dest="action", required=True)
    command = actions.add_parser("list", help="as JSON, one a line; works beside the sidecar")
    command.add_argument("--index", type=Path, required=True)
    command.set_defaults(run=_list)
    command = actions.add_parser(
        "acknowledge",
        help="somebody has seen to them; not while a sidecar runs, which takes POST /gaps/acknowledge",
    )
    command.add_argument("--index", type=Path, required=True)
    command.add_argument("source", help="as `list` names it, e.g. redis:gr4ad:ads")
    command.set_defaults(run=_acknowledge)


def _list(arguments: argparse.Namespace) -> None:
    with read_store(arguments.index) as reading:
        for gaps in read_gaps(reading).values():
            print(dumps(asdict(gaps) | {"unseen": gaps.unseen}))


def _acknowledge(arguments: argparse.Namespace) -> None:
    with StoreFile(arguments.index) as file:
        gaps = acknowledge_gaps(file, arguments.source)
    print(f"{gaps.source}: {gaps.gaps} gaps acknowledged, {gaps.lost:,} events lost")
