"""Triton's metrics page through the gateway: read once for many, and no page is no failure."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gateway.scrape import Scrape


@pytest.fixture
def page():
    """An HTTP server; `page.body` is what it shows, `page.reads` how often."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            server.reads += 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(server.body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.reads, server.body = 0, b"nv_inference_count 7\n"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_many_at_once_are_one_read(page):
    now = [100.0]

    async def scenario() -> list[bytes]:
        scrape = Scrape(f"http://127.0.0.1:{page.server_port}/metrics", clock=lambda: now[0])
        found = await asyncio.gather(*(scrape.page() for _ in range(50)))
        assert page.reads == 1
        now[0] += 0.3
        page.body = b"nv_inference_count 8\n"
        return [*found, await scrape.page()]

    assert asyncio.run(scenario()) == [b"nv_inference_count 7\n"] * 50 + [b"nv_inference_count 8\n"]
    assert page.reads == 2


def test_a_page_that_is_away_or_endless_is_left_out(page):
    async def read(url: str) -> bytes:
        return await Scrape(url).page()

    page.body = b"x" * ((8 << 20) + 1)
    assert asyncio.run(read(f"http://127.0.0.1:{page.server_port}/metrics")) == b""
    assert asyncio.run(read("http://127.0.0.1:1/metrics")) == b""
