"""Good requests against a real server: the answers equal those of the same functions without Triton."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
from tritonclient.utils import InferenceServerException

from examples.client import send
from export.bundle import write_bundle
from export.render import render
from indexer.encode.bundle_encoder import load_encoder
from indexer.events.event import AdEvent
from indexer.store.incoming import Incoming
from indexer.store.index_store import IndexStore
from launcher.triton_server import TritonServer
from serving.index.reader import MAX_WAIT_S
from serving.model.current import point_current
from tests.index_store import create, delete, pause, resume
from tests.pipeline import Pipeline, checkpoint, copy_of, exported, serving_config
from tests.serving.ask import AD_IDS, LIVE, SIDS, Reference, assert_same, infer, request

GRAPHS = ("lazyar_prefix", "lazyar_tail_2", "lazyar_tail_3", "lazyar_tail_4")
UNKNOWN_AD = 20_000  # the catalogue's ids are below 10,000


@pytest.fixture(scope="module")
def reference(pipeline):
    return Reference.of(pipeline)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_good_answer_over_both_protocols(server, reference, protocol):
    tensors = request(num_ads=7)
    url = server.grpc_url if protocol == "grpc" else server.http_url
    answer = send(url, tensors, protocol=protocol)
    assert_same(answer, reference.answer(tensors))
    assert np.isin(answer["ad_ids"], LIVE).all()
    assert (np.diff(answer["scores"][0]) <= 0).all()
    assert answer["model_version"].tolist() == [[1]]
    assert answer["index_version"].tolist() == [[1]]
    assert answer["degraded"].tolist() == [[False]]
    assert {name: values.dtype for name, values in answer.items()} == {
        "ad_ids": np.int64,
        "scores": np.float32,
        "expected_value": np.float32,
        "sids": np.int32,
        "model_version": np.int64,
        "index_version": np.int64,
        "beam_widths": np.int32,
        "degraded": np.bool_,
        "ignored_history": np.int32,
    }


@pytest.mark.parametrize(
    "options",
    [
        {"history": 0},
        {"history": 1},
        {"history": 6},
        {"history": 16},
        {"history": 60},
        {"num_ads": 1},
        {"num_ads": 40},
        {"exclude": LIVE[:10].tolist()},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [1, 2])
def test_both_executors_give_the_same_beams(server, reference, options, seed):
    tensors = request(**options, seed=seed)
    answer, expected = send(server.grpc_url, tensors), reference.answer(tensors)
    assert_same(answer, expected)
    np.testing.assert_array_equal(answer["beam_widths"][0], expected["beam_widths"])


def test_different_histories_give_different_answers(server):
    """Guards the comparisons above against an engine that ignores its input."""
    scores = [send(server.grpc_url, request(seed=seed))["scores"][0] for seed in range(3)]
    assert not np.allclose(scores[0], scores[1])
    assert not np.allclose(scores[1], scores[2])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("rows", [2, 3])
def test_rows_of_a_client_batch_are_answered_like_single_requests(server, reference, rows, protocol):
    tensors = request(rows=rows, exclude=LIVE[::7].tolist(), seed=rows)
    tensors["num_ads"] = np.array([[9], [4], [12]], np.int32)[:rows]
    answer = send(server.grpc_url if protocol == "grpc" else server.http_url, tensors, protocol=protocol)
    assert answer["ad_ids"].shape == (rows, tensors["num_ads"].max())
    for row in range(rows):
        assert_same(answer, reference.answer(tensors, row), row=row)


def test_fewer_ads_than_asked_for_are_all_live_ads_and_padding(server):
    gone = LIVE[:30]
    answer = send(server.grpc_url, request(num_ads=40, exclude=gone.tolist()))
    ads, left = answer["ad_ids"][0], LIVE[30:]
    assert sorted(ads[: len(left)]) == left.tolist()
    assert (ads[len(left) :] == -1).all()
    assert (answer["sids"][0, len(left) :] == -1).all()
    assert np.isfinite(answer["scores"]).all()
    assert np.isfinite(answer["expected_value"]).all()
    by_ad = dict(zip(AD_IDS.tolist(), SIDS.tolist(), strict=True))
    assert answer["sids"][0, : len(left)].tolist() == [by_ad[ad] for ad in ads[: len(left)].tolist()]


def test_exclusions_are_honoured_and_never_shorten_the_answer(server):
    """Excludes what came first, again and again: ten ads must come until fewer are left."""
    excluded: list[int] = []
    while len(excluded) < 50:
        answer = send(server.grpc_url, request(num_ads=10, exclude=excluded))
        ads = answer["ad_ids"][0].tolist()
        expected = min(10, len(LIVE) - len(excluded))
        assert len([a for a in ads if a >= 0]) == expected
        assert not set(ads) & set(excluded)
        excluded += [a for a in ads if a >= 0]
    assert len(set(excluded)) == 50


def test_a_width_cap_narrows_the_search_and_says_so(server, reference):
    tensors = request(num_ads=2)
    wide = send(server.grpc_url, tensors)
    narrow = send(server.grpc_url, tensors, parameters={"width_cap": 2})
    assert_same(narrow, reference.answer(tensors, widths="2-2-2:2"))
    assert (narrow["beam_widths"] <= wide["beam_widths"]).all()
    assert (narrow["beam_widths"] < wide["beam_widths"]).any()
    assert narrow["degraded"].all()
    assert not wide["degraded"].any()
    assert not send(server.grpc_url, tensors, parameters={"width_cap": 1000})["degraded"].any()


def test_a_capped_request_still_gets_all_its_ads(server):
    answer = send(server.grpc_url, request(num_ads=40), parameters={"width_cap": 1})
    assert len(np.unique(answer["ad_ids"])) == 40
    assert (answer["ad_ids"] >= 0).all()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_rank_by_value_orders_by_p_times_v(server, protocol):
    url = server.grpc_url if protocol == "grpc" else server.http_url
    tensors = request(num_ads=40, rows=2, exclude=LIVE[: len(LIVE) - 40].tolist())  # so all ads are in both
    found = send(url, tensors, protocol=protocol, parameters={"rank_by": "probability"})
    valued = send(url, tensors, protocol=protocol, parameters={"rank_by": "value"})
    for row in range(2):
        worth = np.exp(found["scores"][row].astype(np.float64)) * found["expected_value"][row]
        order = np.argsort(-worth, kind="stable")
        assert order.tolist() != list(range(40))
        for name in ("ad_ids", "sids"):
            np.testing.assert_array_equal(valued[name][row], found[name][row][order])
        for name in ("scores", "expected_value"):
            np.testing.assert_allclose(valued[name][row], found[name][row][order], atol=1e-5)


@pytest.mark.parametrize("value", ["", "p", "Value", 1, True], ids=repr)
def test_a_wrong_rank_by_is_an_invalid_argument(server, value):
    with pytest.raises(InferenceServerException, match="parameter rank_by: expected") as caught:
        send(server.grpc_url, request(), parameters={"rank_by": value})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("value", [0, -3, "x", "2.5", True, "9" * 5000], ids=lambda v: repr(v)[:8])
def test_a_wrong_parameter_is_an_invalid_argument(server, value):
    with pytest.raises(
        InferenceServerException, match="parameter width_cap: expected a whole number"
    ) as caught:
        send(server.grpc_url, request(), parameters={"width_cap": value})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_concurrent_requests_of_mixed_shapes_get_their_own_answers(server, reference):
    """Triton may batch any of them together; none may see another's beams, exclusions or width."""
    random = np.random.default_rng(0)
    asked = [
        request(
            history=int(random.integers(0, 60)),
            num_ads=int(random.integers(1, 41)),
            seed=seed,
            rows=1 + seed % 3,
            exclude=LIVE[: seed % 20].tolist() if seed % 2 else None,
        )
        for seed in range(48)
    ]
    capped = [{"width_cap": 3} if seed % 5 == 0 else None for seed in range(48)]

    def ask(i):
        return send(server.grpc_url, asked[i], parameters=capped[i])

    def refused(i):
        with pytest.raises(InferenceServerException, match="num_ads"):
            send(server.grpc_url, request(num_ads=0, seed=i))

    with ThreadPoolExecutor(8) as pool:
        wrong = [pool.submit(refused, i) for i in range(12)]  # errors in the same batches
        answers = list(pool.map(ask, range(48)))
        for future in wrong:
            future.result()
    for tensors, cap, answer in zip(asked, capped, answers, strict=True):
        for row in range(len(tensors["num_ads"])):
            assert_same(
                answer, reference.answer(tensors, row, widths="3-3-3:3" if cap else "4-8-16:6"), row=row
            )
    batches = _statistics(server, "beam_scheduler")
    assert batches["execution_count"] < batches["inference_count"], (
        "nothing was batched: the test shows little"
    )


