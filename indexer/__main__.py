"""Index commands: `python -m indexer build | set-status | stats`, each with --help."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import polars as pl

from indexer.store import AdRecord, IndexWriter
from serving.bundle import BundleError, current_version, read_manifest
from serving.index.layout import STATUSES, IndexStoreError
from serving.index.reader import IndexReader


def build(*, ads: Path, sids: Path, out: Path, level_sizes: tuple[int, ...], tokenizer_id: str) -> int:
    """Bulk build from ads (ad_id, status) and SIDs (ad_id, s1 .. s_T); returns the index version.

    Raises:
        ValueError: an ad without a SID, or values that do not fit.
        IndexStoreError: another writer is at work.
    """
    table = pl.read_parquet(ads, columns=["ad_id", "status"]).join(
        pl.read_parquet(sids), on="ad_id", how="left"
    )
    codes = table.drop("ad_id", "status")
    missing = table.filter(pl.col(codes.columns[0]).is_null())
    if missing.height:
        raise ValueError(
            f"{sids}: expected a SID for every ad of {ads}; {missing.height} have none, first ad_id "
            f"{missing['ad_id'][0]}"
        )
    with IndexWriter(out, level_sizes=level_sizes, tokenizer_id=tokenizer_id) as writer:
        return writer.build(
            table["ad_id"].to_numpy(),
            codes.to_numpy().astype(np.int32),
            statuses=table["status"].to_numpy().astype(str),
        )


def set_status(index: Path, ad_ids: list[int], status: str) -> int:
    """Change the status of known ads in one transaction; returns the new index version.

    Raises:
        ValueError: an ad is not in the index.
    """
    reader = IndexReader(index)
    snapshot = reader.snapshot
    reader.close()
    codes, known = snapshot.sids_of(np.asarray(ad_ids, np.int64))
    if not known.all():
        raise ValueError(
            f"expected ads that are in the index, got unknown ad {ad_ids[int(np.argmin(known))]}"
        )
    with IndexWriter(index, level_sizes=snapshot.level_sizes, tokenizer_id=snapshot.tokenizer_id) as writer:
        return writer.apply(
            [AdRecord(a, tuple(c), status) for a, c in zip(ad_ids, codes.tolist(), strict=True)]
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m indexer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="build the index of a bundle's tokenizer from tables")
    command.add_argument(
        "--bundles", type=Path, required=True, help="folder of bundles; CURRENT names the tokenizer"
    )
    command.add_argument("--ads", type=Path, required=True)
    command.add_argument("--sids", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command = commands.add_parser("set-status", help="activate, pause or delete ads; servers see it at once")
    command.add_argument("--index", type=Path, required=True)
    command.add_argument("--status", choices=STATUSES, required=True)
    command.add_argument("ad_ids", type=int, nargs="+")
    command = commands.add_parser("stats", help="what an index holds")
    command.add_argument("--index", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        if arguments.command == "build":
            began = time.monotonic()
            manifest = read_manifest(
                arguments.bundles / str(current_version(arguments.bundles)), verify=False
            )
            version = build(
                ads=arguments.ads,
                sids=arguments.sids,
                out=arguments.out,
                level_sizes=manifest.level_sizes,
                tokenizer_id=manifest.tokenizer_id,
            )
            print(f"index {arguments.out} version {version}, built in {time.monotonic() - began:.1f} s")
        elif arguments.command == "set-status":
            print(f"index version {set_status(arguments.index, arguments.ad_ids, arguments.status)}")
        else:
            snapshot = IndexReader(arguments.index).snapshot
            print(
                f"version {snapshot.version}, tokenizer {snapshot.tokenizer_id}, "
                f"levels {snapshot.level_sizes}, "
                f"{len(snapshot.ad_ids):,} ads known, {len(snapshot.leaf_ads):,} active on "
                f"{snapshot.trie.leaves:,} SIDs"
            )
    except (BundleError, IndexStoreError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
