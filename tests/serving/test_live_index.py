"""A real Triton beside a real sidecar: ads that come and go, a sidecar that dies, a new tokenizer."""

from __future__ import annotations

import time
import urllib.request

import numpy as np
import pytest

from examples.client import send
from export.bundle import write_bundle
from export.render import render
from indexer.encode.bundle_encoder import load_encoder
from indexer.events.event import CONTENT_FIELDS
from indexer.store.index_store import IndexStore
from indexer.store.verify import verify
from launcher.triton_server import TritonServer
from serving.model.current import point_current
from tests.indexer_process import IndexerProcess
from tests.pipeline import checkpoint, copy_of, exported, serving_config, small_ads
from tests.serving.ask import LIVE, request
from tests.tiny import LEVEL_SIZES
from tests.waiting import wait_until
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.tokenizer import Tokenizer

NEW = 50_000
VISIBLE_S = 5.0  # a busy test machine; `make bench-index` measures it
TEXT = {"account_id": "a1", "conversion_type": "plain", "text": "apple cheese size 2"}
GRAPHS = ("lazyar_prefix", "lazyar_tail_2", "lazyar_tail_3", "lazyar_tail_4")


class Live:
    """A deployment with its server and its sidecar."""

    def __init__(self, deployment, folder) -> None:
        self.deployment, self._folder = deployment, folder
        self.server = TritonServer(deployment.repository)

    def start_sidecar(self) -> None:
        paths = [f"--index={self.deployment.index}", f"--bundles={self.deployment.bundles}"]
        self.sidecar = IndexerProcess(self._folder, *paths)
        wait_until(lambda: self.sidecar.ask("GET", "/readyz")[0] == 200, timeout_s=60, what="readyz")

    def post(self, kind: str, ad_id: int, version: int, **content: str) -> tuple[int, dict]:
        return self.sidecar.ask(
            "POST", "/events", {"kind": kind, "ad_id": ad_id, "version": version, **content}
        )

    def ads(self, *, exclude: np.ndarray = LIVE[:16]) -> np.ndarray:
        """Ads of a request that leaves room for 40 of the 57 there may be."""
        return send(self.server.grpc_url, request(num_ads=40, exclude=exclude.tolist()))["ad_ids"][0]

    def shows(self, ad_id: int) -> None:
        wait_until(lambda: ad_id in self.ads(), timeout_s=VISIBLE_S, what=f"ad {ad_id} in an answer")

    def gauge(self, name: str) -> float:
        with urllib.request.urlopen(self.server.metrics_url, timeout=5) as page:
            lines = page.read().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(name))

    def __enter__(self) -> Live:
        self.server.start()
        self.start_sidecar()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            assert self.sidecar.stop() == 0
            assert self.server.poll() is None, self.server.log_tail(20)
        finally:
            self.sidecar.kill()
            self.server.stop()
        assert verify(self.deployment.index) == []


