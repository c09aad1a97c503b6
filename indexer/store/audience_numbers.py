"""Audiences of an index by number: what is in the table, and what a transaction makes of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from serving.index.audience import EVERYBODY, MAX_AUDIENCES, Audience
from serving.index.layout import AUDIENCES, IndexStoreError, audience_key

EVERYBODYS = 0  # number of the audience that restricts nothing; not in the table


class AudienceNumbers:
    """Texts and numbers as committed; `NewAudiences` is what a transaction changes of them.

    A number whose audience no ad has may be given to another one: by then the change log has told readers
    that the ads it was of have others.
    """

    def __init__(self, texts: Mapping[int, str]) -> None:
        """Of the whole table."""
        self.texts = {EVERYBODYS: EVERYBODY, **texts}
        self.numbers = {text: number for number, text in self.texts.items()}
        self.free = sorted(set(range(max(self.texts) + 1)) - self.texts.keys())

    @classmethod
    def read(cls, table: Any, txn: Any) -> AudienceNumbers:
        """Of a transaction; the table is None in an index from before there were any, open for reading."""
        if table is None:
            return cls({})
        with txn.cursor(db=table) as cursor:
            return cls({int.from_bytes(number, "big"): bytes(text).decode() for number, text in cursor})


class NewAudiences:
    """The numbers inside one write transaction."""

    def __init__(self, committed: AudienceNumbers, txn: Any, table: Any) -> None:
        """Nothing is changed yet; `txn` keeps the checksums."""
        self._committed, self._txn, self._table = committed, txn, table
        self._added: dict[str, int] = {}
        self._gone: set[int] = set()
        self._cleared = False

    @property
    def changed(self) -> bool:
        """Whether the table is another one after this transaction."""
        return self._cleared or bool(self._added or self._gone)

    def __len__(self) -> int:
        """How many there are, without everybody's."""
        return len(self._committed.texts) - 1 - len(self._gone) + len(self._added)

    def text_of(self, number: int) -> str:
        """Canonical text of an audience.

        Raises:
            IndexStoreError: the table does not have it.
        """
        if number not in self._committed.texts:
            raise IndexStoreError(f"damaged: an ad has the audience {number}, which is not in {AUDIENCES!r}")
        return self._committed.texts[number]

    def has_room(self, text: str) -> bool:
        """Whether an audience is there, or one more may be."""
        number = self._committed.numbers.get(text)
        known = text in self._added or (number is not None and number not in self._gone)
        return known or len(self) < MAX_AUDIENCES

    def number_of(self, text: str) -> int:
        """Number of an audience, from now on in the table."""
        number = self._added.get(text, self._committed.numbers.get(text))
        if number is None or number in self._gone:
            free, taken = self._committed.free, len(self._added)
            behind = max(self._committed.texts) + 1 + taken - len(free)
            number = self._added[text] = free[taken] if taken < len(free) else behind
            self._txn.put(audience_key(number), text.encode(), db=self._table)
        return number

    def keep(self, used: Collection[int]) -> None:
        """Take those out of the table that no ad has; call before the first `number_of`."""
        for number in self._committed.texts.keys() - {EVERYBODYS, *used}:
            self._gone.add(number)
            self._txn.delete(audience_key(number), db=self._table)

    def clear(self) -> None:
        """Take all out of the table; numbers begin anew."""
        self._txn.drop(self._table, delete=False)
        self._committed, self._added, self._gone, self._cleared = AudienceNumbers({}), {}, set(), True

    def after(self) -> AudienceNumbers:
        """As committed once the transaction is."""
        found = self._committed
        for number in self._gone:
            found.numbers.pop(found.texts.pop(number))
        del found.free[: len(self._added)]
        found.free += sorted(self._gone)
        found.numbers |= self._added
        found.texts |= {number: text for text, number in self._added.items()}
        return found


def canonical(given: object) -> str:
    """Text of an audience as tables and events give it: a text, an object, None for everybody.

    Raises:
        AudienceError: it is none.
    """
    return EVERYBODY if given is None or given == "" else Audience.parse(given).text
