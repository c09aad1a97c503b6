"""Audiences for tests: a few that requests are in or not, and requests that say something of themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from serving.index.audience_table import AudienceTable
from serving.index.eligible import Terms
from serving.keys import hash_of

TEXTS = (
    '{"where":{"age":{"in":["old"]}}}',
    '{"where":{"age":{"not_in":["old"]},"place":{"in":["feed","story"]}}}',
    '{"end":100}',
    '{"start":100,"where":{"place":{"not_in":["feed"]}}}',
)


def some_audiences(count: int = len(TEXTS)) -> AudienceTable:
    """The first so many of them, from number 1."""
    return AudienceTable().now(dict(enumerate(TEXTS[:count], start=1)))


def is_in(audience: int, terms: Terms) -> bool:
    """Whether a request is in the audience of a number, in plain words."""
    age, place = terms.values.get("age"), terms.values.get("place")
    old, feed, story = map(hash_of, ("old", "feed", "story"))
    return (
        True,
        age == old,
        age is not None and age != old and place in (feed, story),
        0 <= terms.now < 100,
        terms.now >= 100 and place is not None and place != feed,
    )[audience]


def some_terms(random: np.random.Generator, count: int) -> list[Terms]:
    """Of requests that leave out what they like."""
    found = []
    for _ in range(count):
        values = {"age": random.choice(["old", "young", ""]), "place": random.choice(["feed", "search", ""])}
        terms = Terms.of({name: str(value) for name, value in values.items()}, int(random.choice([99, 100])))
        excluded = tuple(np.flatnonzero(random.random(5) < 0.1)[1:].tolist())
        found.append(replace(terms, excluded_accounts=excluded))
    return found