@pytest.fixture(scope="module")
def live(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    with Live(copy_of(pipeline, folder), folder) as running:
        yield running


def test_an_ad_that_is_created_now_is_answered_and_gone_when_paused(live):
    assert NEW not in live.ads()
    assert live.post("create", NEW, 1, **TEXT)[0] == 200
    live.shows(NEW)
    known = request(history=3)
    known["history_ad_ids"][0, 0] = NEW
    assert send(live.server.grpc_url, known)["ignored_history"].tolist() == [[0]]
    assert live.post("pause", NEW, 2)[0] == 200
    assert all(NEW not in live.ads() for _ in range(5))  # from the acknowledgement on
    assert send(live.server.grpc_url, known)["ignored_history"].tolist() == [[0]]  # but known
    assert live.post("resume", NEW, 3)[0] == 200
    live.shows(NEW)
    status, refused = live.post("create", NEW, 9, **TEXT)
    assert status == 409
    assert refused["reason"] == "duplicate_create"
    assert live.sidecar.ask("GET", f"/ads/{NEW}")[1]["status"] == "active"


def test_readers_go_on_without_the_sidecar_and_show_for_how_long(live):
    live.sidecar.kill()
    before, lags = live.ads(), []
    for _ in range(2):
        time.sleep(1.3)
        np.testing.assert_array_equal(live.ads(), before)
        lags.append(live.gauge("gr4ad_index_lag_seconds"))
    assert lags[1] > lags[0] + 1.0
    live.start_sidecar()
    assert live.post("create", NEW + 1, 1, **TEXT)[0] == 200
    live.shows(NEW + 1)
    wait_until(lambda: live.ads().size and live.gauge("gr4ad_index_lag_seconds") < 3, what="the lag gone")
    version = int(send(live.server.grpc_url, request())["index_version"][0, 0])
    wait_until(
        lambda: live.ads().size and live.gauge("gr4ad_index_version") >= version,
        what="the version in the gauge",
    )


def test_a_model_of_another_tokenizer_takes_over_and_no_answer_mixes(pipeline, other_graphs, tmp_path):
    """The sidecar builds the new generation beside the old; the server follows CURRENT once all is there."""
    deployment = copy_of(pipeline, tmp_path)
    table = small_ads()
    ads, content = table["ad_id"].to_numpy(), {name: table[name] for name in CONTENT_FIELDS}
    encoders = {1: load_encoder(deployment.bundles / "1")}

    def sids(version: int) -> np.ndarray:
        """SIDs int32 [N, T] of all ads."""
        return encoders[version].encode(ads, table.select(CONTENT_FIELDS).to_dicts())

    with IndexStore(deployment.index) as store:
        store.build(
            deployment.tokenizer_id,
            LEVEL_SIZES,
            ad_ids=ads,
            sids=sids(1),
            statuses=np.full(len(ads), "active"),
            content=content,
            replace_all=True,
        )
    config = TokenizerConfig(
        codebook_sizes=LEVEL_SIZES[:-1], hash_size=LEVEL_SIZES[-1], embedding_dim=8, seed=5
    )
    tokenizer = Tokenizer.fit(table, config)
    assert tokenizer.tokenizer_id != deployment.tokenizer_id
    tokenizer.save(tmp_path / "other")

    def answer(live: Live) -> int:
        """Ask, hold the SIDs against the tokenizer of the version that answered; the version."""
        tensors = request(num_ads=20)
        tensors["history_ad_ids"] = ads[None, : tensors["history_ad_ids"].shape[1]]
        found = send(live.server.grpc_url, tensors)
        version = int(found["model_version"][0, 0])
        expected = sids(version)[np.searchsorted(ads, found["ad_ids"][0])]
        np.testing.assert_array_equal(found["sids"][0], expected)
        return version

    with Live(deployment, tmp_path) as live:
        assert answer(live) == 1
        made = checkpoint(seed=5, tokenizer_id=tokenizer.tokenizer_id)
        with exported(other_graphs):
            write_bundle(made, deployment.bundles, tokenizer=tmp_path / "other", activate=False)
        encoders[2] = load_encoder(deployment.bundles / "2")
        assert (sids(1) != sids(2)).any()
        render(deployment.bundles, deployment.repository, index=deployment.index, config=serving_config())
        for graph in GRAPHS:
            live.server.admin.load(graph)
        page = live.sidecar.ask
        wait_until(lambda: len(page("GET", "/ads/0")[1]["sids"]) == 2, what="both SIDs of an ad")
        point_current(deployment.bundles, 2)
        seen = []
        wait_until(lambda: seen.append(answer(live)) or seen[-1] == 2, timeout_s=30, what="version 2")
        assert set(seen) <= {1, 2}
        point_current(deployment.bundles, 1)
        wait_until(lambda: answer(live) == 1, timeout_s=30, what="version 1 again")
