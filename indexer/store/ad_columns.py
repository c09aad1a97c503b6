"""What a bulk load is given: columns of ads, checked and in key order.

Letters: N ads, T levels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexer.events.event import CONTENT_FIELDS
from indexer.store.audience_numbers import canonical
from indexer.store.records import encode_content
from serving.index.audience import EVERYBODY, MAX_AUDIENCES, AudienceError
from serving.index.eligible import NO_ACCOUNT
from serving.index.layout import STATUSES
from serving.keys import hash_of, id_of

Content = Mapping[str, Any]
"""Columns account_id, conversion_type, text: N strings each, as list, array or polars Series. Where there is
more, `given`: N objects with some of `GIVEN_FIELDS`."""
_CHUNK = 1 << 16


@dataclass(frozen=True)
class AdColumns:
    """Ads in ascending order of their ids.

    Attributes:
        ad_ids: int64 [N], distinct.
        sids: int32 [N, T].
        statuses: uint8 [N], codes of `STATUSES`.
        versions: int64 [N], of both registers.
        content: columns in the order they came in; None where SIDs are all that is known.
        keys: the user's own, N strings in the order they came in; None where ids are numbers.
        order: int64 [N], position of each ad in those columns; None where they came sorted.
        audiences: canonical texts, N by ad; None where all are for everybody.
        accounts: int64 [N], `serving.keys.hash_of` the account of each.
    """

    ad_ids: np.ndarray
    sids: np.ndarray
    statuses: np.ndarray
    versions: np.ndarray
    content: Content | None
    keys: Any
    order: np.ndarray | None
    audiences: list[str] | None
    accounts: np.ndarray

    @classmethod
    def checked(
        cls,
        level_sizes: tuple[int, ...],
        *,
        ad_ids: np.ndarray,
        sids: np.ndarray,
        statuses: np.ndarray,
        versions: np.ndarray | int,
        content: Content | None,
        keys: Any = None,
        audiences: Sequence[object] | None = None,
    ) -> AdColumns:
        """Columns as `IndexStore.build` takes them; whether contents are strings is seen when they are read.

        Raises:
            ValueError: lengths, ids, statuses, codes or versions that cannot be.
        """
        versions = np.broadcast_to(np.asarray(versions, np.int64), (len(ad_ids),))
        if sids.shape != (len(ad_ids), len(level_sizes)) or len(statuses) != len(ad_ids):
            raise ValueError(
                f"expected SIDs {(len(ad_ids), len(level_sizes))} and as many statuses, got {sids.shape} and "
                f"{len(statuses)}"
            )
        codes = np.full(len(ad_ids), len(STATUSES), np.uint8)
        for code, status in enumerate(STATUSES):
            codes[statuses == status] = code
        levels = ((sids < 0) | (sids >= np.array(level_sizes))).any(axis=1)
        for bad, expected, values in (
            (ad_ids < 0, "an id in 0 .. 2**63 - 1", ad_ids),
            (codes == len(STATUSES), f"status {' | '.join(STATUSES)}", statuses),
            (levels, f"one code a level below {level_sizes}", sids),
            (versions < 0, "a version of 0 or more", versions),
        ):
            if bad.any():
                row = int(np.argmax(bad))
                raise ValueError(f"ad {ad_ids[row]}: expected {expected}, got {values[row].tolist()!r}")
        for name in CONTENT_FIELDS if content is not None else ():
            if name not in content or len(content[name]) != len(ad_ids):  # type: ignore[operator, index]
                raise ValueError(f"expected the content column {name} of {len(ad_ids)} ads")
        if keys is not None and len(keys) != len(ad_ids):
            raise ValueError(f"expected keys of {len(ad_ids)} ads, got {len(keys)}")
        texts, accounts = _audiences(ad_ids, audiences), _accounts(content, count=len(ad_ids))
        ad_ids, order = np.asarray(ad_ids, np.int64), None
        if (ad_ids[1:] < ad_ids[:-1]).any():
            order = np.argsort(ad_ids)
            ad_ids, sids, codes, versions = ad_ids[order], sids[order], codes[order], versions[order]
            accounts = accounts[order]
            texts = None if texts is None else [texts[i] for i in order.tolist()]
        twice = np.flatnonzero(ad_ids[1:] == ad_ids[:-1])
        if len(twice):
            raise ValueError(f"expected distinct ads, ad {ad_ids[twice[0]]} occurs more than once")
        return cls(
            ad_ids,
            sids,
            statuses=codes,
            versions=versions,
            content=content,
            keys=keys,
            order=order,
            audiences=texts,
            accounts=accounts,
        )

    def encoded_content(self) -> Iterator[bytes]:
        """Values of the table `content`, by ad; none without content.

        Raises:
            ValueError: a value that is no string.
        """
        for at, positions in self._chunks() if self.content is not None else ():
            columns = [_take(self.content[name], positions) for name in CONTENT_FIELDS]  # type: ignore[index]
            for name, column in zip(CONTENT_FIELDS, columns, strict=True):
                wrong = next((i for i, value in enumerate(column) if type(value) is not str), None)
                if wrong is not None:
                    ad_id, got = self.ad_ids[at[wrong]], column[wrong]
                    raise ValueError(f"content of ad {ad_id}: expected {name} as text, got {got!r}")
            given = _take(self.content["given"], positions) if "given" in self.content else [{}] * len(at)  # type: ignore[operator, index]
            for values, more in zip(zip(*columns, strict=True), given, strict=True):
                yield encode_content(dict(zip(CONTENT_FIELDS, values, strict=True)) | more)

    def encoded_keys(self) -> Iterator[bytes]:
        """Values of the table `keys`, by ad; none without keys.

        Raises:
            ValueError: a key that is none, or whose id is not that of its ad.
        """
        for at, positions in self._chunks() if self.keys is not None else ():
            for ad_id, key in zip(self.ad_ids[at].tolist(), _take(self.keys, positions), strict=True):
                if id_of(key) != ad_id:
                    raise ValueError(
                        f"ad {ad_id}: expected its key, got {key!a}, which is of ad {id_of(key)}"
                    )
                yield key.encode()

    def _chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places in the ads, and where these are in the columns as they came."""
        for start in range(0, len(self.ad_ids), _CHUNK):
            at = np.arange(start, min(start + _CHUNK, len(self.ad_ids)))
            yield at, at if self.order is None else self.order[at]