def _statistics(server, model):
    (stats,) = (found for found in server.admin.statistics() if found.name == model)
    return {name: getattr(stats, name) for name in ("execution_count", "inference_count")}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_health(server, protocol):
    module = tritonclient.grpc if protocol == "grpc" else tritonclient.http
    client = module.InferenceServerClient(server.grpc_url if protocol == "grpc" else server.http_url)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("gr4ad")
    assert not client.is_model_ready("gr4ad", "7")
    client.close()


@pytest.mark.parametrize(
    ("model", "tensors"),
    [
        (
            "ad_resolver",
            {
                "beam_sids": ("INT32", np.zeros((1, 1, 3), np.int32)),
                "beam_scores": ("FP32", np.zeros((1, 1), np.float32)),
                "beam_values": ("FP32", np.zeros((1, 1), np.float32)),
                "searched_model": ("INT64", np.ones((1, 1), np.int64)),
                "searched_version": ("INT64", np.ones((1, 1), np.int64)),
                "num_ads": ("INT32", np.array([[2**31 - 1]], np.int32)),
                "exclude": ("INT64", np.zeros((1, 0), np.int64)),
            },
        ),
        (
            "beam_scheduler",
            {
                "slot_ads": ("INT64", np.full((1, 8), -1)),
                "slots": ("INT32", np.zeros((1, 8, 3), np.int32)),
                "arrived": ("FP64", np.zeros((1, 1))),
                "profile_codes": ("INT32", np.zeros((1, 2), np.int32)),
                "num_ads": ("INT32", np.array([[2**31 - 1]], np.int32)),
                "exclude": ("INT64", np.zeros((1, 0), np.int64)),
            },
        ),
    ],
)
def test_inner_models_hold_the_limits_too(server, model, tensors):
    """They listen on the same port, and an answer of 2^31 ads would be 60 GB."""
    with pytest.raises(InferenceServerException, match=r"num_ads: expected 1\.\.40 .* got 2147483647"):
        infer(server.grpc_url, tensors, model=model)


