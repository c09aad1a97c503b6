"""Brings all tables to what a batch made of its ads: each ad is encoded once and written once.

Letters: N ads with new content, T levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexer.encode.encoder import Encoder, encode_contents
from indexer.events.content import Content
from indexer.store.records import encode_ad, encode_content
from indexer.store.registers import AdState
from indexer.store.transaction import WriteTransaction
from serving.index.layout import ACTIVE, ad_key, change_dtype, number_key, sid_key


@dataclass
class AdChange:
    """An ad of the batch.

    Attributes:
        before: as it was; None where it was unknown.
        state: as it is now.
        content_read: `state` has the content that is stored, or a new one.
        new_content: it is to be encoded and stored.
    """

    before: AdState | None
    state: AdState | None
    content_read: bool = False
    new_content: bool = False


def write_changes(
    writing: WriteTransaction, changes: Mapping[int, AdChange], *, encoders: Mapping[str, Encoder], now: int
) -> None:
    """Write ads, their content, and in every generation their SIDs and the rows that readers follow.

    Args:
        writing: its `meta` has the sequence number of this transaction already.
        changes: ads that are different now, by id, ascending.
        encoders: by tokenizer id; a generation without one keeps the SIDs it has.
        now: unix seconds.

    Raises:
        IndexStoreError: an encoder failed.
    """
    states = {ad_id: change.state for ad_id, change in changes.items() if change.state is not None}
    for ad_id, state in states.items():
        value = encode_ad(
            state.status,
            status_version=state.status_version,
            content_version=state.content_version,
            updated=now,
            audience=writing.audiences.number_of(state.audience),
            account=state.account,
        )
        writing.txn.put(ad_key(ad_id), value, db=writing.tables.ads)
        before = changes[ad_id].before
        if state.key is not None and (before is None or before.key is None):
            writing.txn.put(ad_key(ad_id), state.key.encode(), db=writing.tables.keys)
    contents = {a: s.content for a, s in states.items() if changes[a].new_content and s.content is not None}
    for ad_id, content in contents.items():
        writing.txn.put(ad_key(ad_id), encode_content(content), db=writing.tables.content)
    for name in writing.meta.generations:
        _write_generation(writing, name, changes=changes, contents=contents, encoder=encoders.get(name))


def _write_generation(
    writing: WriteTransaction,
    name: str,
    *,
    changes: Mapping[int, AdChange],
    contents: dict[int, Content],
    encoder: Encoder | None,
) -> None:
    generation = writing.meta.generations[name]
    new: dict[int, np.ndarray] = {}
    if encoder is not None and contents:
        # What a ready generation cannot encode was refused; one that is being filled may want something else.
        taken = {a: c for a, c in contents.items() if generation.ready or encoder.refusal(c) is None}
        if taken:
            sids = encode_contents(encoder, list(taken), contents=list(taken.values()))
            new = dict(zip(taken, sids, strict=True))
        if unknown := sum(not encoder.knows(contents[ad_id]["text"]) for ad_id in new):
            writing.count(f"unknown_text.{name}", unknown)
    elif contents and generation.ready:
        writing.count(f"unencoded.{name}", len(contents))
    rows = []
    for ad_id, change in changes.items():
        # What an unfinished generation holds is out of date if it was not encoded anew: it is filled later.
        forget = not generation.ready and ad_id not in new
        row = _write_sid(writing, name, ad_id=ad_id, change=change, new=new.get(ad_id), forget=forget)
        if row is not None:
            rows.append(row)
    if rows and generation.ready:
        value = np.array(rows, change_dtype(len(generation.level_sizes))).tobytes()
        key = number_key(writing.meta.sequence)
        writing.txn.put(key, value, db=writing.tables.generations[name].changes, append=True)
        writing.log_rows[name] += len(rows)


def _write_sid(
    writing: WriteTransaction,
    name: str,
    *,
    ad_id: int,
    change: AdChange,
    new: np.ndarray | None,
    forget: bool,
) -> tuple[Any, ...] | None:
    """Bring one ad of one generation up to date; its row of the change log where readers see a change."""
    tables, key = writing.tables.generations[name], ad_key(ad_id)
    raw = writing.txn.get(key, db=tables.codes)
    old = np.frombuffer(raw, "<i4") if raw else None
    codes = old if new is None else new
    if forget and change.new_content:
        codes = None
    moved = old is not codes and (old is None or codes is None or not np.array_equal(old, codes))
    was_active = old is not None and change.before is not None and change.before.status == ACTIVE
    active = codes is not None and change.state is not None and change.state.status == ACTIVE
    if old is not None and was_active and (moved or not active):
        writing.txn.delete(sid_key(old), key, db=tables.sids)
    if codes is not None and active and (moved or not was_active):
        writing.txn.put(sid_key(codes), key, db=tables.sids)
    if moved and codes is not None:
        writing.txn.put(key, codes.astype("<i4").tobytes(), db=tables.codes)
    elif moved:
        writing.txn.delete(key, db=tables.codes)
    state, before = change.state, change.before
    traits = state and (state.audience, state.account)
    same = before is not None and traits == (before.audience, before.account)
    if codes is None or state is None or (not moved and active == was_active and same):
        return None
    return ad_id, active, 1, codes, writing.audiences.number_of(state.audience), state.account
