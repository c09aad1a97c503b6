"""The HTTP API on the real store: outcomes, bulks, limits, who may write, dead letters, health, metrics."""

import contextlib
import json
import re
import shutil
import subprocess
import threading
import time

import numpy as np
import pytest

from indexer.http.api import ApiLimits
from indexer.http.guard import Guard
from indexer.sidecar.bundle_watch import BundleWatch
from indexer.sidecar.config import WorkerConfig
from indexer.store.index_store import IndexStore
from serving.model.bundle import BundleError
from serving.model.current import point_current
from tests.indexing import LEVEL_SIZES, HashEncoder, load_hash_encoder, sidecar_client, write_manifest
from tests.recording_store import event
from tests.waiting import wait_until


def create(ad_id: int, version: int = 1, **content: str) -> dict:
    fields = {"account_id": "acme", "conversion_type": "buy", "text": f"shoes {ad_id}"} | content
    return {"kind": "create", "ad_id": ad_id, "version": version, **fields}


@pytest.fixture
def folder(tmp_path):
    write_manifest(tmp_path / "bundles", 1, "tok-a")
    return tmp_path


@pytest.fixture
def start(folder):
    with contextlib.ExitStack() as running:
        yield lambda **settings: running.enter_context(sidecar_client(folder, **settings))


@pytest.fixture
def client(start):
    return start()


def lines(*events: dict) -> str:
    return "".join(json.dumps(e) + "\n" for e in events)


def metrics(client) -> dict[str, float]:
    text = client.get("/metrics").text
    return {k: float(v) for k, v in (x.rsplit(" ", 1) for x in text.splitlines() if x[0] != "#")}


def test_ads_by_key(client):
    """What is sent as a text is found by it, also where it looks like a number or a path."""
    for key in ("shoes/1?a=b&c", "17", "обувь 👟"):
        assert client.post("/events", json=create(key)).json()["result"] == "applied"
        ad = client.get("/ads", params={"key": key}).json()
        assert (ad["key"], ad["status"]) == (key, "active")
        assert client.get(f"/ads/{ad['ad_id']}").json() == ad
    assert client.get("/ads/17").status_code == 404  # a number is another ad
    client.post("/events", json=create(17))
    assert client.get("/ads/17").json()["key"] is None
    missing = client.get("/ads", params={"key": "nobody's"})
    assert (missing.status_code, missing.json()["reason"]) == (404, "unknown_ad")
    assert "nobody's" in missing.json()["message"]
    bulk = client.post(
        "/events/bulk", json=[create("a"), create("", 2), {"kind": "pause", "ad_id": "a", "version": 3}]
    )
    assert [row["result"] for row in bulk.json()["rows"]] == ["applied", "rejected", "applied"]


def test_colliding_keys_are_a_conflict(client, monkeypatch):
    monkeypatch.setattr("serving.keys._BITS", 0)
    assert client.post("/events", json=create("first")).status_code == 200
    answer = client.post("/events", json=create("second"))
    assert (answer.status_code, answer.json()["reason"]) == (409, "key_collision")
    assert "first" in answer.json()["message"]
    assert "second" in answer.json()["message"]
    (letter,) = client.get("/dead-letters").json()["dead_letters"]
    assert (letter["reason"], letter["event"]["ad_id"]) == ("key_collision", "second")
    assert client.get("/ads", params={"key": "second"}).status_code == 404


def test_an_ad_from_create_to_delete(client):
    first = client.post("/events", json=create(7))
    assert first.status_code == 200
    assert first.json()["result"] == "applied"
    sequence = first.json()["sequence"]
    ad = client.get("/ads/7").json()
    content = {"account_id": "acme", "conversion_type": "buy", "text": "shoes 7"}
    wanted = HashEncoder("tok-a").encode([7], [content])
    assert ad["sids"] == {"tok-a": wanted[0].tolist()}
    assert ad["status"] == "active"
    assert ad["content"] == {"account_id": "acme", "conversion_type": "buy", "text": "shoes 7"}
    assert ad["sequence"] == sequence

    again = client.post("/events", json=create(7))
    assert (again.status_code, again.json()["result"]) == (200, "stale")
    for kind, version, status in (("pause", 2, "paused"), ("resume", 3, "active"), ("delete", 4, "deleted")):
        answer = client.post(
            "/events", content=event(7, version, kind), headers={"content-type": "application/json"}
        )
        assert answer.json()["result"] == "applied"
        assert client.get("/ads/7").json()["status"] == status
    assert client.get("/ads/7").json()["status_version"] == 4
    assert answer.json()["sequence"] == sequence + 3


