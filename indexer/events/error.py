"""What is wrong with an event, whatever the index holds."""

from __future__ import annotations

from typing import Literal, get_args

Reason = Literal[
    "invalid_json",
    "missing_field",
    "unknown_field",
    "wrong_type",
    "out_of_range",
    "too_long",
    "wrong_audience",
]
MALFORMED: tuple[Reason, ...] = get_args(Reason)


class EventError(ValueError):
    """An event that cannot be applied.

    Attributes:
        reason: one of `Reason`, or `internal` for a fault of ours; for counters and dead letters.
        message: what was expected and what came.
    """

    def __init__(self, reason: Reason | Literal["internal"], message: str) -> None:
        """Keep both; `str()` is the message."""
        super().__init__(message)
        self.reason, self.message = reason, message


def shown(value: object) -> str:
    """A value for a message, at most 80 characters, ASCII, so that it can be printed and stored."""
    if type(value) is int and abs(value) >= 1 << 128:  # one of thousands of digits has no repr
        return f"a number of {value.bit_length()} bits"
    try:
        text = ascii(value)
    except RecursionError:
        return f"a {type(value).__name__}, nested too deeply"
    return text if len(text) <= 80 else f"{text[:77]}..."
