import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from indexer.events.event import AdEvent, EventError, EventLimits, parse_event

CREATE = {
    "kind": "create",
    "ad_id": 7,
    "version": 3,
    "account_id": "a",
    "conversion_type": "buy",
    "text": "t",
}
PAUSE = {"kind": "pause", "ad_id": 7, "version": 4}
REASONS = {"invalid_json", "missing_field", "unknown_field", "wrong_type", "out_of_range", "too_long"}


def test_events_in_every_form():
    expected = AdEvent("create", 7, 3, "a", "buy", "t")
    text = json.dumps(CREATE)
    for raw in (CREATE, text, text.encode(), bytearray(text.encode()), memoryview(text.encode())):
        assert parse_event(raw) == expected
    assert parse_event(PAUSE) == AdEvent("pause", 7, 4)
    assert parse_event({"kind": "update", "ad_id": 0, "version": 0, "text": ""}) == AdEvent(
        "update", 0, 0, text=""
    )
    assert parse_event(expected.fields()) == expected
    assert parse_event(PAUSE | {"version": 2**63 - 1}).version == 2**63 - 1


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
        (
            b'{"kind": "pause", "ad_id": 1e999, "version": 1}',
            "wrong_type",
            "expected an integer, got float inf",
        ),
        (json.dumps(CREATE | {"text": "\ud800"}), "invalid_json", "lone surrogate at 0"),
        ('{"text": "\ud800"}', "invalid_json", "expected UTF-8"),
        (b"[]", "wrong_type", "expected a JSON object, got list"),
        (b"null", "wrong_type", "got NoneType"),
        (None, "wrong_type", "got NoneType"),
        (17, "wrong_type", "got int"),
        ({}, "missing_field", "expected the field kind"),
        (without("kind"), "missing_field", "expected the field kind"),
        (without("ad_id"), "missing_field", "expected the field ad_id"),
        (without("version"), "missing_field", "expected the field version"),
        (without("text"), "missing_field", "text is missing"),
        (without("account_id"), "missing_field", "account_id is missing"),
        (PAUSE | {"kind": "update"}, "missing_field", "at least one of account_id"),
        (PAUSE | {"text": "t"}, "unknown_field", "pause: expected no content, got text"),
        (CREATE | {"bid": 1}, "unknown_field", "got 'bid'"),
        (CREATE | {1: 1}, "unknown_field", "got 1"),
        (CREATE | {"kind": 1}, "wrong_type", "kind: expected a string, got int 1"),
        (CREATE | {"kind": ["create"]}, "wrong_type", "kind: expected a string, got list"),
        (
            CREATE | {"kind": "drop"},
            "out_of_range",
            r"create \| update \| pause \| resume \| delete, got 'drop'",
        ),
        (CREATE | {"ad_id": True}, "wrong_type", "ad_id: expected an integer, got bool True"),
        (CREATE | {"ad_id": "7"}, "wrong_type", "got str '7'"),
        (CREATE | {"version": 1.0}, "wrong_type", "got float 1.0"),
        (CREATE | {"version": None}, "wrong_type", "got NoneType None"),
        (CREATE | {"ad_id": -1}, "out_of_range", "ad_id: expected 0 .. 2"),
        (CREATE | {"version": 1 << 63}, "out_of_range", "got 9223372036854775808"),
        (CREATE | {"version": 10**5000}, "out_of_range", "bits"),
        (CREATE | {"text": None}, "wrong_type", "text: expected a string, got NoneType"),
        (CREATE | {"text": "t" * 65_537}, "too_long", "text: expected at most 65536 characters, got 65537"),
        (CREATE | {"account_id": "a" * 257}, "too_long", "account_id: expected at most 256"),
        (CREATE | {"conversion_type": "a" * 257}, "too_long", "conversion_type: expected at most 256"),
        (b'"' + b"a" * (1 << 20) + b'"', "too_long", "expected at most 1048576 bytes, got 1048578"),
        ("é" * 600_000, "too_long", "got 1200000"),
        ("a" * 2_000_000, "too_long", "got 2000000"),
    ],
)
def test_what_is_not_an_event(raw, reason, message):
    with pytest.raises(EventError, match=message) as caught:
        parse_event(raw)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 400
    assert str(caught.value).isascii()


def test_limits_are_inclusive_and_can_be_set():
    event = CREATE | {"text": "t" * 65_536, "account_id": "a" * 256}
    assert parse_event(json.dumps(event)).text == "t" * 65_536
    limits = EventLimits(event_bytes=len(json.dumps(PAUSE)), text=3, identifier=8)
    assert parse_event(json.dumps(PAUSE), limits=limits).kind == "pause"
    for raw, reason in ((json.dumps(PAUSE) + " ", "too_long"), (CREATE | {"text": "1234"}, "too_long")):
        with pytest.raises(EventError) as caught:
            parse_event(raw, limits=limits)
        assert caught.value.reason == reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3),
    max_leaves=5,
)
SURROGATES = st.text(st.characters(exclude_categories=()), max_size=5)
VALUE = st.one_of(JSON, SURROGATES, st.sampled_from(["create", "update", "pause", "resume", "delete"]))
FIELD = st.sampled_from([*CREATE, "other", "\ud800"])
NEARLY = st.builds(
    lambda base, changes, drop: {k: v for k, v in (base | changes).items() if k not in drop},
    st.sampled_from([CREATE, PAUSE]),
    st.dictionaries(FIELD, VALUE, max_size=2),
    st.sets(FIELD, max_size=1),
)
TEXT = st.one_of(NEARLY.map(json.dumps), NEARLY.map(lambda x: json.dumps(x, ensure_ascii=False)), SURROGATES)
CUT = st.builds(lambda text, at: text.encode(errors="surrogatepass")[:at], TEXT, st.integers(0, 200))


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.binary(max_size=60), TEXT, CUT, NEARLY, JSON))
@example(b"\x00")
@example('{"kind":"pause","ad_id":1,"version":1}\ud800')
def test_anything_is_an_event_or_an_event_error(raw):
    error = None
    try:
        event = parse_event(raw)
    except EventError as caught:
        error = caught
    if error:
        assert error.reason in REASONS
        assert error.message.isascii()
        return
    assert parse_event(json.dumps(event.fields())) == event
    assert 0 <= event.ad_id < 1 << 63
    assert (event.content == {}) == (event.kind in ("pause", "resume", "delete"))