@pytest.fixture(scope="module")
def own(pipeline, tmp_path_factory):
    """A deployment that tests may change, and its server."""
    copied = copy_of(pipeline, tmp_path_factory.mktemp("own"))
    with TritonServer(copied.repository) as running:
        yield copied, running
        assert running.poll() is None


def _change(deployment: Pipeline, *events: AdEvent) -> None:
    """Events of ads, applied as the sidecar applies them."""
    with IndexStore(deployment.index, encoders=[load_encoder(deployment.bundles / "1")]) as store:
        outcomes = store.apply([Incoming(event, b"{}", "test") for event in events])
    assert {o.result for o in outcomes} == {"applied"}


def _change_and_wait(deployment: Pipeline, *events: AdEvent) -> None:
    """Events that the search knows of afterwards, too."""
    _change(deployment, *events)
    time.sleep(MAX_WAIT_S)


def test_paused_ads_vanish_at_once_while_histories_still_know_them(own):
    deployment, server = own
    tensors = request(num_ads=10, history=12)
    tensors["history_ad_ids"][0, 0] = UNKNOWN_AD
    before = send(server.grpc_url, tensors)
    paused = before["ad_ids"][0, :5].tolist()
    tensors["history_ad_ids"][0, 1:6] = paused
    known = send(server.grpc_url, tensors)
    _change(deployment, *(pause(ad, 1) for ad in paused))
    at_once = send(server.grpc_url, tensors)
    assert not set(at_once["ad_ids"][0].tolist()) & set(paused)
    time.sleep(MAX_WAIT_S)
    after = send(server.grpc_url, tensors)
    assert not set(after["ad_ids"][0].tolist()) & set(paused)
    assert (after["ad_ids"] >= 0).all()
    assert after["index_version"][0, 0] == before["index_version"][0, 0] + 1
    assert after["ignored_history"].tolist() == known["ignored_history"].tolist() == [[1]]
    still_there = [i for i, ad in enumerate(known["ad_ids"][0].tolist()) if ad not in paused]
    # The history's meaning is unchanged: the ads that stay keep their scores, and come first.
    np.testing.assert_array_equal(after["ad_ids"][0, : len(still_there)], known["ad_ids"][0, still_there])
    np.testing.assert_allclose(
        after["scores"][0, : len(still_there)], known["scores"][0, still_there], atol=1e-5
    )
    _change_and_wait(deployment, *(resume(ad, 2) for ad in paused))
    assert_same(send(server.grpc_url, tensors), {name: values[0] for name, values in known.items()})


