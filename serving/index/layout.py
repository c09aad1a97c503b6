"""How the index lies in LMDB: the one place that the writer (indexer) and the readers (serving) share.

Sub-databases: `meta` (JSON values), `ads` (ad -> SID, status, version) and `sids` (SID -> its active ads).
Numbers in keys are big-endian so that LMDB's byte order is numeric order.
"""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np

FORMAT_VERSION = 1
STATUSES = ("active", "paused", "deleted")
ACTIVE = STATUSES.index("active")

META, ADS, SIDS = b"meta", b"ads", b"sids"


class IndexStoreError(RuntimeError):
    """The index is missing, corrupted, or of a format this code does not read."""


def record_dtype(levels: int) -> np.dtype:
    """Value of `ads`: status u1, version of the ad i8 (a later one wins), codes i4 [T]."""
    return np.dtype([("status", "u1"), ("version", "<i8"), ("codes", "<i4", (levels,))])


def ad_key(ad_id: int) -> bytes:
    """Key of `ads`, and value of `sids`."""
    return int(ad_id).to_bytes(8, "big")


def sid_key(codes: np.ndarray) -> bytes:
    """Key of `sids`."""
    return np.asarray(codes, ">u4").tobytes()


def open_environment(path: Path, *, readonly: bool, map_size: int = 1 << 36) -> lmdb.Environment:
    """Open the LMDB file; the map is sparse, so its size costs no memory or disk.

    Raises:
        IndexStoreError: nothing is there (readonly), LMDB refuses the file, or its end is missing.
    """
    if readonly and not (path / "data.mdb").is_file():
        raise IndexStoreError(
            f"index {path}: expected a built index (data.mdb), found none; run `make index`"
        )
    try:
        environment = lmdb.open(
            str(path),
            readonly=readonly,
            map_size=map_size,
            max_dbs=4,
            subdir=True,
            create=not readonly,
            readahead=False,
        )
    except lmdb.Error as error:
        raise IndexStoreError(f"index {path}: LMDB cannot open it: {error}") from error
    # A read behind the end of a truncated file would end the process (SIGBUS).
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    actual = (path / "data.mdb").stat().st_size
    if readonly and actual < expected:
        environment.close()
        raise IndexStoreError(
            f"index {path}: expected {expected} bytes in data.mdb, got {actual}: it is truncated"
        )
    return environment
