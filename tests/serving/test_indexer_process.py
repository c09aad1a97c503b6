"""The true sidecar process: SIGKILL, a second writer, Ctrl-C, wrong options, an endless body, a full disk."""

import http.client
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from indexer.store.index_store import IndexStore
from indexer.store.verify import verify
from launcher.paths import HOME
from tests.indexer_process import IndexerProcess, indexed, sidecars
from tests.recording_store import event
from tests.redis_server import BINARY, RedisServer
from tests.waiting import wait_until

ADS = 200


@pytest.fixture
def folder(tmp_path):
    return indexed(tmp_path, ads=ADS)


@pytest.fixture
def start(folder):
    with sidecars(folder) as start:
        yield start


def change(ad_id: int, version: int) -> dict:
    return {"kind": ("pause", "resume")[version % 2], "ad_id": ad_id, "version": version}


def test_nothing_acknowledged_is_lost_by_sigkill(start, folder):
    acknowledged: dict[int, int] = {}

    def write(process: IndexerProcess, ads: range, stop: threading.Event) -> None:
        version = max(acknowledged.values(), default=0)
        while not stop.is_set():
            version += 1
            for ad in ads:
                try:
                    status, answer = process.ask("POST", "/events", change(ad, version))
                except (OSError, http.client.HTTPException):
                    return
                if status == 200 and answer["result"] == "applied":
                    acknowledged[ad] = version

    for turn in range(3):
        process, stop = start(), threading.Event()
        writers = [threading.Thread(target=write, args=(process, range(w, 40, 4), stop)) for w in range(4)]
        before = dict(acknowledged)
        for writer in writers:
            writer.start()
        wait_until(lambda before=before: len(acknowledged) == 40 and acknowledged != before, timeout_s=30)
        time.sleep(0.3 + 0.17 * turn)
        process.kill()
        stop.set()
        for writer in writers:
            writer.join()
        assert verify(folder / "index") == []
    process = start()
    for ad, version in acknowledged.items():
        found = process.ask("GET", f"/ads/{ad}")[1]
        assert found["status_version"] >= version
        assert found["status"] == ("paused", "active")[found["status_version"] % 2]
    assert process.stop() == 0
    assert verify(folder / "index") == []


def test_a_second_process_is_refused(start, folder):
    start()
    paths = ["--index", folder / "index", "--bundles", folder / "bundles"]
    second = subprocess.run(
        [sys.executable, "-m", "indexer", "serve", *paths, "--port", "0"],
        cwd=HOME, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert second.returncode == 1
    assert "another writer holds it" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_in_order(start, folder, number):
    process = start()
    assert process.ask("POST", "/events", change(1, 2))[0] == 200
    idle = socket.create_connection(("127.0.0.1", process.port))  # must not hold it up
    began = time.monotonic()
    assert process.stop(number) == 0
    assert time.monotonic() - began < 5
    idle.close()
    assert process.log.rstrip().endswith("stopped")
    assert "Traceback" not in process.log
    assert verify(folder / "index") == []


def test_answers_do_not_wait_for_the_clients_acknowledgement(start):
    process, took = start(), []
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=30)
    for _ in range(40):
        began = time.perf_counter()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        took.append(time.perf_counter() - began)
    connection.close()
    assert min(took[5:]) < 0.03  # with Nagle's algorithm all but the first take 40 ms


