"""A sidecar whose stream lost events is unready, over restarts, until somebody acknowledges it."""

import contextlib
import json

import pytest

from indexer.__main__ import main
from indexer.sources.config import RedisConfig
from indexer.store.gaps import Gap, acknowledge_gaps, read_gaps, record_gap
from indexer.store.index_store import IndexStore
from serving.index.layout import IndexStoreError
from tests.index_store import empty_store
from tests.indexing import sidecar_client, write_manifest
from tests.recording_store import event
from tests.redis_server import RedisServer, needs_redis
from tests.waiting import wait_until


def on_record(store: IndexStore) -> dict:
    with store.file.read() as reading:
        return read_gaps(reading)


def test_the_same_gap_again_is_one_and_one_that_grew_is_to_be_seen_again(tmp_path):
    with empty_store(tmp_path) as store:
        file = store.file
        for gap, gaps, lost, unseen in (
            (Gap("5-1", "9-0", 10), 1, 10, 1),
            (Gap("5-1", "9-0", 10), 1, 10, 1),
            (Gap("5-1", "12-0", 13), 1, 13, 1),
            (Gap("7-0", "13-0", None), 2, 13, 2),
            (Gap("8-0", "14-0", 4), 3, 17, 3),
        ):
            one = record_gap(file, "redis:a", gap)
            assert (one.gaps, one.lost, one.unseen) == (gaps, lost, unseen)
        assert acknowledge_gaps(file, "redis:a").unseen == 0
        assert record_gap(file, "redis:a", Gap("8-0", "14-0", 4)).unseen == 0
        assert record_gap(file, "redis:a", Gap("8-0", "15-0", 6)).unseen == 1
        record_gap(file, "kafka:b:3", Gap("offset 4", "offset 9", 4))
        with pytest.raises(ValueError, match="kafka:b:3, redis:a.*, got kafka:b$"):
            acknowledge_gaps(file, "kafka:b")
    with empty_store(tmp_path) as store:
        assert {name: (g.gaps, g.lost, g.unseen) for name, g in on_record(store).items()} == {
            "redis:a": (4, 19, 1),
            "kafka:b:3": (1, 4, 1),
        }
        with store.file.write() as writing:
            writing.txn.put(b"gap/redis:a", b"{}", db=writing.tables.meta)
        with pytest.raises(IndexStoreError, match="gap/redis:a"):
            on_record(store)


def test_the_command_acknowledges_what_it_lists(tmp_path, capsys, monkeypatch):
    with empty_store(tmp_path) as store:
        record_gap(store.file, "redis:a", Gap("5-1", "9-0", 10))

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["indexer", "gaps", *arguments, "--index", str(tmp_path)])
        main()
        return capsys.readouterr().out

    assert json.loads(run("list"))["unseen"] == 1
    assert run("acknowledge", "redis:a") == "redis:a: 1 gaps acknowledged, 10 events lost\n"
    assert json.loads(run("list"))["unseen"] == 0
    with pytest.raises(SystemExit, match="expected a source with gaps"):
        run("acknowledge", "redis:b")


@needs_redis
def test_unready_over_restarts_until_acknowledged(tmp_path):
    write_manifest(tmp_path / "bundles", 1, "tok-a")
    (tmp_path / "redis").mkdir()
    with contextlib.closing(RedisServer(tmp_path / "redis")) as server:
        settings = {"redis": RedisConfig(server.url, stream="ads"), "token": "s3cret-token"}

        def add(count: int) -> None:
            for ad in range(count):
                server.client.xadd("ads", {"event": event(ad)})

        def applied() -> int:
            return client.sidecar.sources[0].state.received

        with sidecar_client(tmp_path, **settings) as client:
            add(3)
            wait_until(lambda: applied() == 3)
            wait_until(lambda: client.get("/readyz").status_code == 200)
            assert client.get("/gaps").json() == {"gaps": []}
        add(100)
        server.client.xtrim("ads", maxlen=10, approximate=False)
        for _ in range(2):
            with sidecar_client(tmp_path, **settings) as client:
                wait_until(lambda: client.get("/gaps").json()["gaps"])
                ready = client.get("/readyz")
                assert ready.status_code == 503
                assert any("redis:ads: 90 events after" in p for p in ready.json()["problems"])
                page = client.get("/metrics").text
                assert 'gr4ad_indexer_source_lost_events_total{source="redis:ads"} 90.0' in page
                assert 'gr4ad_indexer_source_gaps_unseen{source="redis:ads"} 1.0' in page
                add(1)
                wait_until(lambda: applied() > 0)  # it goes on with what there is
        with sidecar_client(tmp_path, **settings) as client:
            headers = {"content-type": "application/json"}
            path, known = "/gaps/acknowledge?source=", {**headers, "authorization": "Bearer s3cret-token"}
            assert client.post(path + "redis:ads", headers=headers).status_code == 401
            assert client.post(path + "redis:other", headers=known).status_code == 404
            assert client.get("/readyz").status_code == 503
            assert client.post(path + "redis:ads", headers=known).json()["unseen"] == 0
            wait_until(lambda: client.get("/readyz").status_code == 200)
            assert client.get("/gaps").json()["gaps"][0]["lost"] == 90
        with sidecar_client(tmp_path, **settings) as client:
            wait_until(lambda: client.get("/readyz").status_code == 200)
