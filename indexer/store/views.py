"""Single ads of the index, for people and for tests of what events did."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexer.events.content import Content
from indexer.store.records import decode_ad, decode_content, decode_key
from indexer.store.transaction import ReadTransaction
from serving.index.layout import STATUSES, ad_key, audience_key


@dataclass(frozen=True)
class AdView:
    """One ad as the index has it.

    Attributes:
        ad_id: the ad.
        key: the user's own; None where the ad only ever had a number.
        status: active, paused or deleted.
        status_version: version of the event that set it.
        content_version: version of the event that set the content.
        updated: unix seconds of the last change.
        content: account_id, conversion_type and text; None for an ad that came with a given SID.
        sids: semantic ID by tokenizer id, without generations that do not have the ad.
        audience: who may see it; {} is everybody.
    """

    ad_id: int
    key: str | None
    status: str
    status_version: int
    content_version: int
    updated: int
    content: Content | None
    sids: dict[str, tuple[int, ...]]
    audience: dict[str, Any]


@dataclass(frozen=True)
class Neighbour:
    """An active ad whose SID begins with the same `shared` codes; `key` is None where it has none."""

    ad_id: int
    shared: int
    key: str | None = None


def view_ad(reading: ReadTransaction, ad_id: int) -> AdView | None:
    """What the index has of an ad; None where it has nothing."""
    key = ad_key(ad_id)
    raw = reading.txn.get(key, db=reading.tables.ads)
    if raw is None:
        return None
    status, status_version, content_version, updated, audience, _ = decode_ad(raw)
    sids = {
        name: tuple(np.frombuffer(codes, "<i4").tolist())
        for name, handles in reading.tables.generations.items()
        if (codes := reading.txn.get(key, db=handles.codes)) is not None
    }
    return AdView(
        ad_id=ad_id,
        key=read_key(reading, ad_id),
        status=STATUSES[status],
        status_version=status_version,
        content_version=content_version,
        updated=updated,
        content=decode_content(reading.txn.get(key, db=reading.tables.content)),
        sids=sids,
        audience=read_audience(reading, audience),
    )


def read_audience(reading: ReadTransaction, number: int) -> dict[str, Any]:
    """The audience of a number as an object; {} is everybody."""
    raw = reading.txn.get(audience_key(number), db=reading.tables.audiences) if number else None
    return json.loads(bytes(raw)) if raw else {}


def read_key(reading: ReadTransaction, ad_id: int) -> str | None:
    """The user's own key of an ad; None where it has none."""
    table = reading.tables.keys
    return None if table is None else decode_key(reading.txn.get(ad_key(ad_id), db=table))


def find_neighbours(
    reading: ReadTransaction, ad_id: int, *, tokenizer_id: str, limit: int
) -> list[Neighbour]:
    """Active ads with the same SID, then those that share ever shorter prefixes with it, at most `limit`."""
    handles, found = reading.tables.generations.get(tokenizer_id), {ad_id: 0}
    raw = reading.txn.get(ad_key(ad_id), db=handles.codes) if handles else None
    if raw is None or handles is None:
        return []
    key = np.frombuffer(raw, "<i4").astype(">u4").tobytes()
    with reading.txn.cursor(db=handles.sids) as cursor:
        for shared in range(len(key) // 4, 0, -1):
            prefix = key[: 4 * shared]
            for sid, ad in cursor if cursor.set_range(prefix) else ():
                if not bytes(sid).startswith(prefix) or len(found) > limit:
                    break
                found.setdefault(int.from_bytes(ad, "big"), shared)
    return [Neighbour(ad, shared, key=read_key(reading, ad)) for ad, shared in found.items() if ad != ad_id]
