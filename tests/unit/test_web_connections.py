"""The guard for connections on a real server: who is kept, who goes, and that nobody keeps others away."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections import Counter

import pytest

from tests.waiting import wait_until
from web.body import read_body
from web.connections import ConnectionLimits, Connections, address_key
from web.errors import HttpError
from web.server import bind, listen, serve


class Service:
    """A server in a thread: /held answers once `release` is set, /body with the length of its body."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.release, self.refused, self.left = threading.Event(), Counter(), 0
        self._over = threading.Event()
        self.books = Connections(
            limits,
            body_of=lambda error: json.dumps({"why": error.message}).encode(),
            health=frozenset({"/health"}),
            refused=lambda reason: self.refused.update([reason]),
        )
        listener = bind("127.0.0.1", 0)
        self.address = ("127.0.0.1", listener.getsockname()[1])
        listen(listener)
        self._thread = threading.Thread(
            target=serve,
            args=(self.app, listener),
            kwargs={"connections": self.books, "ended": self._over.is_set, "grace_s": 5},
        )
        self._thread.start()

    def stop(self) -> None:
        self.release.set()
        self._over.set()
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def app(self, scope, receive, send) -> None:
        answer, status = b"fine", 200
        if scope["path"] == "/held":
            while not self.release.is_set():
                await asyncio.sleep(0.01)
        elif scope["path"] == "/big":
            answer = bytes(64 << 20)
        elif scope["path"] == "/body":
            try:
                body = await read_body(receive, length="", limit=1 << 20, timeout_s=60)
                answer = str(len(body)).encode()
            except HttpError as error:
                self.left += error.reason == "gone"
                answer, status = error.message.encode(), error.status
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def ask(self, path: str = "/", *, header: bytes = b"", body: bytes = b"") -> tuple[int, bytes, float]:
        """Status and body of an answer, and the seconds that it took."""
        began = time.monotonic()
        with self.connect() as connection:
            length = b"" if b"chunked" in header else b"Content-Length: %d\r\n" % len(body)
            connection.sendall(
                b"POST %s HTTP/1.1\r\nHost: x\r\n%s%s\r\n%s" % (path.encode(), length, header, body)
            )
            status, answer = read_answer(connection)
        return status, answer, time.monotonic() - began


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        received += (more := connection.recv(1 << 16))
        if not more:
            raise ConnectionError(f"closed after {received!r}")
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < int(lengths[0].split(b":")[1]):
        body += connection.recv(1 << 16)
    return int(head.split(b" ")[1]), body


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(1 << 16):
            pass
        return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.fixture
def start():
    with contextlib.ExitStack() as running:

        def started(**limits) -> Service:
            service = Service(ConnectionLimits(**limits))
            running.callback(service.stop)
            return service

        yield started


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nA: b\r\n", b"POST /body HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"],
    ids=["silent", "in the request line", "in the header", "in the body"],
)
def test_600_who_keep_us_waiting_keep_nobody_away(start, sent):
    service = start(connections=512, per_address=400)
    with contextlib.ExitStack() as open_ones:
        for _ in range(600):
            open_ones.enter_context(service.connect()).sendall(sent)
        for _ in range(20):
            status, answer, seconds = service.ask()
            assert (status, answer) == (200, b"fine")
            assert seconds < 1.0
        assert len(service.books.open) <= 400


def test_600_slow_senders_are_cut_off(start):
    service = start(header_s=1.0, linger_s=0.5)
    with contextlib.ExitStack() as open_ones:
        slow = [open_ones.enter_context(service.connect()) for _ in range(600)]
        began, answered = time.monotonic(), 0
        for byte in b"GET / HTTP/1.1\r\nX: ":
            for connection in slow:
                with contextlib.suppress(ConnectionError):
                    connection.send(bytes([byte]))
            status, _, seconds = service.ask()
            assert status == 200
            assert seconds < 1.0
            answered += 1
            if time.monotonic() - began > 3:
                break
            time.sleep(0.1)
        assert answered > 5
        wait_until(lambda: all(is_closed(c) for c in slow), timeout_s=5)
        assert service.refused["slow_header"] == 600
        wait_until(lambda: not service.books.open, timeout_s=2)


def test_the_oldest_goes_first_and_a_request_in_hand_never(start):
    service = start(connections=3, per_address=3)
    with service.connect() as held, service.connect() as first, service.connect() as second:
        held.sendall(b"GET /held HTTP/1.1\r\n\r\n")
        first.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert read_answer(first) == (200, b"fine")
        second.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert read_answer(second) == (200, b"fine")
        first.sendall(b"GET / HTTP/1.1\r\n\r\n")  # now second has been idle for longer
        assert read_answer(first) == (200, b"fine")
        with service.connect():
            wait_until(lambda: is_closed(second), timeout_s=2)
            assert not is_closed(first)
        service.release.set()
        held.setblocking(True)
        assert read_answer(held) == (200, b"fine")


def test_with_requests_in_hand_everywhere_only_health_is_answered(start):
    service = start(connections=4, per_address=4, spare=2)
    with contextlib.ExitStack() as open_ones:
        held = [open_ones.enter_context(service.connect()) for _ in range(4)]
        for connection in held:
            connection.sendall(b"GET /held HTTP/1.1\r\n\r\n")
        wait_until(lambda: not service.books._waiting, timeout_s=2)
        silent = [open_ones.enter_context(service.connect()) for _ in range(10)]
        status, answer, seconds = service.ask()
        assert status == 503
        assert "too many connections" in json.loads(answer)["why"]
        for _ in range(5):
            assert service.ask("/health")[:2] == (200, b"fine")
        assert seconds < 1.0
        assert len(service.books.open) <= 6
        wait_until(lambda: sum(map(is_closed, silent)) >= 8, timeout_s=2)
        service.release.set()
        assert [read_answer(connection) for connection in held] == [(200, b"fine")] * 4
    wait_until(lambda: not service.books.open, timeout_s=2)
    assert service.ask()[0] == 200


