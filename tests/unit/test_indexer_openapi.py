"""The OpenAPI page of the sidecar: it says what the server takes and answers, and leaves nothing open."""

import json

import jsonschema
import pytest

from indexer.events.error import MALFORMED
from indexer.events.event import _AUDIENCE_SCHEMA
from tests.indexing import sidecar_client, write_manifest

HEADERS = {"content-type": "application/json"}
CREATE = {
    "kind": "create",
    "ad_id": 7,
    "version": 3,
    "account_id": "acme",
    "conversion_type": "buy",
    "text": "shoes",
}
PAUSE = {"kind": "pause", "ad_id": 7, "version": 4}
UPDATE = {"kind": "update", "ad_id": 7, "version": 5, "text": "boots"}
NUMBER = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
AD_ID = {"oneOf": [NUMBER, {"type": "string", "minLength": 1, "maxLength": 256}]}
CONTENT = {
    "account_id": {"type": "string", "maxLength": 256},
    "conversion_type": {"type": "string", "maxLength": 256},
    "text": {"type": "string", "maxLength": 65_536, "pattern": r"\S"},
}
FLOAT32 = {"type": "number", "minimum": -3e38, "maximum": 3e38}
CODE = {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**20}
GIVEN = {
    "embedding": {"type": "array", "items": FLOAT32, "minItems": 1, "maxItems": 8192},
    "numbers": {
        "type": "object",
        "additionalProperties": FLOAT32,
        "propertyNames": {"maxLength": 256},
        "maxProperties": 256,
    },
    "sid": {"type": "array", "items": CODE, "minItems": 1, "maxItems": 8},
}
COMES_WITH = {"embedding": [0.5, -1], "numbers": {"price": 3, "": -0.5}, "sid": [0, 2**20 - 1]}
AUDIENCE = {"audience": {k: v for k, v in _AUDIENCE_SCHEMA.items() if k != "description"}}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi")
    write_manifest(folder / "bundles", 1, "tok-a")
    with sidecar_client(folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(client):
    return client.get("/openapi.json").json()


def accepts(page, schema, value) -> bool:
    whole = schema | {"components": page["components"]}  # where its references lead
    return jsonschema.Draft202012Validator(whole).is_valid(value)


def body(page, path, kind="application/json"):
    return page["paths"][path]["post"]["requestBody"]["content"][kind]


def test_every_kind_of_event_has_its_fields_and_limits(page):
    schemas = page["components"]["schemas"]
    event = schemas["AdEvent"]
    assert event["discriminator"]["propertyName"] == "kind"
    named = {kind: ref.rpartition("/")[2] for kind, ref in event["discriminator"]["mapping"].items()}
    assert {option["$ref"].rpartition("/")[2] for option in event["oneOf"]} == set(named.values())
    every = CONTENT | GIVEN | AUDIENCE
    content = {"create": every, "update": every, "pause": {}, "resume": {}, "delete": {}}
    assert named.keys() == content.keys()
    for kind, more in content.items():
        model = schemas[named[kind]]
        told = {
            name: {k: v for k, v in field.items() if k not in ("title", "description")}
            for name, field in model["properties"].items()
        }
        assert told == {"kind": {"type": "string", "const": kind}, "ad_id": AD_ID, "version": NUMBER} | more
        assert model["additionalProperties"] is False
        assert model["description"]
        needed = {"kind", "ad_id", "version"} | (CONTENT.keys() - {"text"} if kind == "create" else set())
        assert set(model["required"]) == needed
    assert schemas[named["update"]]["anyOf"] == [{"required": [name]} for name in every]
    assert schemas[named["create"]]["anyOf"] == [{"required": [name]} for name in ("text", *GIVEN)]
    assert body(page, "/events")["schema"] == {"$ref": "#/components/schemas/AdEvent"}
    bulk = body(page, "/events/bulk")["schema"]
    assert bulk == {"type": "array", "items": {"$ref": "#/components/schemas/AdEvent"}, "maxItems": 10_000}


def test_examples_are_accepted_by_schema_and_server(client, page):
    for example in body(page, "/events")["examples"].values():
        assert accepts(page, body(page, "/events")["schema"], example["value"])
        answer = client.post("/events", json=example["value"])
        assert answer.json()["result"] == "applied"
    bulk = body(page, "/events/bulk")
    assert accepts(page, bulk["schema"], bulk["examples"]["list"]["value"])
    for line in body(page, "/events/bulk", "application/x-ndjson")["example"].splitlines():
        assert accepts(page, body(page, "/events")["schema"], json.loads(line))


def without(name):
    return {key: value for key, value in CREATE.items() if key != name}


def test_schema_and_server_accept_and_refuse_the_same_events(client, page):
    """But for 1.0, which JSON Schema counts among the integers."""
    good = [
        CREATE,
        PAUSE,
        PAUSE | {"kind": "resume"},
        PAUSE | {"kind": "delete"},
        UPDATE,
        UPDATE | {"account_id": "", "conversion_type": ""},
        CREATE | {"text": "t" * 65_536, "account_id": "\U0001f45f" * 256},
        CREATE | {"ad_id": 0, "version": 2**63 - 1},
        *(without("text") | {name: value} for name, value in COMES_WITH.items()),
        {"kind": "update", "ad_id": 7, "version": 6} | COMES_WITH,
        CREATE | {"ad_id": "7"},
        CREATE | {"ad_id": "\U0001f45f" * 256},
    ]
    bad = [
        *map(without, CREATE),
        {},
        [],
        None,
        "pause",
        17,
        CREATE | {"bid": 1},
        PAUSE | {"text": "t"},
        PAUSE | {"kind": "update"},
        UPDATE | {"text": None},
        CREATE | {"text": None},
        CREATE | {"text": ["t"]},
        CREATE | {"text": "t" * 65_537},
        CREATE | {"account_id": "a" * 257},
        CREATE | {"conversion_type": "a" * 257},
        CREATE | {"kind": "drop"},
        CREATE | {"kind": None},
        CREATE | {"kind": ["create"]},
        CREATE | {"ad_id": True},
        CREATE | {"ad_id": ""},
        CREATE | {"ad_id": "k" * 257},
        CREATE | {"ad_id": None},
        CREATE | {"ad_id": 7.5},
        CREATE | {"ad_id": -1},
        CREATE | {"version": 2**63},
        CREATE | {"version": None},
        *(CREATE | {name: wrong} for name in GIVEN for wrong in (None, "x", 1, [], ["x"], [True], [1e39])),
        CREATE | {"embedding": [1] * 8193},
        CREATE | {"sid": [2**20]},
        CREATE | {"sid": [-1]},
        CREATE | {"sid": [1] * 9},
        CREATE | {"numbers": {"p" * 257: 1}},
        CREATE | {"numbers": {"price": None}},
        PAUSE | COMES_WITH,
    ]
    schema = body(page, "/events")["schema"]
    for expected, events in ((True, good), (False, bad)):
        for event in events:
            answer = client.post("/events", content=json.dumps(event), headers=HEADERS)
            assert (answer.json()["reason"] not in MALFORMED) == expected, (event, answer.json())
            assert accepts(page, schema, event) == expected, event


def test_answers_are_what_the_page_says(client, page):
    many = {"content-type": "application/x-ndjson"}
    asked = [
        ("post", "/events", "/events", {"json": CREATE}, 200),
        ("post", "/events", "/events", {"content": b"{", "headers": HEADERS}, 422),
        ("post", "/events", "/events", {"json": PAUSE | {"ad_id": 99}}, 409),
        ("post", "/events", "/events", {"content": b"{}"}, 415),
        ("post", "/events/bulk", "/events/bulk", {"json": [CREATE, PAUSE, 1]}, 200),
        ("post", "/events/bulk", "/events/bulk", {"content": b"x\n", "headers": many}, 200),
        ("post", "/events/bulk", "/events/bulk", {"json": {}}, 422),
        ("post", "/events/bulk", "/events/bulk", {"json": [0] * 10_001}, 413),
        ("get", "/ads/7", "/ads/{ad_id}", {}, 200),
        ("get", "/ads/12345", "/ads/{ad_id}", {}, 404),
        ("get", "/ads?key=unknown", "/ads", {}, 404),
        ("get", "/ads?key=", "/ads", {}, 422),
        ("get", "/ads/x", "/ads/{ad_id}", {}, 422),
        ("get", "/ads/7", "/ads/{ad_id}", {"headers": {"host": "evil.example"}}, 421),
        ("get", "/dead-letters?limit=2", "/dead-letters", {}, 200),
        ("get", "/dead-letters?limit=0", "/dead-letters", {}, 422),
        ("post", "/dead-letters/0/replay", "/dead-letters/{number}/replay", {"json": {}}, 422),
        ("post", "/dead-letters/x/replay", "/dead-letters/{number}/replay", {"json": {}}, 422),
        ("post", "/dead-letters/999/replay", "/dead-letters/{number}/replay", {"json": {}}, 404),
        ("delete", "/dead-letters/999", "/dead-letters/{number}", {"headers": HEADERS}, 404),
        ("get", "/healthz", "/healthz", {}, 200),
        ("get", "/readyz", "/readyz", {}, 200),
    ]
    for method, path, documented, arguments, status in asked:
        answer = getattr(client, method)(path, **arguments)
        assert answer.status_code == status, (path, answer.text)
        told = page["paths"][documented][method]["responses"][str(status)]["content"]["application/json"]
        whole = told["schema"] | {"components": page["components"]}
        jsonschema.Draft202012Validator(whole).validate(answer.json())


def test_nothing_on_the_page_is_left_open(page):
    def schemas(node):
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("schema", "items"):
                    yield value
                yield from schemas(value)
        elif isinstance(node, list):
            for value in node:
                yield from schemas(value)

    assert all(schema for schema in schemas(page))
    # What the framework answers by itself has another form than ours.
    assert not {"HTTPValidationError", "ValidationError"} & page["components"]["schemas"].keys()
    for path in page["paths"].values():
        assert all(operation["summary"] for operation in path.values())
