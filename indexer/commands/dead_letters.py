"""`dead-letters list | replay | drop`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from json import dumps
from pathlib import Path

from indexer.store.dead_letters import DeadLetter, iterate_dead_letters
from indexer.store.index_store import IndexStore
from indexer.store.transaction import read_store
from serving.index.layout import IndexStoreError

_PAGE = 64


def list_letters(index: Path, *, after: int, limit: int | None) -> Iterator[DeadLetter]:
    """Dead letters, also beside the sidecar; a page at a time, and no transaction stays open between two.

    Raises:
        IndexStoreError: the index is missing or damaged.
    """
    while limit is None or limit > 0:
        count = _PAGE if limit is None else min(limit, _PAGE)
        try:
            with read_store(index) as reading:
                letters = list(islice(iterate_dead_letters(reading, after=after), count))
        except ValueError as error:
            raise IndexStoreError(f"index {index}: {error}") from error
        yield from letters
        if len(letters) < count:
            return
        after, limit = letters[-1].number, None if limit is None else limit - count


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    group = commands.add_parser("dead-letters", help="events that could not be applied")
    actions = group.add_subparsers(dest="action", required=True)
    command = actions.add_parser("list", help="as JSON, one a line; works beside the sidecar")
    command.add_argument("--index", type=Path, required=True)
    command.add_argument("--after", type=int, default=-1, help="those above this number")
    command.add_argument("--limit", type=int)
    command.set_defaults(run=_list)
    for name, does in (("replay", "try again"), ("drop", "forget")):
        command = actions.add_parser(name, help=f"{does}; not while a sidecar runs, which holds the index")
        command.add_argument("--index", type=Path, required=True)
        which = command.add_mutually_exclusive_group(required=True)
        which.add_argument("--all", action="store_true")
        which.add_argument("--number", type=int, action="append", help="may be given more than once")
        command.set_defaults(run={"replay": _replay, "drop": _drop}[name])


def _list(arguments: argparse.Namespace) -> None:
    for letter in list_letters(arguments.index, after=arguments.after, limit=arguments.limit):
        print(dumps(asdict(letter)))


def _replay(arguments: argparse.Namespace) -> None:
    with IndexStore(arguments.index) as store:
        outcomes = store.replay(None if arguments.all else arguments.number)
    results = [outcome.result for outcome in outcomes]
    print(", ".join(f"{results.count(name)} {name}" for name in ("applied", "stale", "rejected")))


def _drop(arguments: argparse.Namespace) -> None:
    with IndexStore(arguments.index) as store:
        count = store.drop_dead_letters(None if arguments.all else arguments.number)
    print(f"{count} dropped")
