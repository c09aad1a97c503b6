"""`verify`, `backup`, `restore`, `compact` and `drop-generation`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from indexer.store.backups import back_up, restore
from indexer.store.compaction import adopt_base, compact
from indexer.store.file import StoreFile
from indexer.store.generations import drop_generation
from indexer.store.verify import verify


def compact_all(index: Path, tokenizer_ids: list[str]) -> dict[str, int]:
    """New bases of these generations (of all that are ready where empty), adopted; sequence number of each.

    Raises:
        IndexStoreError: a writer (the sidecar, which compacts by itself) holds the index, or as `compact`.
    """
    with StoreFile(index) as file:
        ready = [name for name, generation in file.meta.generations.items() if generation.ready]
    sequences = {name: compact(index, name) for name in tokenizer_ids or ready}
    with StoreFile(index) as file:
        for name, sequence in sequences.items():
            adopt_base(file, name, sequence=sequence)
    return sequences


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands."""
    command = commands.add_parser(
        "verify", help="check every table against every other; works beside the sidecar"
    )
    command.add_argument("--index", type=Path, required=True)
    command.set_defaults(run=_verify)
    command = commands.add_parser("backup", help="copy the store; works beside the sidecar")
    command.add_argument("--index", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True, help="new folder")
    command.set_defaults(run=_back_up)
    command = commands.add_parser("restore", help="put a backup in place of the index; servers follow")
    command.add_argument("--backup", type=Path, required=True)
    command.add_argument("--index", type=Path, required=True)
    command.set_defaults(run=lambda a: print(f"index version {restore(a.backup, a.index)}"))
    command = commands.add_parser(
        "compact", help="write new base arrays; a running sidecar does it by itself"
    )
    command.add_argument("--index", type=Path, required=True)
    command.add_argument("tokenizer_ids", nargs="*", help="all that are ready where left out")
    command.set_defaults(run=_compact)
    command = commands.add_parser(
        "drop-generation", help="forget the semantic IDs of a tokenizer that no server uses any more"
    )
    command.add_argument("--index", type=Path, required=True)
    command.add_argument("tokenizer_id")
    command.set_defaults(run=_drop_generation)


def _verify(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    problems = verify(arguments.index)
    if problems:
        raise SystemExit("\n".join([*problems, f"error: {len(problems)} problems in {arguments.index}"]))
    print(f"index {arguments.index} is sound, checked in {time.monotonic() - began:.1f} s")


def _back_up(arguments: argparse.Namespace) -> None:
    manifest = back_up(arguments.index, arguments.out)
    print(
        f"backup {arguments.out}: version {manifest['sequence']}, {manifest['ads']:,} ads, "
        f"{manifest['bytes']:,} bytes"
    )


def _drop_generation(arguments: argparse.Namespace) -> None:
    with StoreFile(arguments.index) as file:
        drop_generation(file, arguments.tokenizer_id)
        left = ", ".join(file.meta.generations)
    print(f"tokenizer {arguments.tokenizer_id}: dropped, left: {left}")


def _compact(arguments: argparse.Namespace) -> None:
    for name, sequence in compact_all(arguments.index, arguments.tokenizer_ids).items():
        print(f"tokenizer {name}: base {sequence}")
