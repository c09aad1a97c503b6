"""The distinct audiences of an index, compiled: which of them a request is in, all at once.

Letters: A audiences by number (0 is everybody), C columns that they name, K distinct rules of a column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from serving.index.audience import MAX_TIME, Audience, Rule
from serving.keys import hash_of

_NEVER = (1, 0)  # a flight that no time lies in


@dataclass(frozen=True)
class _Column:
    """Rules of one column; number 0 is none, which everything meets.

    Attributes:
        numbers: of each rule.
        negated: bool [K], whether a value that a rule does not name meets it.
        named: for the hash of each value (`serving.keys.hash_of`) the rules that name it.
    """

    numbers: Mapping[Rule, int] = field(default_factory=dict)
    negated: np.ndarray = field(default_factory=lambda: np.ones(1, bool))
    named: Mapping[int, np.ndarray] = field(default_factory=dict)

    def having(self, rules: Iterable[Rule]) -> _Column:
        """With these rules, too."""
        new = [r for r in dict.fromkeys(rules) if r not in self.numbers]
        if not new:
            return self
        first = len(self.negated)
        more: dict[int, list[int]] = {}
        for number, rule in enumerate(new, start=first):
            for value in rule.values:
                more.setdefault(hash_of(value), []).append(number)
        none = np.zeros(0, np.int32)
        named = {v: np.append(self.named.get(v, none), n).astype(np.int32) for v, n in more.items()}
        return _Column(
            {**self.numbers, **{rule: first + i for i, rule in enumerate(new)}},
            np.append(self.negated, [rule.negated for rule in new]),
            {**self.named, **named},
        )

    def met(self, value: int | None) -> np.ndarray:
        """Rules that a value meets, bool [K]; None is a request that does not say, and meets none."""
        if value is None:
            met = np.zeros(len(self.negated), bool)
        else:
            met = self.negated.copy()
            met[self.named.get(value, np.zeros(0, np.int32))] ^= True
        met[0] = True
        return met


@dataclass(frozen=True)
class AudienceTable:
    """Audiences by number. Immutable; one with others is a new one that shares what stayed.

    Attributes:
        texts: canonical text of each number that is in use, but 0.
        columns: by name.
        rules: int32 [C, A], rule of each column, in the order of `columns`.
        flights: int64 [2, A], start and end; a number that is not in use is never shown.
    """

    texts: Mapping[int, str] = field(default_factory=dict)
    columns: Mapping[str, _Column] = field(default_factory=dict)
    rules: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), np.int32))
    flights: np.ndarray = field(default_factory=lambda: np.array([[0], [MAX_TIME + 1]]))

    def __len__(self) -> int:
        """A, numbers that are not in use included."""
        return self.flights.shape[1]

    def now(self, texts: Mapping[int, str]) -> AudienceTable:
        """The table of these texts by number (1 ..); what is in this one already costs next to nothing.

        Raises:
            AudienceError: a text is no audience.
        """
        if any(texts.get(n) != t for n, t in self.texts.items()):  # rules that nobody has any more go, too
            return AudienceTable().now(texts)
        new = {n: Audience.parse(t) for n, t in texts.items() if n not in self.texts}
        by_column: dict[str, list[Rule]] = {}
        for audience in new.values():
            for name, rule in audience.rules:
                by_column.setdefault(name, []).append(rule)
        columns = dict(self.columns)
        for name, wanted in by_column.items():
            columns[name] = columns.get(name, _Column()).having(wanted)
        size, place = max(texts, default=0) + 1, {name: i for i, name in enumerate(columns)}
        rules, flights = np.zeros((len(columns), size), np.int32), np.repeat([_NEVER], size, 0).T.copy()
        rules[: len(self.rules), : len(self)], flights[:, : len(self)] = self.rules, self.flights
        for n, audience in new.items():
            for name, rule in audience.rules:
                rules[place[name], n] = columns[name].numbers[rule]
            flights[0, n] = 0 if audience.start is None else audience.start
            flights[1, n] = MAX_TIME + 1 if audience.end is None else audience.end
        return AudienceTable(dict(texts), columns, rules, flights)

    def satisfied(self, values: Mapping[str, int], *, now: int) -> np.ndarray:
        """Audiences that a request is in, bool [A].

        Args:
            values: hashes of the values of columns; one that is left out is not known, and meets no rule.
            now: time of the request, unix seconds.
        """
        found = (self.flights[0] <= now) & (now < self.flights[1])
        for (name, column), rules in zip(self.columns.items(), self.rules, strict=True):
            found &= column.met(values.get(name)).take(rules)
        found[0] = True
        return found
