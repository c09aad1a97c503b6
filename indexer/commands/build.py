"""`build`: the index of a bundle's tokenizer, from tables."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from indexer.commands.given_content import GivenContent
from indexer.events.event import CONTENT_FIELDS
from indexer.store.index_store import IndexStore
from serving.index.layout import STORE, ready_generations
from serving.inputs import RECORD, Inputs, is_up_to_date
from serving.model.bundle import read_manifest
from serving.model.current import current_version


def build(
    *,
    ads: Path,
    sids: Path,
    out: Path,
    level_sizes: tuple[int, ...],
    tokenizer_id: str,
    replace_all: bool = False,
) -> int:
    """Bulk load of ads (ad_id, status, content) and SIDs (ad_id, s1 .. s_T); returns the sequence number.

    A column `audience` of the ads, JSON or null, says who may see them.

    Without all of account_id, conversion_type and text, the ads cannot be encoded for another tokenizer. Keys
    (key, ad_id) lie in `keys/ads.parquet` beside the ads, where their ids are texts.

    Raises:
        ValueError: an ad without a SID, or values that do not fit.
        IndexStoreError: another writer is at work, or the disk is full.
    """
    import polars as pl  # a sidecar need not wait for it

    known = pl.read_parquet(ads)
    content = list(CONTENT_FIELDS) if set(known.columns) >= set(CONTENT_FIELDS) else []
    given = GivenContent(known)
    audience = ["audience"] if "audience" in known.columns else []
    table = known.select("ad_id", "status", *content, *audience).join(
        pl.read_parquet(sids), on="ad_id", how="left", maintain_order="left"
    )
    codes = table.drop("ad_id", "status", *content, *audience)
    missing = table.filter(pl.col(codes.columns[0]).is_null())
    if missing.height:
        raise ValueError(
            f"{sids}: expected a SID for every ad of {ads}; {missing.height} have none, first ad_id "
            f"{missing['ad_id'][0]}"
        )
    keys = ads.parent / "keys" / "ads.parquet"
    if keys.is_file():
        table = table.join(pl.read_parquet(keys), on="ad_id", how="left", maintain_order="left")
        if table["key"].null_count():
            unnamed = table.filter(pl.col("key").is_null())["ad_id"]
            raise ValueError(
                f"{keys}: expected a key for every ad of {ads}; {len(unnamed)} have none, first ad_id "
                f"{unnamed[0]}"
            )
    with IndexStore(out) as store:
        return store.build(
            tokenizer_id,
            level_sizes,
            ad_ids=table["ad_id"].to_numpy(),
            sids=codes.to_numpy().astype(np.int32),
            statuses=table["status"].to_numpy().astype(str),
            content={name: table[name] for name in content} | ({"given": given} if given else {})
            if content
            else None,
            keys=table["key"] if keys.is_file() else None,
            audiences=table["audience"].to_list() if audience else None,
            replace_all=replace_all,
        )


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    command = commands.add_parser("build", help="build the index of a bundle's tokenizer from tables")
    command.add_argument(
        "--bundles", type=Path, required=True, help="folder of bundles; CURRENT names the tokenizer"
    )
    command.add_argument("--ads", type=Path, required=True)
    command.add_argument("--sids", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument(
        "--replace", action="store_true", help="drop all ads and the generations of other tokenizers first"
    )
    command.add_argument("--fresh", action="store_true", help="load the tables again, changed or not")
    command.set_defaults(run=_build)


def _build(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    manifest = read_manifest(arguments.bundles / str(current_version(arguments.bundles)), verify=False)
    record = arguments.out / RECORD
    inputs = Inputs.now(
        {"tokenizer": manifest.tokenizer_id},
        files={"ads": arguments.ads, "sids": arguments.sids},
        before=Inputs.load(record),
    )
    # Since then events may have brought another tokenizer's generation, and dropped this one.
    dropped = manifest.tokenizer_id not in ready_generations(arguments.out)
    fresh = arguments.fresh or arguments.replace or dropped
    if is_up_to_date(record, inputs, outputs=[arguments.out / STORE], fresh=fresh):
        return
    record.unlink(missing_ok=True)
    sequence = build(
        ads=arguments.ads,
        sids=arguments.sids,
        out=arguments.out,
        level_sizes=manifest.level_sizes,
        tokenizer_id=manifest.tokenizer_id,
        replace_all=arguments.replace,
    )
    inputs.save(record)
    print(f"index {arguments.out} version {sequence}, built in {time.monotonic() - began:.1f} s")
