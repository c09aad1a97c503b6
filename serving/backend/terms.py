"""Terms of a request on their way through the models: one tensor of numbers, made at the entry.

Letters: P profile columns, Q request features, A attributes, E excluded accounts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from serving.backend.request import RequestError, RequestLimits
from serving.index.audience import MAX_TEXT
from serving.index.eligible import NO_TERMS, Terms
from serving.keys import hash_of
from serving.model.request_features import RequestFeature

Attributes = Mapping[str, tuple[str, ...] | Literal["any"]]
"""Attributes of a request by name: their values, or "any" text."""

_UNKNOWN = 0  # as the hash of a value
_FIRST = 2  # time and cap come before the columns


class TermColumns:
    """Columns of a request that audiences may name.

    Attributes:
        names: of the profile, then request features, then attributes.
    """

    def __init__(
        self,
        profile: Mapping[str, tuple[str, ...]],
        *,
        request_features: tuple[RequestFeature, ...],
        attributes: Attributes,
    ) -> None:
        """Hash what there is to hash.

        Args:
            profile: categories of each column; code i is category i - 1, code 0 is unknown.
            request_features: see `RequestFeature`.
            attributes: of the tensor `attributes`, in this order.

        Raises:
            ValueError: a name stands for two columns.
        """
        self.names = (*profile, *(f.name for f in request_features), *attributes)
        twice = {name for name in self.names if self.names.count(name) > 1}
        if twice:
            raise ValueError(
                f"serving.attributes: expected names that no profile column or request feature has, got "
                f"{', '.join(sorted(twice))}"
            )
        values = [*profile.values(), *(feature.texts for feature in request_features)]
        self._hashes = [np.array([_UNKNOWN, *map(hash_of, v)], np.int64) for v in values]
        self._attributes = attributes

    def pack(
        self,
        codes: np.ndarray,
        attributes: Sequence[bytes],
        *,
        now: int,
        max_per_account: int,
        excluded_accounts: Sequence[bytes],
    ) -> np.ndarray:
        """Numbers int64 [2 + P + Q + A + E] of one row of a request.

        Args:
            codes: int [P + Q], 0 is unknown.
            attributes: A texts in UTF-8; empty is unknown, and so is one that is not among its values.
            now: time of the request, unix seconds.
            max_per_account: most ads of one account; 0 for any number.
            excluded_accounts: E account ids in UTF-8; empty is padding.

        Raises:
            RequestError: another number of attributes, or one that is no text or too long.
        """
        if len(attributes) != len(self._attributes):
            raise RequestError(
                f"attributes: expected {len(self._attributes)} values ({', '.join(self._attributes)}), got "
                f"{len(attributes)}"
            )
        found = [int(of_column[code]) for of_column, code in zip(self._hashes, codes, strict=True)]
        for (name, legal), value in zip(self._attributes.items(), attributes, strict=True):
            text = _text(f"attributes ({name})", value)
            found.append(hash_of(text) if legal == "any" or text in legal else _UNKNOWN)
        accounts = [hash_of(_text("exclude_account_ids", a)) for a in excluded_accounts if a]
        return np.array([now, max_per_account, *found, *sorted(set(accounts))], np.int64)

    def unpack(self, row: np.ndarray) -> tuple[Terms, int]:
        """Terms of a row, filled up with 0 or not, and its `max_per_account`."""
        numbers = row.tolist()
        last = _FIRST + len(self.names)
        values, accounts = numbers[_FIRST:last], numbers[last:]
        known = {name: v for name, v in zip(self.names, values, strict=True) if v != _UNKNOWN}
        return Terms(known, numbers[0], tuple(a for a in accounts if a)), numbers[1]


def unpack_terms(
    columns: TermColumns | None, packed: np.ndarray | None, *, rows: int
) -> list[tuple[Terms, int]]:
    """Terms and `max_per_account` of each row, as `TermColumns.pack` made them.

    Args:
        columns: None where requests have no terms: they are `NO_TERMS` then.
        packed: int64 [b, n].
        rows: b.
    """
    if columns is None or packed is None:
        return [(NO_TERMS, 0)] * rows
    return [columns.unpack(row) for row in packed]


def check_cap(cap: int | None, *, terms: TermColumns | None) -> int:
    """Request parameter `max_per_account`; 0 where it is absent.

    Raises:
        RequestError: the server does not tell accounts apart.
    """
    if cap is not None and terms is None:
        raise RequestError("parameter max_per_account: expected a server with serving.audience on, got off")
    return cap or 0


def check_accounts(accounts: Sequence[bytes], limits: RequestLimits) -> Sequence[bytes]:
    """Excluded accounts of a row as they are.

    Raises:
        RequestError: too many.
    """
    if len(accounts) > limits.max_exclude:
        raise RequestError(
            f"exclude_account_ids: expected at most {limits.max_exclude} accounts, got {len(accounts)}"
        )
    return accounts


def _text(name: str, value: bytes | str) -> str:
    text = value if isinstance(value, str) else bytes(value).decode(errors="replace")
    if len(text) > MAX_TEXT:
        raise RequestError(f"{name}: expected a text of at most {MAX_TEXT} characters, got {len(text)}")
    return text
