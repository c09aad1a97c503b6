"""Single ads of the index, for people and for tests of what events did."""

from __future__ import annotations

from dataclasses import dataclass

import lmdb
import numpy as np

from indexer.store.batch import decode_content
from indexer.store.tables import Tables
from serving.index.layout import AD, STATUSES, ad_key


@dataclass(frozen=True)
class AdView:
    """One ad as the index has it; `sids` by tokenizer id, without generations that do not have it."""

    ad_id: int
    status: str
    status_version: int
    content_version: int
    updated: int
    content: dict[str, str] | None
    sids: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Neighbour:
    """An active ad whose SID begins with the same `shared` codes."""

    ad_id: int
    shared: int


def view_ad(transaction: lmdb.Transaction, tables: Tables, ad_id: int) -> AdView | None:
    """What the index has of an ad; None where it has nothing."""
    key = ad_key(ad_id)
    raw = transaction.get(key, db=tables.ads)
    if raw is None:
        return None
    status, status_version, content_version, updated = np.frombuffer(raw, AD)[0].tolist()
    sids = {
        name: tuple(np.frombuffer(codes, "<i4").tolist())
        for name, handles in tables.generations.items()
        if (codes := transaction.get(key, db=handles.codes)) is not None
    }
    content = decode_content(transaction.get(key, db=tables.content))
    return AdView(ad_id, STATUSES[status], status_version, content_version, updated, content, sids)


def find_neighbours(
    transaction: lmdb.Transaction, tables: Tables, ad_id: int, *, tokenizer_id: str, limit: int
) -> list[Neighbour]:
    """Active ads with the same SID, then those that share ever shorter prefixes with it, at most `limit`."""
    handles, found = tables.generations.get(tokenizer_id), {ad_id: 0}
    raw = transaction.get(ad_key(ad_id), db=handles.codes) if handles else None
    if raw is None or handles is None:
        return []
    key = np.frombuffer(raw, "<i4").astype(">u4").tobytes()
    with transaction.cursor(db=handles.sids) as cursor:
        for shared in range(len(key) // 4, 0, -1):
            prefix = key[: 4 * shared]
            for sid, ad in cursor if cursor.set_range(prefix) else ():
                if not bytes(sid).startswith(prefix) or len(found) > limit:
                    break
                found.setdefault(int.from_bytes(ad, "big"), shared)
    return [Neighbour(ad, shared) for ad, shared in found.items() if ad != ad_id]
