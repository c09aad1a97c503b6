"""Audiences: what is refused and with which words, one text a meaning, which of them a request is in."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.index.audience import EVERYBODY, MAX_COLUMNS, MAX_VALUES, Audience, AudienceError
from serving.index.audience_table import AudienceTable
from serving.keys import hash_of

COLUMNS = {"age": ("young", "old"), "place": ("feed", "story", "search"), "region": None}


@pytest.mark.parametrize(
    ("given_audience", "message"),
    [
        (7, "expected an object with where, start, end, got 7"),
        ("[", "expected a JSON object"),
        ({"who": {}}, "expected where, start, end, got 'who'"),
        ({"where": []}, r"audience.where: expected an object of at most 16 columns, got \[\]"),
        ({"where": {str(i): {"in": ["a"]} for i in range(MAX_COLUMNS + 1)}}, "at most 16 columns"),
        (
            {"where": {"age": {}}},
            r'audience.where.age: expected {"in": \[..\]} or {"not_in": \[..\]}, got {}',
        ),
        ({"where": {"age": {"is": ["old"]}}}, "audience.where.age: expected in, not_in, got 'is'"),
        (
            {"where": {"age": {"in": []}}},
            r"audience.where.age.in: expected a list of 1 to 1024 texts, got \[\]",
        ),
        (
            {"where": {"age": {"in": "old"}}},
            "audience.where.age.in: expected a list of 1 to 1024 texts, got 'old'",
        ),
        ({"where": {"age": {"in": [str(i) for i in range(MAX_VALUES + 1)]}}}, "list of 1 to 1024 texts"),
        (
            {"where": {"age": {"in": [3]}}},
            "audience.where.age.in: expected texts of 1 to 256 characters, got 3",
        ),
        ({"where": {"age": {"in": ["\ud800"]}}}, "lone surrogate"),
        (
            {"where": {"age": {"in": ["old"], "not_in": ["old"]}}},
            r"audience.where.age: expected a value that is in and not in not_in, got none: \['old'\]",
        ),
        (
            {"start": 5, "end": 5},
            r"audience.end: expected a time after the start 5, got 5: \[start, end\) is empty",
        ),
        ({"start": -1}, "audience.start: expected unix seconds 0 .. 1099511627776, got -1"),
        ({"end": True}, "audience.end: expected unix seconds"),
        ({"end": 1.5}, "audience.end: expected unix seconds"),
    ],
)
def test_what_nobody_can_be_in_is_refused(given_audience, message):
    with pytest.raises(AudienceError, match=message):
        Audience.parse(given_audience)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"sex": {"in": ["f"]}}, "audience.where: expected a column of age, place, region, got 'sex'"),
        (
            {"age": {"in": ["old", "ancient"]}},
            r"audience.where.age: expected values of \['young', 'old'\], got 'ancient'",
        ),
        (
            {"age": {"not_in": ["old", "young"]}},
            "audience.where.age.not_in: expected to leave a value, got all of",
        ),
    ],
)
def test_columns_and_values_that_are_not_there_are_refused(where, message):
    with pytest.raises(AudienceError, match=message):
        Audience.parse({"where": where}).check(COLUMNS)


def test_one_text_for_one_meaning():
    first = Audience.parse(
        {"where": {"b": {"not_in": ["y", "x", "y"]}, "a": {"in": ["2", "1"], "not_in": ["2"]}}, "end": 9}
    )
    second = Audience.parse('{"end": 9, "where": {"a": {"in": ["1"]}, "b": {"not_in": ["x", "y"]}}}')
    assert first == second
    assert first.text == second.text == '{"end":9,"where":{"a":{"in":["1"]},"b":{"not_in":["x","y"]}}}'
    assert Audience.parse(first.text) == first
    assert Audience.parse({}).text == Audience.parse({"where": {}, "start": None}).text == EVERYBODY
    Audience.parse({"where": {"region": {"in": ["anything"]}, "age": {"not_in": ["old"]}}}).check(COLUMNS)


VALUE = st.sampled_from("abcd")
RULE = st.one_of(
    *(st.fixed_dictionaries({test: st.lists(VALUE, min_size=1, max_size=3)}) for test in ("in", "not_in"))
)
TIME = st.one_of(st.none(), st.integers(0, 10))
AUDIENCE = st.builds(
    lambda where, start, length: {
        "where": where,
        "start": start,
        "end": None if length is None else (start or 0) + length + 1,
    },
    st.dictionaries(st.sampled_from("xyz"), RULE, max_size=3),
    TIME,
    TIME,
)


def is_in(audience, values, now):
    """By the words of the documentation, one audience at a time."""
    for column, rule in audience["where"].items():
        if column not in values:
            return False
        if "in" in rule and values[column] not in rule["in"]:
            return False
        if values[column] in rule.get("not_in", ()):
            return False
    if audience["start"] is not None and now < audience["start"]:
        return False
    return audience["end"] is None or now < audience["end"]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_request_is_in_the_audiences_that_say_so(data):
    """Through additions, removals and numbers that are used again."""
    table, held = AudienceTable(), {}
    for _ in range(data.draw(st.integers(1, 4))):
        for number in data.draw(st.sets(st.integers(1, 8), max_size=4)):
            held[number] = data.draw(AUDIENCE)
        for number in data.draw(st.sets(st.integers(1, 8), max_size=2)):
            held.pop(number, None)
        table = table.now({n: json.dumps(a) for n, a in held.items()})
        values = data.draw(st.dictionaries(st.sampled_from("xyz"), st.sampled_from("abcde"), max_size=3))
        now = data.draw(st.integers(0, 22))
        satisfied = table.satisfied({c: hash_of(v) for c, v in values.items()}, now=now)
        assert len(satisfied) == len(table) == max(held, default=0) + 1
        expected = [n == 0 or (n in held and is_in(held[n], values, now)) for n in range(len(table))]
        assert satisfied.tolist() == expected


def test_a_flight_begins_and_ends_by_the_time_of_the_request():
    table = AudienceTable().now({1: '{"start":10,"end":20}', 2: '{"end":15}', 3: '{"start":15}'})
    seen = {now: np.flatnonzero(table.satisfied({}, now=now)).tolist() for now in (9, 10, 14, 15, 19, 20)}
    assert seen == {9: [0, 2], 10: [0, 1, 2], 14: [0, 1, 2], 15: [0, 1, 3], 19: [0, 1, 3], 20: [0, 3]}