def test_new_ads_are_found_and_known(own):
    deployment, server = own
    new = 10_001
    _change_and_wait(deployment, create(new, 1, "apple cheese size 2", "a1"))
    left_out = LIVE[: len(LIVE) - 39].tolist()
    tensors = request(num_ads=40, exclude=left_out)
    tensors["history_ad_ids"][0, 0] = new
    answer = send(server.grpc_url, tensors)
    assert new in answer["ad_ids"]
    assert answer["ignored_history"].tolist() == [[0]]
    _change(deployment, delete(new, 2))
    assert new not in send(server.grpc_url, tensors)["ad_ids"]


def test_an_index_without_live_ads_gives_an_empty_answer(own):
    deployment, server = own
    _change_and_wait(deployment, *(pause(ad, 3) for ad in LIVE.tolist()))
    answer = send(server.grpc_url, request(num_ads=3))
    assert answer["ad_ids"].tolist() == [[-1, -1, -1]]
    assert answer["ignored_history"].tolist() == [[0]]
    _change_and_wait(deployment, *(resume(ad, 4) for ad in LIVE.tolist()))
    assert (send(server.grpc_url, request(num_ads=3))["ad_ids"] >= 0).all()


def _answer_of_version(server, tensors, version: int) -> dict[str, np.ndarray]:
    """First answer of that version: a version that was refused is looked at again only after a second."""
    deadline = time.monotonic() + 10
    while (answer := send(server.grpc_url, tensors))["model_version"].tolist() != [[version]]:
        assert time.monotonic() < deadline, f"expected version {version}, got {answer['model_version']}"
        time.sleep(0.1)
    return answer


def test_publish_and_roll_back_without_a_restart(own, other_graphs):
    deployment, server = own
    tensors = request(num_ads=8)
    first = Reference.of(deployment).answer(tensors)
    made = checkpoint(seed=5, tokenizer_id=deployment.tokenizer_id)
    with exported(other_graphs):
        write_bundle(made, deployment.bundles, tokenizer=deployment.tokenizer, activate=False)

    point_current(deployment.bundles, 2)  # too early: its graphs are not loaded yet
    assert_same(send(server.grpc_url, tensors), first)
    assert send(server.grpc_url, tensors)["model_version"].tolist() == [[1]]

    render(deployment.bundles, deployment.repository, index=deployment.index, config=serving_config())
    for graph in GRAPHS:
        server.admin.load(graph)
    ready = {(v.model, v.version) for v in server.admin.versions() if v.state == "READY"}
    assert ready >= {(graph, version) for graph in GRAPHS for version in ("1", "2")}
    answer = _answer_of_version(server, tensors, 2)
    second = Reference.of(deployment).answer(tensors)
    assert_same(answer, second)
    assert not np.allclose(first["scores"], second["scores"])  # otherwise the versions cannot be told apart

    point_current(deployment.bundles, 1)
    assert_same(_answer_of_version(server, tensors, 1), first)


def test_a_corrupted_version_is_refused_while_the_old_one_serves(own):
    deployment, server = own
    tensors = request()
    before = send(server.grpc_url, tensors)
    graph = deployment.bundles / "2" / "tail_2.onnx"
    intact = graph.read_bytes()
    graph.write_bytes(intact[:-1] + b"?")
    point_current(deployment.bundles, 2)
    answer = send(server.grpc_url, tensors)
    assert answer["model_version"].tolist() == before["model_version"].tolist() == [[1]]
    graph.write_bytes(intact)
    point_current(deployment.bundles, 1)