def _audiences(ad_ids: np.ndarray, given: Sequence[object] | None) -> list[str] | None:
    if given is None:
        return None
    if len(given) != len(ad_ids):
        raise ValueError(f"expected audiences of {len(ad_ids)} ads, got {len(given)}")
    known: dict[str, str] = {}
    found = []
    for ad_id, audience in zip(ad_ids.tolist(), given, strict=True):
        said = audience if isinstance(audience, str) else json.dumps(audience)
        if said not in known:
            try:
                known[said] = canonical(audience)
            except AudienceError as error:
                raise ValueError(f"ad {ad_id}: {error}") from error
            if len(known) > MAX_AUDIENCES and len(set(known.values()) - {EVERYBODY}) > MAX_AUDIENCES:
                raise ValueError(
                    f"ad {ad_id}: expected at most {MAX_AUDIENCES:,} distinct audiences, got more"
                )
        found.append(known[said])
    return found


def _accounts(content: Content | None, *, count: int) -> np.ndarray:
    if content is None:
        return np.full(count, NO_ACCOUNT, np.int64)
    known: dict[str, int] = {}
    found = np.empty(count, np.int64)
    for i, account in enumerate(content["account_id"]):
        if account not in known:
            known[account] = hash_of(account) if isinstance(account, str) else NO_ACCOUNT
        found[i] = known[account]
    return found


def _take(column: Any, positions: np.ndarray) -> list[Any]:
    if hasattr(column, "gather"):  # polars
        return column.gather(positions).to_list()
    if isinstance(column, np.ndarray):
        return column[positions].tolist()
    return [column[i] for i in positions.tolist()]