def test_neighbours_share_the_prefix(client):
    client.post("/events/bulk", json=[create(a, text="same") for a in range(5)] + [create(9, text="other")])
    near = client.get("/ads/0?neighbours=3").json()["neighbours"]["tok-a"]
    assert [(n["ad_id"], n["shared"]) for n in near] == [(1, 3), (2, 3), (3, 3)]
    assert client.get("/ads/0?neighbours=0").json()["neighbours"] == {"tok-a": []}


def test_rejected_events_say_why_and_are_kept(client):
    cases = (
        (b"{", 422, "invalid_json"),
        (b"[]", 422, "wrong_type"),
        (b"\xff\xfe", 422, "invalid_json"),
        (b'{"kind": "pause", "ad_id": 1}', 422, "missing_field"),
        (event(1, 1, "rename"), 422, "out_of_range"),
        (event(1, 1, "pause", colour="red"), 422, "unknown_field"),
        (b"[" * 100_000, 422, "invalid_json"),
        (event(1, 1, "pause"), 409, "unknown_ad"),
    )
    for body, status, reason in cases:
        answer = client.post("/events", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == status
        assert (answer.json()["result"], answer.json()["reason"]) == ("rejected", reason)
        assert answer.json()["message"]
    letters = client.get("/dead-letters").json()["dead_letters"]
    assert [letter["reason"] for letter in letters] == [reason for _, _, reason in cases]
    assert {letter["source"] for letter in letters} == {"http"}


def test_an_event_the_encoder_fails_on_is_kept_and_the_others_apply(client):
    rows = [create(1), create(2, text="poison"), create(3)]
    answer = client.post("/events/bulk", json=rows).json()
    assert [r["result"] for r in answer["rows"]] == ["applied", "rejected", "applied"]
    assert answer["rows"][1]["reason"] == "internal"
    assert client.get("/ads/2").status_code == 404
    assert client.get("/readyz").status_code == 200


def test_a_bulk_names_its_bad_rows_and_applies_the_others(client):
    rows = [create(1), {"kind": "pause"}, create(2), "x", {**event_of(9), "version": 10**5000}]
    body = json.dumps(rows[:4])[:-1] + ', {"kind": "pause", "ad_id": 1, "version": ' + "1" * 5000 + "}]"
    answer = client.post("/events/bulk", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert [(r["index"], r["result"]) for r in answer.json()["rows"]] == [
        (0, "applied"), (1, "rejected"), (2, "applied"), (3, "rejected"), (4, "rejected"),
    ]  # fmt: skip
    assert {k: answer.json()[k] for k in ("applied", "stale", "rejected")} == {
        "applied": 2,
        "stale": 0,
        "rejected": 3,
    }
    assert client.get("/ads/2").json()["sequence"] == answer.json()["sequence"]
    body = f'[1 2, {{"a": 1}} x, "[", {json.dumps(create(3))} , "x\\"]"]'
    answer = client.post("/events/bulk", content=body, headers={"content-type": "application/json"}).json()
    reasons = [r["reason"] for r in answer["rows"]]
    assert reasons == ["invalid_json", "invalid_json", "wrong_type", "", "wrong_type"]


def event_of(ad_id: int) -> dict:
    return json.loads(event(ad_id))


def test_lines_of_json(client):
    body = lines(create(1)) + "\n" + "not json\n" + lines(create(2)) + json.dumps(create(3))
    answer = client.post("/events/bulk", content=body, headers={"content-type": "application/x-ndjson"})
    assert [(r["index"], r["result"]) for r in answer.json()["rows"]] == [
        (0, "applied"), (2, "rejected"), (3, "applied"), (4, "applied"),
    ]  # fmt: skip


def test_what_is_no_list_is_refused_whole(client):
    for body, reason in (
        ("{}", "wrong_type"),
        ("", "wrong_type"),
        ("[1,", "invalid_json"),
        ("[1] x", "invalid_json"),
        ("[,]", "invalid_json"),
        ("[1,]", "invalid_json"),
        ("[" * 200_000, "invalid_json"),
        (b"[\xff]", "invalid_json"),
    ):
        answer = client.post("/events/bulk", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["reason"]) == (422, reason)
    assert client.get("/dead-letters").json() == {"dead_letters": [], "next": None}


def test_an_empty_bulk_is_nothing(client):
    for body, kind in (("[ ]", "application/json"), ("\n\n", "application/x-ndjson")):
        answer = client.post("/events/bulk", content=body, headers={"content-type": kind})
        assert (answer.status_code, answer.json()["rows"]) == (200, [])


def test_bodies_and_rows_beyond_the_limits(start):
    client = start(limits=ApiLimits(event_bytes=200, bulk_bytes=2000, bulk_rows=10))
    rows = [json.loads(event(a)) for a in range(11)]
    assert client.post("/events/bulk", json=rows[:10]).status_code == 200
    for answer in (
        client.post("/events", json=create(1, text="x" * 200)),
        client.post("/events/bulk", json=rows),
        client.post("/events/bulk", content=lines(*rows), headers={"content-type": "application/x-ndjson"}),
        client.post("/events/bulk", content="\n" * 30, headers={"content-type": "application/x-ndjson"}),
        client.post("/events/bulk", json=[create(1, text="x" * 2000)]),
        client.post(
            "/events/bulk",
            content=(b" " * 100 for _ in range(30)),
            headers={"content-type": "application/json"},
        ),
    ):
        assert answer.status_code == 413, answer.json()


def test_types_encodings_and_hosts(client):
    json_type = {"content-type": "application/json"}
    for ad, (headers, status) in enumerate(
        (
            ({"content-type": "text/plain"}, 415),
            ({"content-type": "application/x-www-form-urlencoded"}, 415),
            ({}, 415),
            ({"content-type": "application/json; charset=latin-1"}, 415),
            (json_type | {"content-encoding": "gzip"}, 415),
            ({"content-type": "Application/JSON; charset=UTF-8"}, 200),
            (json_type | {"host": "evil.example"}, 421),
            (json_type | {"host": "127.0.0.1.evil.example:8010"}, 421),
            (json_type | {"host": "localhost:8010"}, 200),
            (json_type | {"host": "[::1]:8010"}, 200),
        )
    ):
        answer = client.post("/events", content=json.dumps(create(ad)), headers=headers)
        assert answer.status_code == status
        if status != 200:
            assert set(answer.json()) == {"reason", "message"}
            assert client.get(f"/ads/{ad}").status_code == 404


def test_a_foreign_host_cannot_read_either(client):
    assert client.get("/dead-letters", headers={"host": "evil.example"}).status_code == 421


def test_writers_need_the_token(start):
    client = start(host="0.0.0.0", token="s3cret-token", base_url="http://indexer:8010")
    known = {"authorization": "Bearer s3cret-token"}
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret-token"},
                    {"authorization": "Bearer "}, {"authorization": b"Bearer \xff"}):  # fmt: skip
        for answer in (
            client.post("/events", json=create(1), headers=headers),
            client.post("/events/bulk", json=[create(1)], headers=headers),
            client.post("/dead-letters/0/replay", json={}, headers=headers),
            client.delete("/dead-letters/0", headers={**headers, "content-type": "application/json"}),
        ):
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/ads/1").status_code == 404
    assert client.post("/events", json=create(1), headers=known).status_code == 200
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("host", "token"),
    [
        ("0.0.0.0", None),
        ("10.0.0.1", None),
        ("::", None),
        ("indexer", None),
        ("127.0.0.1", "short"),
        ("127.0.0.1", "späße-und-mehr"),
    ],
)
def test_an_open_address_without_a_token_is_refused(host, token):
    with pytest.raises(ValueError, match="expected a token"):
        Guard(host, token=token)


