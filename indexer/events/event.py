"""Ad events: what changes the index while it serves, parsed from JSON that nobody has checked before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NoReturn, get_args

Kind = Literal["create", "update", "pause", "resume", "delete"]
Reason = Literal["invalid_json", "missing_field", "unknown_field", "wrong_type", "out_of_range", "too_long"]
KINDS: tuple[str, ...] = get_args(Kind)
CONTENT_FIELDS = ("account_id", "conversion_type", "text")
_FIELDS = ("kind", "ad_id", "version", *CONTENT_FIELDS)
_NUMBER_BOUND = 1 << 63


class EventError(ValueError):
    """An event that cannot be applied, whatever the index holds.

    Attributes:
        reason: one of `Reason`, for counters and dead letters.
        message: what was expected and what came.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        """Keep both; `str()` is the message."""
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class EventLimits:
    """Longest event in bytes, longest text and longest account_id or conversion_type in characters."""

    event_bytes: int = 1 << 20
    text: int = 65_536
    identifier: int = 256


@dataclass(frozen=True)
class AdEvent:
    """One change of one ad.

    Attributes:
        kind: what happened.
        ad_id: 0 .. 2**63 - 1.
        version: of the ad, 0 .. 2**63 - 1; a later one wins, in whatever order they arrive.
        account_id: set by create, may be set by update.
        conversion_type: same.
        text: same.
    """

    kind: Kind
    ad_id: int
    version: int
    account_id: str | None = None
    conversion_type: str | None = None
    text: str | None = None

    @property
    def content(self) -> dict[str, str]:
        """Content fields that the event sets."""
        values = {name: getattr(self, name) for name in CONTENT_FIELDS}
        return {name: value for name, value in values.items() if value is not None}

    def fields(self) -> dict[str, Any]:
        """Fields that are set, as `parse_event` takes them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


DEFAULT_LIMITS = EventLimits()


def parse_event(raw: bytes | str | Mapping[str, Any], *, limits: EventLimits = DEFAULT_LIMITS) -> AdEvent:
    """Parse one event: a JSON object in UTF-8, or an object that is parsed already.

    Raises:
        EventError: it is not an event; nothing else is raised, whatever `raw` holds.
    """
    values = raw if isinstance(raw, Mapping) else _parse_json(raw, limits)
    unknown = [name for name in values if name not in _FIELDS]
    if unknown:
        _fail("unknown_field", f"expected the fields {', '.join(_FIELDS)}, got {_short(unknown[0])}")
    kind = _text(values, "kind", longest=limits.identifier)
    if kind not in KINDS:
        _fail("out_of_range", f"kind: expected {' | '.join(KINDS)}, got {_short(kind)}")
    ad_id, version = _number(values, "ad_id"), _number(values, "version")
    given = [name for name in CONTENT_FIELDS if name in values]
    if kind == "create" and len(given) < len(CONTENT_FIELDS):
        missing = next(name for name in CONTENT_FIELDS if name not in given)
        _fail("missing_field", f"create: expected {', '.join(CONTENT_FIELDS)}; {missing} is missing")
    if kind == "update" and not given:
        _fail("missing_field", f"update: expected at least one of {', '.join(CONTENT_FIELDS)}, got none")
    if kind not in ("create", "update") and given:
        _fail("unknown_field", f"{kind}: expected no content, got {given[0]}")
    longest = {"text": limits.text}
    content = {name: _text(values, name, longest=longest.get(name, limits.identifier)) for name in given}
    return AdEvent(kind, ad_id, version, **content)  # type: ignore[arg-type]


def _parse_json(raw: bytes | str, limits: EventLimits) -> dict[str, Any]:
    if not isinstance(raw, str | bytes | bytearray | memoryview):
        _fail("wrong_type", f"expected a JSON object, got {type(raw).__name__}")
    # A character takes at least one byte, so this needs no encoding of a text that is too long anyway.
    size = raw.nbytes if isinstance(raw, memoryview) else len(raw)
    if size > limits.event_bytes:
        _fail("too_long", f"expected at most {limits.event_bytes} bytes, got {size}")
    try:
        if isinstance(raw, str):
            size = len(raw.encode())
            if size > limits.event_bytes:
                _fail("too_long", f"expected at most {limits.event_bytes} bytes, got {size}")
        else:
            raw = bytes(raw).decode()
        values = json.loads(raw, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except EventError:
        raise
    except UnicodeError as error:
        _fail("invalid_json", f"expected UTF-8: {_short(str(error))}")
    except RecursionError:
        _fail("invalid_json", "expected one flat object, got one that is nested too deeply")
    except ValueError as error:
        _fail("invalid_json", f"expected JSON: {_short(str(error))}")
    if not isinstance(values, dict):
        _fail("wrong_type", f"expected a JSON object, got {type(values).__name__}")
    return values


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        _fail("invalid_json", f"expected every field once, got {_short(twice)} twice")
    return values


def _no_constant(name: str) -> NoReturn:
    _fail("invalid_json", f"expected JSON, got {name}")


def _number(values: Mapping[str, Any], name: str) -> int:
    value = _present(values, name)
    if type(value) is not int:  # bool is an int to isinstance
        _fail("wrong_type", f"{name}: expected an integer, got {type(value).__name__} {_short(value)}")
    if not 0 <= value < _NUMBER_BOUND:
        _fail("out_of_range", f"{name}: expected 0 .. 2**63 - 1, got {_short(value)}")
    return value


def _text(values: Mapping[str, Any], name: str, *, longest: int) -> str:
    value = _present(values, name)
    if type(value) is not str:
        _fail("wrong_type", f"{name}: expected a string, got {type(value).__name__} {_short(value)}")
    if len(value) > longest:
        _fail("too_long", f"{name}: expected at most {longest} characters, got {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        _fail("invalid_json", f"{name}: expected text, got a lone surrogate at {error.start}")
    return value


def _present(values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        _fail("missing_field", f"expected the field {name}, got {_short(sorted(values, key=str))}")
    return values[name]


def _short(value: object) -> str:
    # ASCII, so that it can be printed and stored. A number of thousands of digits has no repr.
    if type(value) is int and abs(value) >= 1 << 128:
        return f"a number of {value.bit_length()} bits"
    try:
        text = ascii(value)
    except Exception:  # any object may come in a mapping
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fail(reason: Reason, message: str) -> NoReturn:
    raise EventError(reason, message)
