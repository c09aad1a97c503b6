"""The true sidecar process under the faults of `benchmarks/faults/sidecar.py`: it lives and takes events."""

import numpy as np
import pytest

from benchmarks.faults import sidecar
from indexer.store.index_store import IndexStore
from tests.indexer_process import IndexerProcess
from tests.indexing import LEVEL_SIZES, write_manifest

ADS = 200


@pytest.fixture
def folder(tmp_path):
    write_manifest(tmp_path / "bundles", 1, "tok-a")
    random = np.random.default_rng(0)
    sids = np.stack([random.integers(0, v, ADS) for v in LEVEL_SIZES], axis=1).astype(np.int32)
    with IndexStore(tmp_path / "index") as store:
        store.build("tok-a", LEVEL_SIZES, ad_ids=np.arange(ADS), sids=sids, statuses=np.full(ADS, "active"))
    return tmp_path


@pytest.fixture
def start(folder):
    running = []

    def start(*options, **settings) -> IndexerProcess:
        paths = ["--index", str(folder / "index"), "--bundles", str(folder / "bundles")]
        running.append(IndexerProcess(folder, *paths, *options, **settings))
        return running[-1]

    yield start
    for process in running:
        process.kill()


def test_big_dead_letters_are_read_and_nobody_waits(start):
    figures = sidecar.big_dead_letters(start().url, ad_id=1, letters=300, readers=3)
    assert figures["largest_answer_bytes"] < 1_500_000
    assert (figures["failed"], figures["lost"]) == (0, 0)
    assert figures["healthz_p99_ms"] < 300  # 100 on an idle machine


def test_bulks_that_nest_hold_nobody_up(start):
    figures = sidecar.nested_bulk(start().url, ad_id=1, rows=5_000)
    assert (figures["failed"], figures["wrong"]) == (0, 0)
    assert figures["healthz_p99_ms"] < 300
    assert figures["seconds"] < 15