def test_one_address_cannot_take_all_places(start):
    service = start(connections=10, per_address=5)
    with contextlib.ExitStack() as open_ones:
        other = open_ones.enter_context(socket.socket())
        other.bind(("127.0.0.2", 0))
        other.connect(service.address)
        for _ in range(30):
            open_ones.enter_context(service.connect())
        wait_until(lambda: service.refused["connections"] >= 25, timeout_s=2)
        assert not is_closed(other)
        assert service.books._by_address == {"127.0.0.1": 5, "127.0.0.2": 1}


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 431, "16,384 bytes"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 300_000, 431, "16,384 bytes"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431, "100 lines"),
        (b"hello\r\n\r\n", 400, "Invalid HTTP"),
        (
            b"POST /body HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "Invalid HTTP",
        ),
        (
            b"POST /body HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 10_001,
            413,
            "10,000 chunks",
        ),
        (
            b"POST /body HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nHost: y\r\n\r\n",
            400,
            "behind the body",
        ),
    ],
    ids=["url", "header value", "header lines", "no HTTP", "two lengths", "chunks", "trailers"],
)
def test_what_is_too_much_is_refused_with_a_reason(start, request_, status, text):
    service = start()
    with service.connect() as connection:
        connection.sendall(request_)
        got, answer = read_answer(connection)
        assert got == status
        assert text in json.loads(answer)["why"]
    assert service.ask()[0] == 200
    wait_until(lambda: not service.books.open, timeout_s=2)


def test_ten_thousand_chunks_are_a_body(start):
    body = b"1\r\nx\r\n" * 9_999 + b"0\r\n\r\n"
    status, answer, _ = start().ask("/body", header=b"Transfer-Encoding: chunked\r\n", body=body)
    assert (status, answer) == (200, b"9999")


def test_a_slow_body_ends_the_wait_of_the_application(start):
    service = start(body_s=0.5)
    with service.connect() as connection:
        connection.sendall(b"POST /body HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc")
        status, answer = read_answer(connection)
        assert status == 408
        assert "whole body" in json.loads(answer)["why"]
    wait_until(lambda: service.left == 1, timeout_s=2)


def test_a_body_that_is_refused_early_may_still_be_sent_for_a_moment(start):
    service = start(linger_s=0.5)
    with service.connect() as connection:
        connection.sendall(b"POST /body HTTP/1.1\r\nContent-Length: 99000000\r\n\r\n" + bytes(2 << 20))
        assert read_answer(connection)[0] == 413  # not a reset connection
        wait_until(lambda: is_closed(connection), timeout_s=3)


def test_a_client_that_does_not_read_its_answer_is_cut_off(start):
    service = start(write_s=0.5)
    with service.connect() as connection:
        connection.sendall(b"GET /big HTTP/1.1\r\n\r\n")
        wait_until(lambda: service.refused["slow_reader"] == 1, timeout_s=5)
        wait_until(lambda: not service.books.open, timeout_s=2)


def test_requests_sent_ahead_are_answered_in_order_up_to_a_number(start):
    service = start(pipelined=3)
    with service.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n" * 3)
        received = b""
        while received.count(b"fine") < 3:
            received += connection.recv(1 << 16)
    with service.connect() as connection:
        connection.sendall(b"GET /held HTTP/1.1\r\n\r\n" * 100)
        wait_until(lambda: is_closed(connection), timeout_s=2)
        assert service.refused["pipelined"] == 1


def test_nonsense_behind_a_good_request_does_not_take_its_answer(start):
    service = start()
    with service.connect() as connection:
        connection.sendall(b"GET /held HTTP/1.1\r\n\r\n" + b"nonsense\r\n\r\n")
        wait_until(lambda: service.refused["invalid_http"] == 1, timeout_s=2)
        service.release.set()
        assert read_answer(connection) == (200, b"fine")
        wait_until(lambda: is_closed(connection), timeout_s=2)


def test_stopping_answers_what_is_in_hand_and_what_still_comes_at_once():
    service = Service(ConnectionLimits(drain_s=1.0))
    with contextlib.ExitStack() as open_ones:
        held = [open_ones.enter_context(service.connect()) for _ in range(48)]
        idle = open_ones.enter_context(service.connect())
        for connection in held:
            connection.sendall(b"GET /held HTTP/1.1\r\n\r\n")
        idle.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert read_answer(idle)[0] == 200
        wait_until(lambda: len(service.books._waiting) == 1, timeout_s=2)
        stopping = threading.Thread(target=lambda: (service._over.set(), service._thread.join(10)))
        stopping.start()
        wait_until(lambda: service.books.draining_since is not None, timeout_s=2)
        with pytest.raises(OSError, match="refused"):
            service.connect()
        idle.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert read_answer(idle)[0] == 200
        service.release.set()
        assert [read_answer(connection) for connection in held] == [(200, b"fine")] * 48
        stopping.join()
        assert not service._thread.is_alive()


def test_one_client_is_an_address_or_a_network_of_64_bits():
    assert address_key("10.0.0.1") == "10.0.0.1"
    assert address_key("2001:db8:1:2:3:4:5:6") == address_key("2001:db8:1:2::7") == "2001:db8:1:2::/64"
    assert address_key("fe80::1%eth0") == "fe80::/64"
    assert address_key("") == ""
