"""Result cache: time to live, bounds, the shared cache on a real Redis that comes and goes."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import redis

from serving.cache import BeamCache, CachedBeams, LocalCache, RedisCache, cache_key
from tests.redis_server import RedisServer, needs_redis

TTL_S = 60.0


def entry(seed: int = 0, *, beams: int = 5) -> CachedBeams:
    random = np.random.default_rng(seed)
    return CachedBeams(
        random.integers(0, 99, (beams, 3), dtype=np.int32),
        random.standard_normal(beams).astype(np.float32),
        np.append(random.random(beams - 1), np.nan).astype(np.float32),
        np.array([2, 4, beams, 3], np.int32),
        (2, 4, 8, 3),
        7 + seed,
    )


def same(a: CachedBeams | None, b: CachedBeams) -> bool:
    return a is not None and all(
        np.array_equal(x, y, equal_nan=isinstance(x, np.ndarray) and x.dtype.kind == "f")
        and (not isinstance(x, np.ndarray) or x.dtype == y.dtype)
        for x, y in ((getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(CachedBeams))
    )


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def key(**changes: object) -> bytes:
    values: dict = {
        "model_version": 1,
        "slots": np.arange(12, dtype=np.int32).reshape(2, 6),
        "profile": np.array([1, 2], np.int32),
        "num_ads": 10,
        "exclude": np.array([5, 7]),
        "settings": "codebook",
    }
    return cache_key(**(values | changes))


def test_equal_requests_have_equal_keys() -> None:
    assert key() == key()
    assert key(exclude=np.array([7, 5, 5])) == key()


@pytest.mark.parametrize(
    "change",
    [
        {"model_version": 2},
        {"slots": np.arange(12, dtype=np.int32).reshape(3, 4)},
        {"slots": np.arange(1, 13, dtype=np.int32).reshape(2, 6)},
        {"profile": np.array([2, 1], np.int32)},
        {"num_ads": 11},
        {"exclude": np.array([5])},
        {"settings": "live"},
    ],
)
def test_whatever_shapes_the_beams_is_in_the_key(change: dict) -> None:
    assert key(**change) != key()


def test_entry_survives_encoding() -> None:
    assert same(CachedBeams.decode(entry().encode()), entry())
    empty = CachedBeams(
        np.zeros((0, 3), np.int32),
        np.zeros(0, np.float32),
        np.zeros(0, np.float32),
        np.zeros(4, np.int32),
        (1,) * 4,
        0,
    )
    assert same(CachedBeams.decode(empty.encode()), empty)


@pytest.mark.parametrize("cut", [0, 5, 14, 40, 100, -1])
def test_cut_entry_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match=r"expected|unreadable"):
        CachedBeams.decode(entry().encode()[:cut])


def test_longer_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes of arrays"):
        CachedBeams.decode(entry().encode() + b"x")


def test_local_entry_ends_with_its_time() -> None:
    clock = Clock()
    cache = LocalCache(ttl_s=TTL_S, max_bytes=10**6, clock=clock)
    cache.put([(b"a", entry(1))])
    clock.now += TTL_S - 0.01
    assert same(cache.get([b"a"])[0], entry(1))
    clock.now += 0.01  # reading has not made it younger
    assert cache.get([b"a", b"b"]) == [None, None]
    assert len(cache) == 0
    assert cache.nbytes == 0


def test_local_cache_is_bounded_and_drops_what_was_used_least_recently() -> None:
    cache = LocalCache(ttl_s=TTL_S, max_bytes=3 * entry().nbytes)
    cache.put([(b"a", entry(1)), (b"b", entry(2)), (b"c", entry(3))])
    assert cache.get([b"a"])[0]
    cache.put([(b"d", entry(4))])
    assert [e is not None for e in cache.get([b"a", b"b", b"c", b"d"])] == [True, False, True, True]
    cache.put([(b"d", entry(5))])
    assert same(cache.get([b"d"])[0], entry(5))
    assert cache.nbytes == 3 * entry().nbytes
    cache.put([(b"big", entry(6, beams=10_000))])
    assert (len(cache), cache.nbytes) == (0, 0)


@pytest.mark.parametrize("bad", [{"ttl_s": 0.0}, {"ttl_s": float("nan")}, {"max_bytes": 0}])
def test_bounds_must_be_positive(bad: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        LocalCache(**({"ttl_s": 1.0, "max_bytes": 1} | bad))


@pytest.fixture
def server(tmp_path):
    running = RedisServer(tmp_path)
    yield running
    running.close()


@needs_redis
def test_replicas_share_entries(server: RedisServer) -> None:
    one, other = (RedisCache(server.url, ttl_s=TTL_S, timeout_s=2.0) for _ in range(2))
    one.put([(b"a", entry(1)), (b"b", entry(2))])
    found = other.get([b"b", b"none", b"a"])
    assert same(found[0], entry(2))
    assert found[1] is None
    assert same(found[2], entry(1))
    assert other.get([]) == []
    with redis.Redis.from_url(server.url) as client:
        assert 0 < client.pttl(b"gr4ad:beams:a") <= TTL_S * 1000


@needs_redis
def test_shared_entry_ends_with_its_time(server: RedisServer) -> None:
    cache = RedisCache(server.url, ttl_s=0.2, timeout_s=2.0)
    cache.put([(b"a", entry())])
    assert same(cache.get([b"a"])[0], entry())
    time.sleep(0.25)
    assert cache.get([b"a"]) == [None]


@needs_redis
def test_foreign_entry_is_a_miss(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set(b"gr4ad:beams:a", b"\x80\x04something else")
        client.lpush(b"gr4ad:beams:b", b"a list")
    cache = RedisCache(server.url, ttl_s=TTL_S, timeout_s=2.0)
    assert cache.get([b"a"]) == [None]
    assert cache.get([b"b"]) == [None]
    assert cache.failures == 0


@needs_redis
def test_redis_that_is_gone_costs_hits_only_and_comes_back(server: RedisServer) -> None:
    clock = Clock()
    cache = RedisCache(server.url, ttl_s=TTL_S, timeout_s=2.0, pause_s=1.0, clock=clock)
    cache.put([(b"a", entry())])
    server.kill()
    began = time.monotonic()
    for _ in range(100):
        assert cache.get([b"a"]) == [None]
        cache.put([(b"b", entry())])
    assert time.monotonic() - began < 1.0
    assert cache.failures == 1, "it was asked again before the pause was over"
    server.start()
    assert cache.get([b"a"]) == [None]
    clock.now += 1.0
    assert same(cache.get([b"a"])[0], entry())


@needs_redis
def test_redis_that_hangs_costs_one_timeout(server: RedisServer) -> None:
    cache = RedisCache(server.url, ttl_s=TTL_S, timeout_s=0.2, pause_s=60.0)
    cache.put([(b"a", entry())])
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("CLIENT", "PAUSE", "3000")
        began = time.monotonic()
        for _ in range(20):
            assert cache.get([b"a"]) == [None]
        assert time.monotonic() - began < 1.0


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1", "scheme"),
        ("redis://127.0.0.1?ssl_cert_reqs=none", "for redis://, got ssl_cert_reqs"),
        ("redis://127.0.0.1?nonsense=1", "got nonsense"),
    ],
)
def test_an_address_that_can_never_work_is_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RedisCache(url, ttl_s=TTL_S)


@needs_redis
def test_options_of_the_address_do_not_change_what_the_cache_stands_on(server: RedisServer) -> None:
    cache = RedisCache(f"{server.url}?decode_responses=True&socket_timeout=60", ttl_s=TTL_S, timeout_s=2.0)
    cache.put([(b"a", entry(1))])
    assert same(cache.get([b"a"])[0], entry(1))
    assert cache.failures == 0


def test_both_keep_the_contract() -> None:
    caches: list[BeamCache] = [LocalCache(ttl_s=1, max_bytes=1), RedisCache("redis://127.0.0.1:1", ttl_s=1)]
    for cache in caches:
        cache.put([])
        assert cache.get([b"x", b"y"]) == [None, None]
