import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from indexer.events.content import GIVEN_FIELDS, unpack_vector
from indexer.events.error import MALFORMED, EventError
from indexer.events.event import CreateEvent, DeleteEvent, PauseEvent, ResumeEvent, UpdateEvent
from indexer.events.json_object import MAX_EVENT_BYTES
from indexer.events.parse import event_of, parse_event

CREATE = {
    "kind": "create",
    "ad_id": 7,
    "version": 3,
    "account_id": "a",
    "conversion_type": "buy",
    "text": "t",
}
PAUSE = {"kind": "pause", "ad_id": 7, "version": 4}
GIVEN = {"embedding": [0.5, -2], "numbers": {"price": 3}, "sid": [5, 0]}


def test_events_of_every_kind():
    expected = CreateEvent(ad_id=7, version=3, account_id="a", conversion_type="buy", text="t")
    assert parse_event(json.dumps(CREATE).encode()) == expected
    assert parse_event(json.dumps(CREATE, ensure_ascii=False, indent=1).encode()) == expected
    assert event_of(CREATE) == event_of(expected.fields()) == expected
    assert event_of(PAUSE) == PauseEvent(ad_id=7, version=4)
    assert event_of(PAUSE | {"kind": "resume"}) == ResumeEvent(ad_id=7, version=4)
    assert event_of(PAUSE | {"kind": "delete"}) == DeleteEvent(ad_id=7, version=4)
    updated = event_of({"kind": "update", "ad_id": 0, "version": 0, "account_id": ""})
    assert updated == UpdateEvent(ad_id=0, version=0, account_id="")
    assert updated.content == {"account_id": ""}
    assert updated.fields() == {"kind": "update", "ad_id": 0, "version": 0, "account_id": ""}
    assert event_of(PAUSE | {"version": 2**63 - 1}).version == 2**63 - 1


def test_an_ad_comes_with_an_embedding_numbers_or_its_sid_and_then_needs_no_text():
    event = event_of(without("text") | GIVEN)
    assert unpack_vector(event.content["embedding"]).tolist() == [0.5, -2.0]
    assert {**event.content, "embedding": ""} == {
        "account_id": "a",
        "conversion_type": "buy",
        "text": "",
        "embedding": "",
        "numbers": {"price": 3.0},
        "sid": [5, 0],
    }
    for name, value in GIVEN.items():
        assert event_of(without("text") | {name: value}).content["text"] == ""
        updated = event_of({"kind": "update", "ad_id": 0, "version": 0, name: value})
        assert updated.content.keys() == {name}
        assert updated.fields()[name] == value


@pytest.mark.parametrize(
    ("given", "reason", "message"),
    [
        ({"embedding": []}, "too_long", "embedding: expected 1 .. 8192 values, got 0"),
        ({"embedding": [1.0] * 8193}, "too_long", "embedding: expected 1 .. 8192 values, got 8193"),
        ({"embedding": "x"}, "wrong_type", "embedding: expected a list of numbers, got str 'x'"),
        ({"embedding": [1, "x"]}, "wrong_type", "embedding: expected a list of numbers, got list [1, 'x']"),
        ({"embedding": [1, None]}, "wrong_type", "embedding: expected a list of numbers"),
        ({"embedding": [4e38]}, "out_of_range", "embedding: expected finite numbers in float32, got 4e+38"),
        ({"numbers": {"price": True}}, "wrong_type", "numbers: expected numbers by name, got dict"),
        ({"numbers": {"price": -4e38}}, "out_of_range", "numbers: expected finite numbers in float32, got"),
        ({"numbers": {"p" * 257: 1}}, "too_long", "numbers: expected names of at most 256 characters"),
        ({"numbers": {"\ud800": 1}}, "invalid_json", "numbers: expected names that are text"),
        ({"sid": [0.5]}, "wrong_type", "sid: expected a list of integers, got list [0.5]"),
        ({"sid": [1] * 9}, "too_long", "sid: expected 1 .. 8 values, got 9"),
        ({"sid": [-1]}, "out_of_range", "sid: expected codes 0 .. 2**20 - 1, got -1"),
        ({"sid": [2**20]}, "out_of_range", "sid: expected codes 0 .. 2**20 - 1, got 1048576"),
        ({"sid": None}, "wrong_type", "sid: expected a list of integers, got NoneType"),
        ({}, "missing_field", "text is missing, and so are embedding, numbers, sid"),
    ],
)
def test_wrong_given_fields(given, reason, message):
    refused(event_of, without("text") | given, reason=reason, message=re.escape(message))


