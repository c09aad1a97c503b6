"""SIDs that were given out: within a tokenizer none of them ever moves.

A model learns an ad by its SID, and histories name ads. So an ad keeps the SID that it was first given,
whatever becomes of its text or account; only ads without one are encoded. Another tokenizer gives others to
all.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from serving.files import new_file

SIDS = "sids.parquet"  # of the ads of the table: ad_id Int64, s1 .. sT Int32
RETIRED = "retired.parquet"  # the same of ads that have left it, and may come back


def load_published(folder: Path) -> pl.DataFrame | None:
    """Every SID that the tokenizer in a folder has given; None where it has given none yet.

    Raises:
        ValueError: a file is unreadable; what was published is not guessed.
    """
    files = [folder / name for name in (SIDS, RETIRED) if (folder / name).is_file()]
    if not files:
        return None
    try:
        return pl.concat([pl.read_parquet(file) for file in files]).unique("ad_id", keep="first")
    except (PolarsError, OSError) as error:
        raise ValueError(
            f"{folder}: expected published SIDs in {' and '.join(file.name for file in files)}, got {error}; "
            "put the files back, or remove them to encode every ad as it is now"
        ) from error


def keep_published(sids: pl.DataFrame, published: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """SIDs of the ads as they were published, and as they are in `sids` where they are new.

    Args:
        sids: ad_id, s1 .. sT of every ad, encoded now.
        published: the same of the ads that have a SID.

    Returns:
        The table, in the order of `sids`, and ids of the ads that would have another SID by now.

    Raises:
        ValueError: the two have other columns.
    """
    if sids.columns != published.columns:
        raise ValueError(f"expected published SIDs with columns {sids.columns}, got {published.columns}")
    levels = sids.columns[1:]
    known = sids.join(published, on="ad_id", how="left", suffix="_before", maintain_order="left")
    before = [pl.col(f"{level}_before") for level in levels]
    other = pl.any_horizontal(pl.col(n) != b for n, b in zip(levels, before, strict=True))
    kept = [pl.coalesce(b, pl.col(n)).alias(n) for n, b in zip(levels, before, strict=True)]
    return known.select("ad_id", *kept), known.filter(other)["ad_id"]


def write_published(folder: Path, sids: pl.DataFrame, *, before: pl.DataFrame | None) -> None:
    """Write the SIDs of the ads, and of those that had one before and are gone.

    A crash between two writes loses none: while `SIDS` changes, the other file holds all that were given.

    Raises:
        OSError: the disk is full or not writable.
    """
    if before is not None:
        gone = before.join(sids, on="ad_id", how="anti").sort("ad_id")
        if gone.height or (folder / RETIRED).exists():
            _write(folder / RETIRED, before.sort("ad_id"))
            _write(folder / SIDS, sids)
            _write(folder / RETIRED, gone)
            return
    _write(folder / SIDS, sids)


def _write(path: Path, table: pl.DataFrame) -> None:
    with new_file(path) as partial:
        table.write_parquet(partial)
