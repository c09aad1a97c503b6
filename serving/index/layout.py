"""How the index lies on disk: the one place that the writer (indexer) and the readers (serving) share.

    store/data.mdb                      LMDB, the durable truth; one writer
    store/writer.lock                   held by the writer
    base/<tokenizer id>/<sequence>/     arrays of one generation as of a sequence number, memory-mapped by
                                        readers; base.json is written last
    heartbeat                           touched by a running sidecar; its age tells whether one is there

A generation is the semantic IDs that one tokenizer gives to the ads. All generations lie in one store, so
that one transaction changes them all. Every transaction that changes an ad gets the next sequence number.

Sub-databases, one each:

    meta        b"index": JSON, see `StoreMeta`; b"counters": JSON
    ads         ad_key -> `AD` record
    content     ad_key -> JSON of account_id, conversion_type, text; absent for ads that came with given SIDs
    keys        ad_key -> the user's own key of the ad, UTF-8; absent where ids are numbers, and all of it in
                an index from before there were keys
    audiences   number (4 bytes) -> canonical text of an audience, see `serving.index.audience`; what no ad
                has any more may be there still, and all of it is absent in an index of format 2
    offsets     name of a source -> offset of its last event that took effect
    dead        number -> JSON of an event that could not be applied
    waiting     ad_key -> numbers in `dead` that are tried again when that ad changes

and for every generation (names as `generation_tables` gives them):

    codes       ad_key -> int32 [T]
    sids        sid_key -> ad_keys of its active ads
    changes     sequence number -> `change_dtype` rows of that transaction, since the base

Numbers in keys are big-endian so that LMDB's byte order is numeric order.

Format 2 knows no audiences and no accounts: `AD_2` in place of `AD`, and rows of `changes` without them.
Readers read it as it is, a writer that opens it makes it format 3 (`indexer.store.upgrade`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import lmdb
import numpy as np

FORMAT_VERSION = 3
READABLE = (2, FORMAT_VERSION)
STATUSES = ("active", "paused", "deleted")
ACTIVE = STATUSES.index("active")

META, ADS, CONTENT, OFFSETS, DEAD, WAITING = b"meta", b"ads", b"content", b"offsets", b"dead", b"waiting"
KEYS, AUDIENCES = b"keys", b"audiences"
INDEX_KEY, COUNTERS_KEY = b"index", b"counters"
STORE, BASE, BASE_MANIFEST, HEARTBEAT, LOCK = "store", "base", "base.json", "heartbeat", "writer.lock"
MAX_GENERATIONS = 8

AD_2 = np.dtype([("status", "u1"), ("status_version", "<i8"), ("content_version", "<i8"), ("updated", "<i8")])
AD = np.dtype([*AD_2.descr, ("audience", "<u4"), ("account", "<i8")])
"""Value of `ads`: code of `STATUSES`, versions of the last event that set the status and the content, unix
seconds of the last change, number of its audience (0 is everybody), `serving.keys.hash_of` its account."""


class IndexStoreError(RuntimeError):
    """The index is missing, corrupted, or of a format this code does not read."""


@dataclass(frozen=True)
class Generation:
    """One tokenizer's semantic IDs.

    Attributes:
        level_sizes: codebook size of each level.
        ready: complete, so that readers may use it.
        base: sequence number of its arrays under base/; None before the first are written.
        log_start: changes of every transaction after this sequence number are in `changes`; a reader whose
            snapshot is older starts anew from the base.
    """

    level_sizes: tuple[int, ...]
    ready: bool = False
    base: int | None = None
    log_start: int = 0


@dataclass(frozen=True)
class StoreMeta:
    """What b"index" holds.

    Attributes:
        sequence: number of the last transaction that changed an ad.
        generations: by tokenizer id.
        audiences: sequence number at which the table of audiences last changed; 0 where it never did.
        format: of the tables and rows.
    """

    sequence: int = 0
    generations: dict[str, Generation] = field(default_factory=dict)
    audiences: int = 0
    format: int = FORMAT_VERSION

    def encode(self) -> bytes:
        """JSON."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def decode(cls, raw: bytes | None, *, where: Path) -> StoreMeta:
        """Inverse of `encode`.

        Raises:
            IndexStoreError: nothing there, unreadable, or another format.
        """
        try:
            values = json.loads(bytes(raw or b"null"))
        except ValueError as error:
            raise IndexStoreError(f"index {where}: expected JSON in `meta`, got: {error}") from error
        if not isinstance(values, dict):
            raise IndexStoreError(
                f"index {where}: expected a complete build, but it carries no `meta` record"
            )
        if values.get("format") not in READABLE:
            expected = " or ".join(map(str, READABLE))
            raise IndexStoreError(
                f"index {where}: expected format {expected}, got {values.get('format')}; build it anew"
            )
        try:
            generations = {
                name: Generation(tuple(v["level_sizes"]), v["ready"], v["base"], v["log_start"])
                for name, v in values["generations"].items()
            }
            return cls(
                int(values["sequence"]), generations, int(values.get("audiences", 0)), int(values["format"])
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IndexStoreError(f"index {where}: unreadable `meta` record: {error!r}") from error


@dataclass(frozen=True)
class GenerationTables:
    """Names of a generation's sub-databases."""

    codes: bytes
    sids: bytes
    changes: bytes


def generation_tables(tokenizer_id: str) -> GenerationTables:
    """Sub-databases of the generation of a tokenizer."""
    return GenerationTables(*(f"{kind}/{tokenizer_id}".encode() for kind in ("codes", "sids", "changes")))


def change_dtype(levels: int, *, format: int = FORMAT_VERSION) -> np.dtype:
    """Row of `changes`: the ad as it is after the transaction. `active` is whether it may be served.

    `known` is 0 when the ad was forgotten (a deleted ad whose time to be remembered is over). `audience` and
    `account` are as in `AD`.
    """
    row: list[tuple] = [("ad_id", "<i8"), ("active", "u1"), ("known", "u1"), ("codes", "<i4", (levels,))]
    return np.dtype(row if format < 3 else [*row, ("audience", "<u4"), ("account", "<i8")])


def number_key(number: int) -> bytes:
    """Key of `changes` (sequence numbers) and `dead`."""
    return int(number).to_bytes(8, "big")


def audience_key(number: int) -> bytes:
    """Key of `audiences`."""
    return int(number).to_bytes(4, "big")


def ad_key(ad_id: int) -> bytes:
    """Key of `ads`, `content`, `keys`, `codes` and `waiting`, and value of `sids`."""
    return int(ad_id).to_bytes(8, "big")


def sid_key(codes: np.ndarray) -> bytes:
    """Key of `sids`."""
    return np.asarray(codes, ">u4").tobytes()


def base_folder(path: Path, tokenizer_id: str, *, sequence: int) -> Path:
    """Where the arrays of a generation as of a sequence number lie."""
    return path / BASE / tokenizer_id / str(sequence)


def open_environment(
    path: Path, *, readonly: bool, map_size: int = 1 << 36, sync: bool = True
) -> lmdb.Environment:
    """Open the store of the index at `path`; the map is sparse, so its size costs no memory or disk.

    Raises:
        IndexStoreError: nothing is there (readonly), LMDB refuses the file, or its end is missing.
    """
    file = path / STORE / "data.mdb"
    if readonly and not file.is_file():
        raise IndexStoreError(
            f"index {path}: expected a built index ({file.name}), found none; run `make index`"
        )
    try:
        environment = lmdb.open(
            str(file.parent),
            readonly=readonly,
            map_size=map_size,
            max_dbs=8 + 3 * MAX_GENERATIONS,
            subdir=True,
            create=not readonly,
            readahead=False,
            sync=sync,
        )
    except lmdb.Error as error:
        raise IndexStoreError(f"index {path}: LMDB cannot open it: {error}") from error
    environment.reader_check()  # the table of readers has 126 places; those of dead processes count
    # A read behind the end of a truncated file would end the process (SIGBUS).
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    actual = file.stat().st_size
    if actual < expected:
        environment.close()
        raise IndexStoreError(
            f"index {path}: expected {expected} bytes in {file.name}, got {actual}: it is truncated"
        )
    return environment


def ready_generations(path: Path) -> frozenset[str]:
    """Tokenizer ids of the generations that readers may use; none where there is no index.

    Raises:
        IndexStoreError: there is one, but it cannot be read.
    """
    if not (path / STORE / "data.mdb").exists():
        return frozenset()
    environment = open_environment(path, readonly=True)
    try:
        with environment.begin() as transaction:
            table = environment.open_db(META, txn=transaction, create=False)
            raw = transaction.get(INDEX_KEY, db=table)
            meta = StoreMeta.decode(raw, where=path)
    except lmdb.Error as error:
        raise IndexStoreError(f"index {path}: cannot be read: {error}") from error
    finally:
        environment.close()
    return frozenset(name for name, generation in meta.generations.items() if generation.ready)
