"""The console's own HTTP: who may look and act, fifty viewers at once, what is malformed."""

import asyncio
import json
import threading
import time

import httpx2
import pytest

from console.actions import Actions
from console.board import Board
from console.feeds import LiveFeed
from console.guard import Guard
from console.watch import Watch
from tests.console_server import TOKEN, running
from tests.metrics_page import server_page, showing
from tests.waiting import wait_until
from web.errors import HttpError


@pytest.fixture(scope="module")
def console():
    with running() as console:
        yield console


def test_the_page_and_its_files_need_nothing_from_elsewhere(console):
    status, headers, page = console.ask("GET", "/")
    assert status == 200
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert b"http://" not in page
    assert b"https://" not in page
    assert b"<script>" not in page
    assert b"style=" not in page
    for name in ("console.js", "console.css", "uPlot.iife.min.js"):
        status, headers, _ = console.ask("GET", f"/static/{name}")
        assert status == 200
        assert headers["content-type"].startswith("text/css" if name.endswith("css") else "text/javascript")


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/LICENSE.uPlot", "/docs"]
)
def test_nothing_else_is_given_out(console, path):
    status, headers, body = console.ask("GET", path)
    assert status == 404
    assert json.loads(body)["reason"] == "not_found"
    assert "content-security-policy" in headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8020", "127.0.0.1.evil.example", ""])
@pytest.mark.parametrize("path", ["/", "/api/about", "/api/frames", "/healthz"])
def test_a_foreign_name_in_host_is_refused(console, host, path):
    status, _, body = console.ask("GET", path, headers={"Host": host})
    assert status == 421
    assert json.loads(body)["reason"] == "wrong_host"


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8020"])
def test_names_of_this_machine_are_taken(console, host):
    assert console.ask("GET", "/api/about", headers={"Host": host})[0] == 200


def test_a_name_that_is_given_is_taken():
    with running(guard=Guard("127.0.0.1", names=frozenset({"ads.example"}))) as console:
        for host, status in (("ads.example", 200), ("ads.example:8020", 200), ("b.ads.example", 421)):
            assert console.ask("GET", "/api/about", headers={"Host": host})[0] == status


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/frames"), ("POST", "/api/request"), ("POST", "/api/actions/rollback")]
)
def test_a_page_of_another_site_reads_and_does_nothing(console, headers, method, path):
    told = headers | {"Authorization": f"Bearer {TOKEN}"}
    status, _, body = console.ask(method, path, headers=told, body={} if method == "POST" else None)
    assert (status, json.loads(body)["reason"]) == (403, "origin")


def test_our_own_page_and_a_link_to_it_are_let_in(console):
    own = {"Origin": f"http://127.0.0.1:{console.port}", "Sec-Fetch-Site": "same-origin"}
    assert console.ask("GET", "/api/about", headers=own)[0] == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert console.ask("GET", "/", headers=link)[0] == 200


@pytest.mark.parametrize(
    "sent", [None, "", "Bearer", "Bearer ", "Bearer open sesam", f"Basic {TOKEN}", "Bearer \xe9"]
)
def test_actions_need_the_token_on_loopback_too(console, sent):
    headers = {} if sent is None else {"Authorization": sent}
    status, answer, body = console.ask("POST", "/api/actions/rollback", headers=headers, body={"version": 1})
    assert (status, json.loads(body)["reason"]) == (401, "unauthorized")
    assert answer["www-authenticate"] == "Bearer"


def test_without_a_token_nobody_acts_and_none_is_shown():
    with running(guard=Guard("127.0.0.1"), actions=Actions(indexer="http://127.0.0.1:1")) as console:
        assert console.post("/api/actions/pause_ad", {"ad_id": 1})[0] == 403
        assert json.loads(console.ask("GET", "/api/about")[2])["actions"] == []