def without(name):
    return {k: v for k, v in CREATE.items() if k != name}


@pytest.mark.parametrize(
    ("raw", "reason", "message"),
    [
        (b"", "invalid_json", "expected JSON"),
        (b"\xff\xfe{}", "invalid_json", "expected UTF-8"),
        (json.dumps(PAUSE).encode("utf-16"), "invalid_json", "expected UTF-8"),
        (b"[" * 200_000, "invalid_json", "nested too deeply"),
        (b'{"a":' * 200_000, "invalid_json", "nested too deeply"),
        (b"9" * 5000, "invalid_json", "expected JSON"),
        (b'{"kind": "pause", "ad_id": 1, "ad_id": 2, "version": 1}', "invalid_json", "got 'ad_id' twice"),
        (b'{"kind": "pause", "ad_id": NaN, "version": 1}', "invalid_json", "got NaN"),
        (b'{"kind": "pause", "ad_id": 1, "version": -Infinity}', "invalid_json", "got -Infinity"),
        (b'{"kind": "pause", "ad_id": 1, "version": 1e999}', "wrong_type", "an integer, got float inf"),
        (b"[]", "wrong_type", "expected a JSON object, got list"),
        (b"null", "wrong_type", "got NoneType"),
        (b'"' + b"a" * (1 << 20) + b'"', "too_long", "expected at most 1048576 bytes, got 1048578"),
    ],
)
def test_what_is_not_a_json_object(raw, reason, message):
    refused(parse_event, raw, reason=reason, message=message)


@pytest.mark.parametrize(
    ("values", "reason", "message"),
    [
        ({}, "missing_field", "expected the field kind, got"),
        (without("kind"), "missing_field", "expected the field kind"),
        (without("ad_id"), "missing_field", "expected the field ad_id"),
        (without("version"), "missing_field", "expected the field version"),
        (
            without("text"),
            "missing_field",
            "create: expected account_id, conversion_type, text; text is missing",
        ),
        (PAUSE | {"kind": "update"}, "missing_field", "update: expected at least one of account_id"),
        (PAUSE | {"text": "t"}, "unknown_field", "pause: expected no content, got text"),
        (CREATE | {"bid": 1}, "unknown_field", "expected the fields kind, ad_id, .* got 'bid'"),
        (CREATE | {"kind": 1}, "wrong_type", "kind: expected a string, got int 1"),
        (CREATE | {"kind": ["create"]}, "wrong_type", "kind: expected a string, got list"),
        (
            CREATE | {"kind": "drop"},
            "out_of_range",
            r"create \| update \| pause \| resume \| delete, got 'drop'",
        ),
        (
            CREATE | {"ad_id": True},
            "wrong_type",
            "ad_id: expected an integer or a key as text, got bool True",
        ),
        (CREATE | {"ad_id": ""}, "out_of_range", "ad_id: expected a key of 1 or more characters, got none"),
        (CREATE | {"ad_id": "k" * 257}, "too_long", "ad_id: expected at most 256 characters, got 257"),
        (CREATE | {"ad_id": "a\ud800"}, "invalid_json", "ad_id: expected text, got a lone surrogate at 1"),
        (CREATE | {"ad_id": ["7"]}, "wrong_type", "ad_id: expected an integer or a key as text, got list"),
        (CREATE | {"ad_key": "7"}, "unknown_field", "got 'ad_key'"),
        (CREATE | {"sent_id": "7"}, "unknown_field", "got 'sent_id'"),
        (CREATE | {"version": 1.0}, "wrong_type", "version: expected an integer, got float 1.0"),
        (CREATE | {"version": None}, "wrong_type", "got NoneType None"),
        (CREATE | {"ad_id": -1}, "out_of_range", r"ad_id: expected 0 .. 2\*\*63 - 1, got -1"),
        (CREATE | {"version": 1 << 63}, "out_of_range", "version: .* got 9223372036854775808"),
        (CREATE | {"version": 10**5000}, "out_of_range", "got a number of 16610 bits"),
        (CREATE | {"text": None}, "wrong_type", "text: expected a string, got NoneType"),
        (PAUSE | {"kind": "update", "text": None}, "wrong_type", "text: expected a string, got NoneType"),
        (CREATE | {"text": ""}, "missing_field", "text: expected a text, got a blank one, ''"),
        (CREATE | {"text": " \t\n\u3000"}, "missing_field", "text: expected a text, got a blank one"),
        (PAUSE | {"kind": "update", "text": " "}, "missing_field", "text: expected a text, got a blank one"),
        (CREATE | {"text": "t" * 65_537}, "too_long", "text: expected at most 65536 characters, got 65537"),
        (CREATE | {"account_id": "a" * 257}, "too_long", "account_id: expected at most 256 .* got 257"),
        (CREATE | {"conversion_type": "a" * 257}, "too_long", "conversion_type: expected at most 256"),
        (CREATE | {"text": "a\ud800"}, "invalid_json", "text: expected text, got a lone surrogate at 1"),
        (CREATE | {"\ud800": 1}, "unknown_field", r"got '\\ud800'"),
        (dict.fromkeys(map(str, range(100_000)), 1), "unknown_field", "got '0'"),
    ],
)
def test_what_is_not_an_event(values, reason, message):
    refused(event_of, values, reason=reason, message=message)