def test_dead_letters_by_pages_replay_and_delete(client):
    for ad in range(5):
        client.post("/events", json=json.loads(event(ad, 3)))
    client.post("/events", content=b"\xff", headers={"content-type": "application/json"})
    page = client.get("/dead-letters?limit=4").json()
    assert [x["number"] for x in page["dead_letters"]] == [0, 1, 2, 3]
    rest = client.get(f"/dead-letters?limit=4&after={page['next']}").json()
    assert [x["number"] for x in rest["dead_letters"]] == [4, 5]
    assert rest["next"] is None
    assert rest["dead_letters"][1]["raw"] == "\\xff"

    assert client.post("/dead-letters/0/replay", json={}).status_code == 409  # still no such ad
    client.post("/events", json=create(0))  # what waits for it applies by itself
    assert client.get("/ads/0").json()["status"] == "paused"
    assert client.post("/dead-letters/0/replay", json={}).status_code == 404
    headers = {"content-type": "application/json"}
    assert client.delete("/dead-letters/1", headers=headers).status_code == 204
    assert client.delete("/dead-letters/1", headers=headers).status_code == 404
    assert [x["number"] for x in client.get("/dead-letters").json()["dead_letters"]] == [2, 3, 4, 5]


def test_a_dead_letter_for_want_of_an_account_can_be_replayed(start, folder, monkeypatch):
    monkeypatch.setattr("indexer.sidecar.accounts._LOOK_S", 0.0)
    accounts = folder / "accounts.txt"
    accounts.write_text("acme\n")
    client = start(accounts=accounts)
    refused = client.post("/events", json=create(1, account_id="new"))
    assert (refused.status_code, refused.json()["reason"]) == (409, "unknown_account")
    accounts.write_text("acme\nnew\n\n")
    wait_until(lambda: client.post("/dead-letters/0/replay", json={}).status_code == 200)
    assert client.get("/ads/1").json()["content"]["account_id"] == "new"


