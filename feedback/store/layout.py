"""How the store lies on disk: the one place that the writer and the readers share.

    store/data.mdb      LMDB; one writer
    store/writer.lock   held by the writer

Sub-databases, one each; numbers in keys are big-endian, so that LMDB's byte order is numeric order:

    meta        b"state": JSON, see `feedback.store.meta.Meta`
    offsets     name of a source -> offset of its last event that took effect
    requests    digest of the request id -> `feedback.store.requests.RequestState`
    records     the same -> served record, as it came
    due         milliseconds, digest -> nothing: when a request is looked at next
    samples     sequence number -> JSON, see `feedback.store.samples.JoinedSample`
    histories   user id -> `EVENT` rows, oldest first
    rejected    number -> JSON of what was not taken, the newest ones
"""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np

FORMAT = 1
STORE = "store"
TABLES = ("meta", "offsets", "requests", "records", "due", "samples", "histories", "rejected")

EVENT = np.dtype([("timestamp", "<i8"), ("ad_id", "<i8"), ("behavior", "i1"), ("request", "S8")])
"""One event of a history: unix seconds, ad, code of `serving.model.features.BEHAVIORS`, and of which request
it is, the beginning of its digest: of one request, ad and behavior there is one."""


class FeedbackStoreError(RuntimeError):
    """The store is missing, damaged, in use by another writer, or of a format this code does not read."""


def number_key(number: int) -> bytes:
    """Key of a sequence number, a user or a time."""
    return number.to_bytes(8, "big")


def number_of(key: bytes) -> int:
    """Inverse of `number_key`."""
    return int.from_bytes(key[:8], "big")


def open_environment(folder: Path, *, readonly: bool, map_size: int = 1 << 36) -> lmdb.Environment:
    """LMDB of a store; once a process.

    Raises:
        FeedbackStoreError: there is none (of readers), or it cannot be opened.
    """
    path = folder / STORE
    if readonly and not (path / "data.mdb").is_file():
        raise FeedbackStoreError(
            f"{folder}: expected a feedback store, found none; python -m feedback makes it"
        )
    try:
        environment = lmdb.open(
            str(path),
            map_size=map_size,
            max_dbs=len(TABLES),
            readonly=readonly,
            create=not readonly,
            max_readers=126,
        )
        environment.reader_check()  # the table of readers has 126 places; those of killed ones count
        return environment
    except lmdb.Error as error:
        raise FeedbackStoreError(f"{folder}: cannot be opened: {error}") from error