def refused(function, raw, *, reason, message):
    with pytest.raises(EventError, match=message) as caught:
        function(raw)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 400
    assert str(caught.value).isascii()


def test_limits_are_inclusive():
    event = CREATE | {"text": "t" * 65_536, "account_id": "é" * 256}
    assert parse_event(json.dumps(event).encode()).text == "t" * 65_536
    longest = json.dumps(PAUSE).encode().ljust(MAX_EVENT_BYTES)
    assert parse_event(longest) == event_of(PAUSE)
    refused(parse_event, longest + b" ", reason="too_long", message="got 1048577")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3),
    max_leaves=5,
)
SURROGATES = st.text(st.characters(exclude_categories=()), max_size=5)
KIND = st.sampled_from(["create", "update", "pause", "resume", "delete"])
NUMBER = st.integers(-3, 3) | st.floats() | st.sampled_from([2**20, 10**400, True])
NUMBERS = st.lists(NUMBER, max_size=9) | st.dictionaries(SURROGATES, NUMBER, max_size=2)
VALUE = st.one_of(JSON, SURROGATES, KIND, NUMBERS)
FIELD = st.sampled_from([*CREATE, *GIVEN_FIELDS, "other", "\ud800"])
NEARLY = st.builds(
    lambda base, changes, drop: {k: v for k, v in (base | changes).items() if k not in drop},
    st.sampled_from([CREATE, CREATE | GIVEN, PAUSE]),
    st.dictionaries(FIELD, VALUE, max_size=2),
    st.sets(FIELD, max_size=1),
)
TEXT = st.one_of(NEARLY.map(json.dumps), NEARLY.map(lambda x: json.dumps(x, ensure_ascii=False)), SURROGATES)
BYTES = TEXT.map(lambda text: text.encode(errors="surrogatepass"))
CUT = st.builds(lambda raw, at: raw[:at], BYTES, st.integers(0, 200))


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=60), BYTES, CUT, JSON.map(lambda x: json.dumps(x).encode())))
@example(b"\x00")
def test_anything_is_an_event_or_an_event_error(raw):
    error = None
    try:
        event = parse_event(raw)
    except EventError as caught:
        error = caught
    if error:
        assert error.reason in MALFORMED
        assert error.message.isascii()
        return
    assert parse_event(json.dumps(event.fields()).encode()) == event
    assert 0 <= event.ad_id < 1 << 63
    assert (event.content == {}) == (event.kind in ("pause", "resume", "delete"))