def test_parameters_out_of_range_are_named(client):
    for path, message in (
        ("/ads/x", "path ad_id: .* got 'x'"),
        ("/ads/-1", "path ad_id: .* greater than or equal to 0, got '-1'"),
        (f"/ads/{1 << 63}", "path ad_id: .* got '9223372036854775808'"),
        ("/dead-letters?limit=0", "query limit: .* greater than or equal to 1, got '0'"),
        ("/dead-letters?after=x", "query after: .* integer.* got 'x'"),
    ):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["reason"]) == (422, "invalid")
        assert re.fullmatch(message, answer.json()["message"])


def test_unknown_paths_and_methods(client):
    assert client.get("/nothing").json()["reason"] == "not_found"
    assert client.get("/events").json()["reason"] == "wrong_method"


def test_a_fault_shows_no_traceback(client, monkeypatch):
    monkeypatch.setattr(client.sidecar.store, "ad", lambda _: 1 // 0)
    answer = client.get("/ads/1")
    assert answer.status_code == 500
    assert answer.json()["reason"] == "internal"
    assert "Zero" not in answer.text


def test_a_full_store_is_507_unready_and_still_readable(start):
    client = start(map_size=1 << 19, worker=WorkerConfig(max_retry_s=0.2))
    answers = [client.post("/events", json=create(a, text="x" * 5000)) for a in range(150)]
    codes = [a.status_code for a in answers]
    assert codes[0] == 200
    assert set(codes) <= {200, 507}
    full = answers[codes.index(507)]
    assert full.json()["reason"] == "no_space"
    assert int(full.headers["retry-after"]) >= 1
    applied = [a for a, code in enumerate(codes) if code == 200]
    assert all(client.get(f"/ads/{a}").status_code == 200 for a in applied)
    client.sidecar.worker.call(lambda: client.sidecar.store.file.environment.set_mapsize(1 << 24)).result(5)
    wait_until(lambda: client.get("/readyz").status_code == 200)
    assert client.post("/events", json=create(999)).status_code == 200


def test_ready_and_healthy(client):
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"ready": True, "problems": [], "sources": {}}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_health_and_metrics_answer_head(client, path):
    answer = client.head(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == client.get(path).headers["content-type"]
    assert client.head("/dead-letters").status_code == 405  # what is no health


def test_blank_text_becomes_a_dead_letter(client):
    answer = client.post("/events", json=create(7, text=" \n"))
    assert (answer.status_code, answer.json()["reason"]) == (422, "missing_field")
    assert client.get("/ads/7").status_code == 404
    [letter] = client.get("/dead-letters").json()["dead_letters"]
    assert letter["message"].startswith("text: expected a text, got a blank one")


def test_without_an_encoder_it_is_not_ready_but_ads_can_be_paused(start, folder):
    with IndexStore(folder / "index", encoders=[HashEncoder("tok-a")]) as store:
        store.build(
            "tok-a",
            LEVEL_SIZES,
            ad_ids=np.arange(3),
            sids=np.zeros((3, 3), np.int32),
            statuses=np.full(3, "active"),
        )
    shutil.rmtree(folder / "bundles")
    client = start()
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["problems"][0].startswith("no encoder for new ads")
    assert client.post("/events", json=json.loads(event(1))).status_code == 200
    assert client.get("/ads/1").json()["status"] == "paused"
    assert client.post("/events", json=create(9)).json()["reason"] == "no_encoder"


def test_not_ready_while_the_writer_hangs(start, monkeypatch):
    client = start(worker=WorkerConfig(stuck_s=0.2))
    apply = client.sidecar.store.apply

    def slow(*args, **kwargs):
        time.sleep(0.8)
        return apply(*args, **kwargs)

    monkeypatch.setattr(client.sidecar.store, "apply", slow)
    posting = threading.Thread(target=lambda: client.post("/events", json=create(1)))
    posting.start()
    wait_until(lambda: client.get("/readyz").status_code == 503, timeout_s=2)
    assert client.get("/healthz").status_code == 200
    posting.join()
    wait_until(lambda: client.get("/readyz").status_code == 200)


def test_a_new_tokenizer_gets_a_generation_that_is_filled_while_events_go_on(start, folder, monkeypatch):
    monkeypatch.setattr("indexer.sidecar.bundle_watch._LOOK_S", 0.05)
    monkeypatch.setattr("indexer.sidecar.bundle_watch._FILL_ADS", 10)
    client = start()
    client.post("/events/bulk", json=[create(a) for a in range(200)])
    write_manifest(folder / "bundles", 2, "tok-b")
    for ad in range(200, 230):
        assert client.post("/events", json=create(ad)).status_code == 200
    wait_until(lambda: metrics(client).get('gr4ad_indexer_generation_ready{generation="tok-b"}') == 1)
    for ad in (0, 199, 200, 229):
        content = {"account_id": "acme", "conversion_type": "buy", "text": f"shoes {ad}"}
        wanted = {name: HashEncoder(name).encode([ad], [content])[0].tolist() for name in ("tok-a", "tok-b")}
        assert client.get(f"/ads/{ad}").json()["sids"] == wanted
    assert metrics(client)['gr4ad_indexer_ads{generation="tok-b",status="active"}'] == 230


def test_a_bundle_without_an_encoder_is_a_problem_and_older_ones_begin_nothing(folder):
    shutil.rmtree(folder / "bundles")
    write_manifest(folder / "bundles", 1, "tok-old")
    write_manifest(folder / "bundles", 2, "tok-a")

    def load(bundle):
        raise BundleError(f"bundle {bundle.name}: expected encoder, found none")

    with IndexStore(folder / "index") as store:
        watch = BundleWatch(store, folder / "bundles", load=load)
        watch()
        assert watch.missing() == ["no encoder for new ads: bundle 2: expected encoder, found none"]
        watch = BundleWatch(store, folder / "bundles", load=load_hash_encoder)
        watch()
        assert watch.missing() == []
        assert list(store.meta.generations) == ["tok-a"]


@pytest.mark.parametrize("text", ["²".encode(), b"9" * 5_000, b"", b"\xff", b"7"])
def test_a_current_that_names_nothing_keeps_no_sidecar_from_starting(start, folder, caplog, text):
    """Encoders of what it named before are loaded; the reason is told once."""
    point_current(folder / "bundles", 1)
    (folder / "bundles" / "CURRENT").write_bytes(text)
    client = start()
    assert client.post("/events", json=create(1)).json()["result"] == "applied"
    assert client.get("/readyz").status_code == 200
    told = [record for record in caplog.records if "CURRENT: expected" in record.getMessage()]
    assert len(told) == 1


def test_metrics(client, tmp_path):
    client.post("/events/bulk", json=[create(1), create(2), create(1), {"kind": "x"}])
    client.post("/events", content=event(2, 2, "pause"), headers={"content-type": "application/json"})
    values = metrics(client)
    name = "gr4ad_indexer_"
    assert values[f'{name}events_total{{kind="create",reason="",result="applied",source="http"}}'] == 2
    assert values[f'{name}events_total{{kind="create",reason="",result="stale",source="http"}}'] == 1
    assert values[f'{name}ads{{generation="tok-a",status="active"}}'] == 1
    assert values[f'{name}ads{{generation="tok-a",status="inactive"}}'] == 1
    assert values[f"{name}ads_known"] == 2
    assert values[f"{name}dead_letters"] == 1
    assert values[f'{name}changes_since_base{{generation="tok-a"}}'] == 3
    assert values[f"{name}sequence"] == client.get("/ads/1").json()["sequence"]
    assert values[f'{name}disk_bytes{{part="store"}}'] > 0
    assert values[f"{name}queue_depth"] == 0
    assert values[f"{name}ready"] == 1
    assert values[f"{name}heartbeat_timestamp_seconds"] > 1e9
    assert values[f"{name}commit_seconds_count"] == 2


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_metrics(client):
    client.post("/events", json=create(1))
    text = client.get("/metrics").text
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr + checked.stdout