def test_histories_of_users_need_the_token_where_others_reach_the_console():
    with running(guard=Guard("0.0.0.0", token=TOKEN)) as console:
        assert console.post("/api/request", {}, token=None)[0] == 401
        assert console.post("/api/request", {})[0] == 404  # no run folder here
        assert console.ask("GET", "/api/about")[0] == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 422),
        (b"[]", 422),
        ({"version": 0}, 422),
        ({"version": "x"}, 422),
        ({"version": 1, "more": 1}, 422),
        (b"x" * 70_000, 413),
        ({"version": 99}, 409),
    ],
)
def test_malformed_actions_change_nothing(tmp_path, body, status):
    (tmp_path / "CURRENT").write_text("1\n")
    with running(actions=Actions(bundles=tmp_path)) as console:
        found, answer = console.post("/api/actions/rollback", body)
        assert found == status
        assert answer["message"]
        assert console.post("/api/actions/format_disk", {})[0] == 404
        plain = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "text/plain"}
        assert console.ask("POST", "/api/actions/rollback", headers=plain, body=b"{}")[0] == 415
    assert (tmp_path / "CURRENT").read_text() == "1\n"


async def read_events(client: httpx2.AsyncClient, count: int) -> list[tuple[str, object]]:
    """The first events of a stream, each as its name and JSON."""
    found: list[tuple[str, object]] = []
    async with client.stream("GET", "/api/frames") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((name, json.loads(line.removeprefix("data: "))))
                if len(found) == count:
                    break
    return found


def test_fifty_viewers_see_the_same_and_the_source_is_read_once_for_all():
    async def look(url: str) -> list[list[tuple[str, object]]]:
        limits = httpx2.Limits(max_connections=60)
        async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
            return await asyncio.gather(*(read_events(client, 6) for _ in range(50)))

    with showing(server_page(answered=3)) as source, running() as console:
        board, feed = console.board, LiveFeed({"server": source.url}, bundles=None, hz=5)
        with Watch(board, feed):
            wait_until(lambda: board.latest > 2, what="the first frames")
            before, began = source.reads, time.monotonic()
            seen = asyncio.run(look(console.url))
            seconds, reads = time.monotonic() - began, source.reads - before
        wait_until(lambda: board.viewers == 0, what="the viewers to leave")
    assert reads <= 5 * seconds + 2, f"{reads} reads in {seconds:.1f} s"
    frames = {}
    for events in seen:
        assert [name for name, _ in events] == ["past", *["frame"] * 5]
        assert len(events[0][1]) > 2
        times = [frame["t"] for frame in [*events[0][1], *(frame for _, frame in events[1:])]]
        assert times == sorted(set(times))
        for _, frame in events[1:]:
            assert frames.setdefault(frame["t"], frame) == frame
    assert all(frame["figures"]["answered_total"] == 3 for frame in frames.values())


def test_a_viewer_too_many_is_told_so():
    with running(most_viewers=1) as console:
        board = console.board
        first = threading.Thread(target=lambda: asyncio.run(_one_event(console.url)))
        first.start()
        wait_until(lambda: board.viewers == 1, what="the first viewer")
        status, headers, body = console.ask("GET", "/api/frames")
        assert (status, json.loads(body)["reason"]) == (503, "viewers")
        assert headers["retry-after"]
        board.publish({"t": 1.0})
        first.join(20)
        wait_until(lambda: board.viewers == 0, what="it to leave")
    with pytest.raises(HttpError):
        Board(most_viewers=0).check_room()


async def _one_event(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=20) as client:
        await read_events(client, 2)


def test_only_five_minutes_are_kept():
    board = Board()
    for second in range(0, 400, 10):
        board.publish({"t": float(second)})

    async def past() -> list[dict[str, float]]:
        stream = board.stream()
        event = await anext(stream)
        await stream.aclose()
        return json.loads(event.decode().partition("data: ")[2])

    assert [frame["t"] for frame in asyncio.run(past())] == list(range(90, 400, 10))
