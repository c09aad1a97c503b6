"""The ranking stage through a real server: the order of the ranker, whatever happens to an answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from examples.client import send
from indexer.events.event import PauseEvent
from indexer.store.incoming import Incoming
from indexer.store.index_store import IndexStore
from launcher.triton_server import TritonServer
from serving.index.reader import MAX_WAIT_S
from serving.ranking.ranker import RankRequest
from serving.search.rank import RankBy
from tests.items import item_deployment
from tests.pipeline import serving_config
from tests.ranking import Judge, reward_deployment, reward_judge
from tests.serving.ask import LIVE, Reference, assert_same, excluded, request, send_at_once
from tests.serving.test_load_control import metric
from tests.tiny import tiny_catalogue

POOL = 9
HITS = 'gr4ad_cache_lookups_total{process="beam_scheduler_0_0",result="hit"}'


@dataclass(frozen=True)
class Expected:
    """Answers by brute force: the ads of all beams one by one, the first of them sorted by a judge."""

    reference: Reference
    judge: Judge

    def answer(
        self,
        tensors: dict[str, np.ndarray],
        row: int = 0,
        *,
        rank_by: RankBy = "probability",
        paused_since: Sequence[int] = (),
    ) -> dict[str, Any]:
        num_ads = int(tensors["num_ads"][row, 0])
        features, beams = self.reference.beams(tensors, row)
        worth = beams.scores[0].astype(np.float64)
        if rank_by == "value":
            worth = np.exp(worth) * beams.expected_value[0]
        found = []
        for beam in sorted(range(len(worth)), key=lambda i: -np.nan_to_num(worth[i], nan=-np.inf)):
            sid = beams.sids[0, beam]
            for ad in self.reference.snapshot.ads_of_sids(sid[None])[1].tolist():
                if ad not in [*excluded(tensors, row).tolist(), *paused_since]:
                    found.append((ad, beams.scores[0, beam], beams.expected_value[0, beam], sid))
        valued = sum(not np.isnan(value) for _, _, value, _ in found)
        pool = found[: max(num_ads, min(POOL, valued))]
        ad_ids, sids, _ = tiny_catalogue()
        past = np.searchsorted(ad_ids, features.past_ads)
        asked = RankRequest(
            ads=np.array([ad for ad, *_ in pool], np.int64),
            sids=np.array([sid for *_, sid in pool], np.int32).reshape(-1, 3),
            log_p=np.array([score for _, score, *_ in pool], np.float32),
            past_ads=features.past_ads,
            past_sids=sids[past],
            past_behaviors=features.past_behaviors,
            past_times=features.past_times,
            now=int(tensors["timestamp"][row, 0]),
            profile=features.profile,
        )
        worth = self.judge(asked) if pool else np.zeros(0)
        best = [pool[i] for i in np.argsort(-worth, kind="stable")][:num_ads]
        padding = [(-1, 0, 0, np.full(3, -1))] * (num_ads - len(best))
        columns = [np.array(column) for column in zip(*best, *padding, strict=True)]
        return dict(zip(("ad_ids", "scores", "expected_value", "sids"), columns, strict=True)) | {
            "ignored_history": features.ignored
        }


def deployed(kind, pipeline, folder, **changes):
    """A deployment that ranks by default, and what says how."""
    update = {"rerank": kind, "rerank_pool": POOL, "scheduler_instances": 1} | changes
    config = serving_config().model_copy(update=update)
    if kind == "item":
        return item_deployment(pipeline, folder, config=config)
    serves = "neural" if "graph_calls" in changes else "trees"
    deployment, model = reward_deployment(pipeline, folder, config=config, serves=serves)
    return deployment, reward_judge(model)


@pytest.fixture(scope="module", params=["reward", "item"])
def kind(request):
    """Of the ranker."""
    return request.param


@pytest.fixture(scope="module")
def ranked(kind, pipeline, tmp_path_factory):
    """Caches."""
    deployment, judge = deployed(kind, pipeline, tmp_path_factory.mktemp("ranked"), cache="local")
    with TritonServer(deployment.repository) as server:
        yield deployment, server, Expected(Reference.of(deployment), judge)
        assert server.poll() is None, server.log_tail(20)


@pytest.mark.parametrize("rank_by", ["probability", "value"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_answers_are_the_pool_in_the_order_of_the_ranker(ranked, protocol, rank_by):
    _, server, expected = ranked
    url = server.grpc_url if protocol == "grpc" else server.http_url
    turned = 0
    for seed, (num_ads, history) in enumerate([(1, 6), (5, 0), (4, 16), (9, 30), (20, 3), (40, 12)]):
        tensors = request(num_ads=num_ads, history=history, exclude=LIVE[seed::11].tolist(), seed=seed)
        parameters = {"rank_by": rank_by, "cache": "bypass"}
        plain = expected.reference.answer(tensors, rank_by=rank_by)
        found = send(url, tensors, protocol=protocol, parameters=parameters)
        assert_same(found, expected.answer(tensors, rank_by=rank_by))
        turned += found["ad_ids"][0].tolist() != plain["ad_ids"].tolist()
        off = send(url, tensors, protocol=protocol, parameters=parameters | {"rerank": "off"})
        assert_same(off, plain)
    assert turned >= 4


def test_all_ads_excluded_leave_an_answer_of_none(ranked):
    _, server, expected = ranked
    tensors = request(num_ads=3, exclude=LIVE.tolist()[:50], seed=2)
    assert_same(send(server.grpc_url, tensors), expected.answer(tensors))
    left = LIVE.tolist()[50:]
    assert len(left) == 5
    found = send(server.grpc_url, request(num_ads=9, exclude=LIVE.tolist()[:50], seed=2))
    assert sorted(found["ad_ids"][0].tolist()) == [-1] * 4 + left  # a pool shorter than num_ads


def test_requests_of_several_rows_and_mixed_orders_keep_their_own(ranked, kind):
    _, server, expected = ranked
    several = request(num_ads=6, rows=3, seed=40)
    found = send(server.grpc_url, several, parameters={"cache": "bypass"})
    for row in range(3):
        assert_same(found, expected.answer(several, row), row=row)
    asked = [
        (request(num_ads=n, history=3 * n % 20, seed=seed), "off" if seed % 3 == 0 else kind)
        for seed, n in enumerate([1, 30, 3, 12, 2, 9, 5, 1] * 3)
    ]
    answers = send_at_once(server.grpc_url, asked, parameter="rerank")
    for (tensors, order), answer in zip(asked, answers, strict=True):
        assert_same(answer, (expected.reference if order == "off" else expected).answer(tensors))


def test_cached_beams_are_ranked_by_the_history_of_the_request_that_asks(ranked, kind):
    """Two histories that differ in what has no slot: one entry of the cache, two orders by a reward model.

    The item level looks at slots, so by it the order is one.
    """
    _, server, expected = ranked
    first = request(num_ads=8, history=16, seed=70)
    shown = expected.reference.beams(first)[0]
    behaviors = first["history_behaviors"].copy()
    hidden = ~np.isin(first["history_ad_ids"], shown.slot_ads)
    behaviors[hidden] = np.where(behaviors[hidden] == 1, 3, 1)
    second = first | {"history_behaviors": behaviors}
    np.testing.assert_array_equal(expected.reference.beams(second)[0].slots, shown.slots)
    one, two = expected.answer(first), expected.answer(second)
    assert (one["ad_ids"].tolist() != two["ad_ids"].tolist()) == (kind == "reward")
    before = metric(server, HITS)
    assert_same(send(server.grpc_url, first), one)
    assert_same(send(server.grpc_url, second), two)
    off = send(server.grpc_url, second, parameters={"rerank": "off"})
    assert_same(off, expected.reference.answer(second))
    assert metric(server, HITS) == before + 2
    assert metric(server, "gr4ad_reranked_total") > 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("prices", "parameter rerank: expected off or {kind}, got 'prices'"),
        ("", "parameter rerank: expected off or {kind}, got ''"),
        (7, "parameter rerank: expected a text of at most 200 characters, got 7"),
    ],
)
def test_a_wrong_parameter_is_refused_before_the_search(ranked, kind, value, message):
    _, server, _ = ranked
    with pytest.raises(InferenceServerException, match=message.format(kind=kind)):
        send(server.grpc_url, request(), parameters={"rerank": value})


def test_a_bundle_without_a_ranker_says_so(server, kind):
    with pytest.raises(
        InferenceServerException, match="rerank: expected off, as the bundle has no ranker, got"
    ):
        send(server.grpc_url, request(), parameters={"rerank": kind})
    send(server.grpc_url, request(), parameters={"rerank": "off"})


def test_a_cached_answer_after_a_pause_is_the_rest_of_its_beams_ranked(ranked):
    deployment, server, expected = ranked
    tensors = request(num_ads=3, history=9, seed=90)  # of six beams with a value
    first, before = send(server.grpc_url, tensors), metric(server, HITS)
    assert_same(first, expected.answer(tensors))
    best = first["ad_ids"][0, :2].tolist()
    with IndexStore(deployment.index) as store:
        store.apply([Incoming(PauseEvent(ad_id=ad, version=1), b"{}", "test") for ad in best])
    time.sleep(MAX_WAIT_S)
    paused = send(server.grpc_url, tensors)
    assert metric(server, HITS) == before + 1
    assert not set(best) & set(paused["ad_ids"][0].tolist())
    assert_same(paused, expected.answer(tensors, paused_since=best))


def test_the_scheduler_and_the_resolver_run_the_graphs_themselves(kind, pipeline, tmp_path):
    """In process, no graph is a Triton model."""
    deployment, judge = deployed(kind, pipeline, tmp_path, graph_calls="in_process")
    expected = Expected(Reference.of(deployment), judge)
    assert not list(deployment.repository.glob("lazyar_*"))
    with TritonServer(deployment.repository) as server:
        for seed in range(4):
            tensors = request(num_ads=3 + seed, history=5 * seed, seed=seed)
            assert_same(send(server.grpc_url, tensors), expected.answer(tensors))
