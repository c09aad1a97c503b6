"""Actions: what is sent to the sidecar, what CURRENT names afterwards, which load is started."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from console.actions import Actions
from serving.model.current import current_version, point_current
from tests.indexing import sidecar_client, write_manifest
from web.errors import HttpError


@contextmanager
def forwarded(client):
    """A sidecar's API on a real port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            self._answer(client.get(self.path))

        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(client.post(self.path, content=body, headers=dict(self.headers)))

        def _answer(self, answer) -> None:
            self.send_response(answer.status_code)
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def perform(actions: Actions, name: str, **body) -> str:
    return actions.perform(name, json.dumps(body).encode())


def refused(actions: Actions, name: str, **body) -> HttpError:
    with pytest.raises(HttpError) as error:
        perform(actions, name, **body)
    return error.value


NEW = {"account_id": "a", "conversion_type": "buy", "text": "<b>bread</b>"}


def test_ads_are_created_paused_and_brought_back_by_events_of_the_sidecar(tmp_path):
    write_manifest(tmp_path / "bundles", 1, "tok")
    with sidecar_client(tmp_path, token="sidecar's own") as client, forwarded(client) as url:
        actions = Actions(indexer=url, indexer_token="sidecar's own")

        def status(ad_id) -> str:
            found = f"/ads/{ad_id}" if isinstance(ad_id, int) else f"/ads?key={ad_id}"
            return client.get(found).json()["status"]

        for ad_id in (7, "k7"):
            assert perform(actions, "new_ad", ad_id=ad_id, **NEW) == f"create of ad {ad_id} is applied"
            assert status(ad_id) == "active"
            client.post(
                "/events",
                json={"kind": "update", "ad_id": ad_id, "version": 5_000, "text": "x"},
                headers={"Authorization": "Bearer sidecar's own"},
            )
            perform(actions, "pause_ad", ad_id=ad_id)
            assert status(ad_id) == "paused"
            perform(actions, "resume_ad", ad_id=ad_id)
            assert status(ad_id) == "active"
        assert client.get("/ads/7").json()["content"]["text"] == "x"
        unknown = refused(actions, "pause_ad", ad_id=99)
        assert (unknown.status, unknown.message) == (409, "ad 99: the sidecar answers 404 Not Found")
        assert refused(actions, "new_ad", ad_id=8, **(NEW | {"text": "  "})).status == 422
        wrong = refused(Actions(indexer=url, indexer_token="another one"), "new_ad", ad_id=8, **NEW)
        assert (wrong.status, "401" in wrong.message) == (409, True)
    assert "no indexer at" in refused(actions, "new_ad", ad_id=9, **NEW).message


def test_a_rollback_names_a_version_that_is_whole(tmp_path):
    for version in (1, 2):
        write_manifest(tmp_path, version, "tok")
        file = tmp_path / str(version) / "manifest.json"
        manifest = json.loads(file.read_text())
        for name in manifest["sha256"]:
            (file.parent / name).write_bytes(b"graph")
            manifest["sha256"][name] = hashlib.sha256(b"graph").hexdigest()
        file.write_text(json.dumps(manifest))
    point_current(tmp_path, 2)
    actions = Actions(bundles=tmp_path)
    assert perform(actions, "rollback", version=1).startswith("CURRENT names version 1")
    assert current_version(tmp_path) == 1
    next((tmp_path / "2").glob("*.onnx")).write_bytes(b"damaged")
    assert "corrupted" in refused(actions, "rollback", version=2).message
    assert refused(actions, "rollback", version=3).status == 409
    assert current_version(tmp_path) == 1


def test_a_load_is_started_once_and_ends_with_the_console(monkeypatch):
    started = []

    class Process:
        def __init__(self, command, **_):
            started.append((command, self))
            self.ended = False

        def poll(self):
            return 0 if self.ended else None

        def terminate(self):
            self.ended = True

        def wait(self, timeout):
            return 0

    monkeypatch.setattr("console.actions.subprocess.Popen", Process)
    actions = Actions(load=["--run", "r", "--url", "u"])
    actions.close()
    assert "between 5 and 20 requests a second for 10 s" in perform(actions, "load_spike", seconds=10)
    command, process = started[0]
    assert command[1:] == [
        *("-m", "loadtest", "--shape", "spike", "--name", "console", "--run", "r", "--url", "u"),
        *("--qps=5", "--peak=4", "--duration=10"),
    ]
    assert refused(actions, "load_spike").message == "a load is running already"
    for wrong in ({"qps": 1e9}, {"peak": 0.5}, {"seconds": 3600}, {"qps": "nan"}):
        assert refused(actions, "load_spike", **wrong).status == 422
    actions.close()
    assert process.ended
    perform(actions, "load_spike")
    assert len(started) == 2


def test_only_what_the_deployment_has_is_offered(tmp_path):
    def names(**parts) -> list[str]:
        return [action["name"] for action in Actions(**parts).describe()]

    assert names() == []
    assert names(indexer="http://x") == ["new_ad", "pause_ad", "resume_ad"]
    assert names(bundles=tmp_path, load=[]) == ["load_spike", "rollback"]
    (rollback,) = Actions(bundles=tmp_path).describe()
    assert rollback["fields"] == [{"name": "version", "default": None, "number": True}]
