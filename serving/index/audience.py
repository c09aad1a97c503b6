"""Who may see an ad: predicates over columns of a request, and a flight; as text, checked and canonical.

An audience is a conjunction: of each column that it names the request must have a value, one that is in a set
or one that is not, and the request's time must lie in [start, end). In JSON:

    {"where": {"age": {"in": ["25-34", "35-44"]}, "placement": {"not_in": ["story"]}},
     "start": 1714521600, "end": 1717200000}

All parts may be left out; {} is everybody.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

MAX_COLUMNS, MAX_VALUES, MAX_TEXT = 16, 1024, 256
MAX_AUDIENCES = 100_000
"""Distinct audiences of an index, flights included."""
MAX_TIME = 1 << 40
MAX_ATTRIBUTES = 64
ATTRIBUTES = "attributes.json"
"""Beside CURRENT: `serving.attributes` of the preset that was exported, which sidecars read."""
EVERYBODY = ""  # canonical text of the audience that restricts nothing
_NAME = re.compile("[a-z][a-z0-9_]{0,63}")
_KEYS, _TESTS = ("where", "start", "end"), ("in", "not_in")

Columns = Mapping[str, Collection[str] | None]
"""Columns that audiences may name, with their values; None where any text is one."""


class AudienceError(ValueError):
    """An audience is malformed, or names what is not there; the message says what was expected."""


@dataclass(frozen=True)
class Rule:
    """What an audience wants of one column.

    Attributes:
        values: ascending, distinct, at least one.
        negated: a value other than these, else one of these.
    """

    values: tuple[str, ...]
    negated: bool


@dataclass(frozen=True)
class Audience:
    """A conjunction of rules by column (ascending), and a flight in unix seconds; None is without a bound."""

    rules: tuple[tuple[str, Rule], ...] = ()
    start: int | None = None
    end: int | None = None

    @classmethod
    def parse(cls, given: object) -> Audience:
        """Of an object as in the head of this module, or of its JSON text.

        Raises:
            AudienceError: it is none, or nobody can be in it.
        """
        if isinstance(given, str):
            try:
                given = json.loads(given)
            except (ValueError, RecursionError) as error:
                raise AudienceError(f"audience: expected a JSON object: {error}") from None
        if not isinstance(given, Mapping):
            raise AudienceError(f"audience: expected an object with {', '.join(_KEYS)}, got {_shown(given)}")
        _known("audience", given, _KEYS)
        where = given.get("where", {})
        if not isinstance(where, Mapping) or len(where) > MAX_COLUMNS:
            raise AudienceError(
                f"audience.where: expected an object of at most {MAX_COLUMNS} columns, got {_shown(where)}"
            )
        rules = tuple((_text("audience.where", c), _rule(c, where[c])) for c in sorted(where, key=str))
        start, end = (_time(name, given.get(name)) for name in ("start", "end"))
        if start is not None and end is not None and end <= start:
            raise AudienceError(
                f"audience.end: expected a time after the start {start}, got {end}: [start, end) is empty"
            )
        return cls(rules, start, end)

    def check(self, columns: Columns) -> None:
        """It names columns and values that there are.

        Raises:
            AudienceError: it does not, or no value of a column is left.
        """
        for name, rule in self.rules:
            if name not in columns:
                known = ", ".join(sorted(columns)) or "none"
                raise AudienceError(f"audience.where: expected a column of {known}, got {name!r}")
            values = columns[name]
            if values is None:
                continue
            unknown = next((v for v in rule.values if v not in values), None)
            if unknown is not None:
                raise AudienceError(
                    f"audience.where.{name}: expected values of {_shown(list(values))}, got {unknown!r}"
                )
            if rule.negated and len(rule.values) == len(set(values)):
                every = _shown(list(values))
                raise AudienceError(
                    f"audience.where.{name}.not_in: expected to leave a value, got all of {every}"
                )

    def to_json(self) -> dict[str, Any]:
        """Inverse of `parse`."""
        found: dict[str, Any] = {}
        if self.rules:
            found["where"] = {c: {_TESTS[r.negated]: list(r.values)} for c, r in self.rules}
        times = {"start": self.start, "end": self.end}
        return found | {name: time for name, time in times.items() if time is not None}

    @property
    def text(self) -> str:
        """The same for all audiences that say the same; `EVERYBODY` for the one that says nothing."""
        found = self.to_json()
        return json.dumps(found, separators=(",", ":"), sort_keys=True) if found else EVERYBODY


def attribute_columns(given: object) -> Columns:
    """Columns of `serving.attributes`: by name a list of values, or "any" text.

    Raises:
        AudienceError: it is something else.
    """
    if not isinstance(given, Mapping) or len(given) > MAX_ATTRIBUTES:
        raise AudienceError(
            f"attributes: expected an object of at most {MAX_ATTRIBUTES} names, got {_shown(given)}"
        )
    found: dict[str, Collection[str] | None] = {}
    for name, values in given.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise AudienceError(f"attributes: expected a name {_NAME.pattern}, got {_shown(name)}")
        if values == "any":
            found[name] = None
        elif len(_values(f"attributes.{name}", values)) == len(values):
            found[name] = tuple(values)
        else:
            raise AudienceError(f"attributes.{name}: expected distinct values, got {_shown(values)}")
    return found


def _rule(column: str, given: object) -> Rule:
    where = f"audience.where.{column}"
    if not isinstance(given, Mapping) or not given:
        raise AudienceError(f'{where}: expected {{"in": [..]}} or {{"not_in": [..]}}, got {_shown(given)}')
    _known(where, given, _TESTS)
    sets = {test: _values(f"{where}.{test}", given[test]) for test in _TESTS if test in given}
    if "in" not in sets:
        return Rule(tuple(sorted(sets["not_in"])), negated=True)
    left = sets["in"] - sets.get("not_in", set())
    if not left:
        raise AudienceError(
            f"{where}: expected a value that is in and not in not_in, got none: {_shown(sorted(sets['in']))}"
        )
    return Rule(tuple(sorted(left)), negated=False)


def _values(where: str, given: object) -> set[str]:
    if not isinstance(given, list | tuple) or not 0 < len(given) <= MAX_VALUES:
        raise AudienceError(f"{where}: expected a list of 1 to {MAX_VALUES} texts, got {_shown(given)}")
    return {_text(where, value) for value in given}


def _text(where: str, given: object) -> str:
    if not isinstance(given, str) or not 0 < len(given) <= MAX_TEXT:
        raise AudienceError(f"{where}: expected texts of 1 to {MAX_TEXT} characters, got {_shown(given)}")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise AudienceError(f"{where}: expected text, got a lone surrogate in {given!a:.80}") from None
    return given


def _time(name: str, given: object) -> int | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= MAX_TIME:
        raise AudienceError(f"audience.{name}: expected unix seconds 0 .. {MAX_TIME}, got {_shown(given)}")
    return given


def _known(where: str, given: Mapping, names: Collection[str]) -> None:
    unknown = next((name for name in given if name not in names), None)
    if unknown is not None:
        raise AudienceError(f"{where}: expected {', '.join(names)}, got {_shown(unknown)}")


def _shown(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 120 else f"{text[:117]}..."
