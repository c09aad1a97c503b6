"""The true sidecar process under the faults of `benchmarks/faults/sidecar.py`: it lives and takes events."""

import contextlib
import subprocess
import sys

import pytest

from benchmarks.faults import sidecar
from indexer.store.verify import verify
from launcher.indexer_process import IndexerError
from launcher.triton_command import HOME
from tests.indexer_process import indexed, sidecars
from tests.recording_store import event
from tests.redis_server import RedisServer, needs_redis
from tests.waiting import wait_until

ADS = 200


@pytest.fixture
def folder(tmp_path):
    return indexed(tmp_path, ads=ADS)


@pytest.fixture
def start(folder):
    with sidecars(folder) as start:
        yield start


@pytest.mark.alone
def test_big_dead_letters_are_read_and_nobody_waits(start):
    figures = sidecar.big_dead_letters(start().url, ad_id=1, letters=300, readers=3)
    assert figures["largest_answer_bytes"] < 1_500_000
    assert (figures["failed"], figures["lost"]) == (0, 0)
    assert figures["healthz_p99_ms"] < 300  # 100 on an idle machine


@pytest.mark.alone
def test_bulks_that_nest_hold_nobody_up(start):
    figures = sidecar.nested_bulk(start().url, ad_id=1, rows=5_000)
    assert (figures["failed"], figures["wrong"]) == (0, 0)
    assert figures["healthz_p99_ms"] < 300
    assert figures["seconds"] < 60


def test_silent_connections_keep_nobody_away(start):
    figures = sidecar.silent_connections(start().url, ad_id=1)
    assert figures["connections"] == 1200
    assert figures["failed"] == 0
    assert figures["healthz_p99_ms"] < 1000
    assert figures["pauses"] > 3


def test_no_further_files_neither_spin_nor_flood_the_log(start):
    process = start()
    figures = sidecar.few_files(process.url, ad_id=1, pid=process.process.pid, log=process.log_file)
    assert figures["log_bytes"] < 20_000
    assert figures["cpu_share"] < 0.5
    assert figures["recovery_s"] < 10


def test_fewer_files_than_connections_are_refused_at_the_start(folder):
    paths = ["--index", folder / "index", "--bundles", folder / "bundles", "--port", "0"]
    ended = subprocess.run(
        ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh", sys.executable, "-m", "indexer", "serve", *paths],
        cwd=HOME, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "open files (ulimit -n), got 200" in ended.stderr


@needs_redis
def test_events_trimmed_away_are_told(start, tmp_path):
    (tmp_path / "redis").mkdir()
    with contextlib.closing(RedisServer(tmp_path / "redis")) as server:
        process = start("--redis-url", server.url, "--redis-stream", "ads")
        server.client.xadd("ads", {"event": event(1, 2)})
        wait_until(lambda: process.ask("GET", "/ads/1")[1]["status"] == "paused")
        figures = sidecar.trimmed_stream(process, server.client, stream="ads", events=200)
        assert (figures["failed"], figures["lost"], figures["false_health"]) == (0, 0, 0)
        assert figures["recovered"]


def test_dead_readers_hold_no_pages_for_long(start, folder):
    figures = sidecar.dead_readers(start().url, folder / "index", ad_id=1)
    assert (figures["failed"], figures["recovered"]) == (0, True)
    assert figures["recovery_s"] < 10
    assert figures["grown_bytes"] < 1_000_000


def test_a_base_that_is_cut_off_is_told_and_made_anew(start, folder):
    figures = sidecar.broken_base(start().url, folder / "index", cut_bytes=100)
    assert (figures["false_health"], figures["recovered"]) == (0, True)
    assert figures["recovery_s"] < 15
    assert verify(folder / "index") == []


def test_a_damaged_store_ends_the_start_with_a_reason(start, folder):
    figures = sidecar.flipped_bits(folder / "index", folder / "copy", flips=20)
    assert (figures["wrong"], figures["found"] > 0) == (0, True)
    file = folder / "index" / "store" / "data.mdb"
    raw = bytearray(file.read_bytes())
    at = raw.index((77).to_bytes(8, "big") + b"\0" * 3)  # an ad's key and its record
    raw[at + 9] ^= 1
    file.write_bytes(raw)
    with pytest.raises(IndexerError, match="damaged.*restore a backup"):
        start()