def test_options_that_cannot_be(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        paths = ["--index", folder / "index", "--bundles", folder / "bundles"]
        cases = [
            (["--port", str(taken.getsockname()[1])], 1, "cannot listen"),
            (["--host", "0.0.0.0"], 2, "GR4AD_INDEXER_TOKEN"),
            (["--batch-events", "0"], 2, "batch_events"),
            (["--port", "0", "--redis-url", "http://x"], 2, "redis://"),
            (["--kafka-brokers", "x", "--kafka-option", "y"], 2, "NAME=VALUE"),
            (["--port", "0", "--accounts", folder / "nothing"], 1, "nothing"),
        ]
        for options, code, message in cases:
            ended = subprocess.run([sys.executable, "-m", "indexer", *paths, *options], cwd=HOME,
                                   capture_output=True, text=True, timeout=60)  # fmt: skip
            assert (ended.returncode, message in ended.stderr) == (code, True), ended.stderr
            assert "Traceback" not in ended.stderr


def test_an_endless_body_is_cut_off_and_takes_no_memory(start):
    process = start()

    def peak_kib() -> int:
        with open(f"/proc/{process.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

    before, sent, chunk = peak_kib(), 0, b" " * (1 << 20)
    with socket.create_connection(("127.0.0.1", process.port), timeout=30) as connection:
        head = "POST /events/bulk HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        try:
            while sent < 1 << 30:
                connection.sendall(b"%x\r\n" % len(chunk) + chunk + b"\r\n")
                sent += len(chunk)
        except OSError:
            pass
    assert sent < 200 << 20
    assert peak_kib() - before < 150_000
    with socket.create_connection(("127.0.0.1", process.port), timeout=30) as connection:
        connection.sendall(f"{head}Content-Length: {10 << 30}\r\n\r\n".encode())
        assert b" 413 " in connection.recv(1000).split(b"\r\n")[0]
    assert process.ask("GET", "/healthz")[0] == 200


def test_a_disk_that_takes_no_more_is_said_and_recovers(start, folder):
    process = start()
    size = (folder / "index/store/data.mdb").stat().st_size
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    acknowledged, refused = {}, None
    for version in range(1, 200):
        big = {
            "kind": "pause",
            "ad_id": 1_000_000 + version,
            "version": version,
        }  # a dead letter: takes space
        status, answer = process.ask("POST", "/events", big)
        if status not in (200, 409):
            refused = status, answer
            break
        acknowledged[version] = status
    assert refused is not None
    assert refused[0] in (503, 507)
    assert "writable" in refused[1]["message"]
    status, ready = process.ask("GET", "/readyz")
    assert status == 503
    assert any("not writable" in p for p in ready["problems"])
    resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, unlimited)
    wait_until(lambda: process.ask("POST", "/events", change(1, 2))[0] == 200, timeout_s=40)
    kept = process.ask("GET", "/dead-letters?limit=1000")[1]["dead_letters"]
    assert {x["event"]["version"] for x in kept} == set(acknowledged)
    assert process.stop() == 0
    assert verify(folder / "index") == []


@pytest.mark.skipif(BINARY is None, reason="redis-server is not installed")
def test_a_stream_through_sigkill_of_process_and_redis(start, folder, tmp_path):
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    options = ("--redis-url", server.url, "--redis-stream", "ads", "--batch-events", "5")
    try:

        def add(versions: range) -> None:
            pipeline = server.client.pipeline(transaction=False)
            for version in versions:
                for ad in range(20):
                    pipeline.xadd("ads", {"event": event(ad, version, ("pause", "resume")[version % 2])})
            pipeline.execute()

        process = start(*options)
        add(range(1, 60))
        time.sleep(0.3)
        process.kill()
        assert verify(folder / "index") == []
        process = start(*options)
        add(range(60, 100))
        server.kill()
        time.sleep(0.5)
        server.start()
        add(range(100, 120))

        def applied() -> bool:
            return all(process.ask("GET", f"/ads/{ad}")[1]["status_version"] == 119 for ad in range(20))

        wait_until(applied, timeout_s=30)
        wait_until(lambda: server.client.xpending("ads", "gr4ad-indexer")["pending"] == 0)
        assert process.stop() == 0
    finally:
        server.close()
    with IndexStore(folder / "index") as store:
        counters = store.file.counters
        # Versions rise, so one that was applied twice would be stale, one left out missing.
        assert (counters["applied.pause"], counters["applied.resume"]) == (20 * 59, 20 * 60)
        assert not any(name.startswith(("stale", "rejected")) for name in counters)
    assert verify(folder / "index") == []
