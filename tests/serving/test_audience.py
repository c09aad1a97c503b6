"""Audiences and accounts through a real server: what a request says of itself decides what it is shown."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from examples.client import send
from export.render import render
from indexer.store.index_store import IndexStore
from launcher.triton_server import TritonServer
from tests.other_process import in_other_process
from tests.pipeline import copy_of, serving_config
from tests.tiny import LEVEL_SIZES, tiny_catalogue
from tests.unit.test_terms import AUDIENCES, asking

ACCOUNTS = 7


def _load(index, tokenizer_id):
    ads, sids, _ = tiny_catalogue()
    content = {"account_id": [f"a{i % ACCOUNTS}" for i in ads.tolist()]}
    content |= {name: ["x"] * len(ads) for name in ("conversion_type", "text")}
    with IndexStore(index) as store:
        store.build(
            tokenizer_id,
            LEVEL_SIZES,
            ad_ids=ads,
            sids=sids,
            statuses=np.full(len(ads), "active"),
            content=content,
            audiences=[AUDIENCES[i % 4] for i in ads.tolist()],
        )


@pytest.fixture(scope="module")
def running(pipeline, tmp_path_factory):
    made = copy_of(pipeline, tmp_path_factory.mktemp("audience") / "run")
    in_other_process(_load, made.index, made.tokenizer_id)
    attributes = {"place": ("feed", "story"), "weather": "any"}
    config = serving_config().model_copy(
        update={"audience": "on", "attributes": attributes, "cache": "local"}
    )
    render(made.bundles, made.repository, index=made.index, config=config)
    with TritonServer(made.repository) as server:
        yield server


def expected(allowed, *, excluded=(), now=1_000):
    ads = tiny_catalogue()[0].tolist()
    return {a for a in ads if a % 4 in allowed and f"a{a % ACCOUNTS}" not in excluded}


def ads_of(answer):
    ads = answer["ad_ids"][0]
    return ads[ads >= 0].tolist()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_requests_of_one_batch_see_what_each_may(running, protocol):
    url = running.grpc_url if protocol == "grpc" else running.http_url
    cases = [
        (asking(1, b"feed"), {0, 1}, []),
        (asking(2, b"feed"), {0, 2}, ["a3"]),
        (asking(2, b"story"), {0}, []),
        (asking(2, None), {0}, ["a1", "a2", "none of these"]),
        (asking(0, b"feed", now=899), {0, 3}, []),
        (asking(0, b"feed", now=900), {0}, []),
    ]

    def ask(case):
        tensors, allowed, excluded = case
        if excluded:
            tensors = tensors | {"exclude_account_ids": np.array([[e.encode() for e in excluded]], object)}
        return ads_of(send(url, tensors, protocol=protocol)), allowed, excluded

    with ThreadPoolExecutor(6) as pool:
        for ads, allowed, excluded in pool.map(ask, cases * 4):
            wanted = expected(allowed, excluded=excluded)
            assert len(ads) == len(set(ads)) == min(40, len(wanted))
            assert set(ads) <= wanted


@pytest.mark.parametrize("most", [1, 2])
def test_so_many_ads_of_an_account(running, most):
    answer = send(running.grpc_url, asking(1, b"feed"), protocol="grpc", parameters={"max_per_account": most})
    ads = ads_of(answer)
    counts = Counter(a % ACCOUNTS for a in ads)
    of = Counter(a % ACCOUNTS for a in expected({0, 1}))
    assert max(counts.values()) <= most
    assert len(ads) == min(40, sum(min(most, n) for n in of.values()))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"attributes": np.array([[b"feed"]], object)}, "attributes"),
        ({"attributes": np.array([[b"feed", b"x" * 300]], object)}, "expected a text of at most 256"),
        ({"exclude_account_ids": np.full((1, 51), b"a", object)}, "at most 50 accounts, got 51"),
        ({"attributes": np.zeros((1, 2), np.int64)}, "attributes"),
    ],
)
def test_a_bad_request_is_its_own_error(running, bad, message):
    with pytest.raises(InferenceServerException, match=message):
        send(running.grpc_url, asking(1, b"feed") | bad, protocol="grpc")
    assert set(ads_of(send(running.grpc_url, asking(1, b"feed"), protocol="grpc"))) <= expected({0, 1})
