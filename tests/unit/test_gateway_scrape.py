"""Triton's metrics page through the gateway: read once for many, and no page is no failure."""

import asyncio

import pytest

from gateway.scrape import Scrape
from tests.metrics_page import showing


@pytest.fixture
def source():
    with showing("nv_inference_count 7\n") as server:
        yield server


def test_many_at_once_are_one_read(source):
    now = [100.0]

    async def scenario() -> list[bytes]:
        scrape = Scrape(source.url, clock=lambda: now[0])
        found = await asyncio.gather(*(scrape.page() for _ in range(50)))
        assert source.reads == 1
        now[0] += 0.3
        source.page = "nv_inference_count 8\n"
        return [*found, await scrape.page()]

    assert asyncio.run(scenario()) == [b"nv_inference_count 7\n"] * 50 + [b"nv_inference_count 8\n"]
    assert source.reads == 2


def test_a_page_that_is_away_or_endless_is_left_out(source):
    async def read(url: str) -> bytes:
        return await Scrape(url).page()

    source.page = "x" * ((8 << 20) + 1)
    assert asyncio.run(read(source.url)) == b""
    assert asyncio.run(read("http://127.0.0.1:1/metrics")) == b""
