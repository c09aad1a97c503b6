"""What is known of a request besides its user, as where it is shown: from a value to a code.

Training encodes a column of the events with it, serving an optional input of the request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

RESERVED = frozenset(
    (
        "history_ad_ids",
        "history_behaviors",
        "history_timestamps",
        "profile",
        "num_ads",
        "exclude_ad_ids",
        "exclude_account_ids",
        "attributes",
        "timestamp",
    )
)
"""Inputs that a request has anyway."""

_NAME = re.compile("[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, kw_only=True)
class RequestFeature:
    """One categorical feature of a request. Code 0 is unknown: left out, or a value that is not declared.

    Attributes:
        name: of the input at serving.
        column: of the events in the logs.
        values: texts; `values[i]` has the code i + 1. Empty where `size` is given.
        size: whole numbers 0 .. size - 1; v has the code v + 1. 0 where `values` are given.
    """

    name: str
    column: str
    values: tuple[str, ...] = ()
    size: int = 0

    def __post_init__(self) -> None:
        """Refuse a name that no input can have, and anything but values or a size."""
        if not _NAME.fullmatch(self.name) or self.name in RESERVED:
            raise ValueError(
                f"request feature: expected a name {_NAME.pattern} other than {', '.join(sorted(RESERVED))}, "
                f"got {self.name!r}"
            )
        if bool(self.values) == bool(self.size) or self.size < 0:
            raise ValueError(
                f"request feature {self.name}: expected values or a size >= 1, got values "
                f"{list(self.values)} and size {self.size}"
            )
        if len(set(self.values)) != len(self.values):
            raise ValueError(
                f"request feature {self.name}: expected distinct values, got {list(self.values)}"
            )

    @property
    def codes(self) -> int:
        """Number of codes, unknown included."""
        return 1 + (len(self.values) or self.size)

    @property
    def texts(self) -> tuple[str, ...]:
        """Values as audiences name them: numbers in decimal."""
        return self.values or tuple(map(str, range(self.size)))

    def code(self, value: bytes | str | int) -> int:
        """Code of a value as a client sends it: text (UTF-8) where there are `values`, else a number."""
        if self.size:
            return int(value) + 1 if 0 <= int(value) < self.size else 0
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        return self.values.index(text) + 1 if text in self.values else 0
