"""The `model.py` adapters with a fake `triton_python_backend_utils`: tensors in, tensors out, errors."""

import json
import re
import shutil
import time

import numpy as np
import pytest

import serving.backend.adapter
import serving.backend.outcomes
import serving.backend.resolve
from indexer.store.index_store import IndexStore
from serving.backend import draining
from serving.backend.resolver_metrics import ResolverMetrics
from serving.engines.bls import BlsExecutor, EngineError
from serving.engines.ort import OrtExecutor
from serving.index.layout import HEARTBEAT
from serving.index.reader import IndexReader
from serving.keys import id_of
from serving.load.policy import OverloadError
from serving.model.bundle import BundleError
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.fake_triton import FakeTriton, Request, TritonError, load_model
from tests.index_files import IndexFiles
from tests.model_config import with_settings
from tests.pipeline import WIDTHS
from tests.tiny import LEVEL_SIZES, SPEC, VALUE_TABLE, random_requests, random_slot_ads

GRAPHS = ["lazyar_prefix", *(f"lazyar_tail_{t}" for t in (2, 3, 4))]
NONE = np.zeros((1, 0), np.int64)


@pytest.fixture
def triton():
    return FakeTriton()


@pytest.fixture
def load(pipeline, triton):
    """Adapters as rendered; each opens the index anew, which LMDB allows once a process."""
    opened = []

    def open_adapter(name, version="1", config=None):
        folder = pipeline.repository / name
        model = load_model(folder / version / "model.py", triton, config=config or folder / "config.pbtxt")
        opened.append(model)
        return model

    open_adapter.opened = opened
    yield open_adapter
    for model in opened:
        reader = getattr(model, "reader", None) or getattr(getattr(model, "scheduler", None), "_reader", None)
        if reader is not None:
            reader.close()


@pytest.fixture
def graphs(load, triton):
    """The four graph models as Triton would call them."""
    for name in GRAPHS:
        adapter = load(name)

        def call(version, inputs, *, adapter=adapter):
            assert version == 1
            response = adapter.execute([Request(inputs)])[0]
            if response.has_error():
                raise RuntimeError(response.error().message())
            return response.arrays()

        triton.models[name] = call
    return triton


def history(ads, *, rows=1, now=1_000, num_ads=3, **more):
    ads = np.array([ads] * rows, np.int64).reshape(rows, -1)
    inputs = {
        "history_ad_ids": ads,
        "history_behaviors": np.full(ads.shape, 3, np.int32),
        "history_timestamps": np.full(ads.shape, 500, np.int64),
        "profile": np.ones((rows, 2), np.int32),
        "num_ads": np.full((rows, 1), num_ads, np.int32),
        "timestamp": np.full((rows, 1), now, np.int64),
    }
    return {k: v for k, v in (inputs | more).items() if v is not None}


def searchable(rows, *, num_ads=5, start=0):
    slot_ads, columns, profile, _ = random_slot_ads(start + rows)
    return {
        "slot_ads": slot_ads[start:],
        "slots": columns[start:],
        "profile_codes": profile[start:],
        "num_ads": np.full((rows, 1), num_ads, np.int32),
        "exclude": np.full((rows, 2), -1, np.int64),
        "arrived": np.full((rows, 1), time.monotonic()),
    }


def test_request_features(load):
    model = load("request_features")
    ads = model.reader.snapshot.ad_ids[:3]
    exclude = np.array([[7, -1, 5], [7, 7, 7]], np.int64)
    requests = [Request(history(ads, rows=2, exclude_ad_ids=exclude)), Request(history([3]))]
    first, second = (r.arrays() for r in model.execute(requests))
    assert first["slots"].shape == (2, SPEC.slots, 3)
    assert (first["slots"].dtype, first["slot_ads"].dtype) == (np.int32, np.int64)
    assert first["profile_codes"].tolist() == [[1, 1], [1, 1]]
    assert first["excluded"].tolist() == [[5, 7], [7, -1]]
    assert first["ignored_history"].tolist() == [[0], [0]]
    assert second["ignored_history"].tolist() == [[1]]
    assert second["excluded"].shape == (1, 0)
    assert sorted(first["slot_ads"][0, :3].tolist()) == sorted(ads.tolist())
    assert (first["slot_ads"][0, 3] == -1) == (SPEC.short_slots > 3)
    assert (second["slot_ads"] == -1).all()  # the ad is unknown


@pytest.mark.parametrize("name", ["ad_resolver", "beam_scheduler"])
def test_metrics_go_back_to_triton_when_a_model_is_finalized(load, triton, name):
    model = load(name)
    assert triton.MetricFamily.shown
    model.finalize()
    assert not triton.MetricFamily.shown


def test_a_server_that_stops_takes_no_new_requests_from_its_time_on(load, tmp_path, monkeypatch):
    monkeypatch.setattr(draining, "shared_file", lambda name: tmp_path / name)
    model = load("request_features")

    def refused() -> bool:
        (answer,) = model.execute([Request(history([3]))])
        if answer.has_error():
            assert answer.error().code() == TritonError.UNAVAILABLE
            assert "the server is stopping" in answer.error().message()
        return answer.has_error()

    assert not refused()
    (tmp_path / "draining").write_text(repr(time.monotonic() + 60))
    assert not refused()
    (tmp_path / "draining").write_text(repr(time.monotonic()))
    assert refused()


def test_optional_inputs_may_be_absent(load):
    model = load("request_features")
    ads = model.reader.snapshot.ad_ids[:2]
    response = model.execute([Request(history(ads, timestamp=None, exclude_ad_ids=None))])[0].arrays()
    assert response["excluded"].shape == (1, 0)
    # without a time of its own a request is of now, decades after these events: the last gap bucket
    assert (response["slots"][0, :2, 1] == SPEC.gap_buckets - 1).all()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_ads": np.array([[0]], np.int32)}, "num_ads: expected 1..40 .*got 0"),
        ({"profile": np.array([[9, 9]], np.int32)}, r"profile\[0\]: expected 0..2"),
        ({"exclude_ad_ids": np.arange(51)[None]}, "exclude_ad_ids: expected at most 50 ads, got 51"),
        ({"history_behaviors": np.zeros((1, 5), np.int32)}, "history_behaviors: expected 1 values"),
    ],
)
def test_the_clients_mistake_is_invalid_arg_and_does_not_spoil_the_batch(load, bad, message):
    model = load("request_features")
    good = history([3])
    answers = model.execute([Request(good), Request(good | bad), Request(good)])
    assert [a.has_error() for a in answers] == [False, True, False]
    error = answers[1].error()
    assert error.code() == TritonError.INVALID_ARG
    assert re.search(message, error.message())


def counted(triton):
    """Requests by outcome, over the models that a request passes."""
    family = triton.MetricFamily.shown["gr4ad_requests_total"]
    return {dict(labels)["outcome"]: values[-1] for labels, values in family.values.items() if values}


def test_every_request_counts_once_by_how_it_ended(graphs, load, monkeypatch):
    monkeypatch.setattr(serving.backend.outcomes, "TELL_EVERY_S", 0.0)
    features = load("request_features")
    mistake = history([3]) | {"num_ads": np.array([[0]], np.int32)}
    good, _ = features.execute([Request(history([3])), Request(mistake)])
    assert counted(graphs) == {"refused": 1}  # what is answered here goes on
    monkeypatch.setattr(features, "entry", Full())
    features.execute([Request(history([3]))] * 2)
    assert counted(graphs) == {"refused": 1, "rejected": 2}
    features.reader.close()
    scheduler = load("beam_scheduler")
    gone = Request(searchable(1))
    gone.gone = True
    scheduler.execute([gone, Request(searchable(1)), Request(searchable(1, num_ads=100_000))])
    assert counted(graphs) == {"refused": 1, "cancelled": 1}  # of this family; a server adds them up
    monkeypatch.setattr(scheduler.scheduler._reader, "refresh", lambda: {}["gone"])
    scheduler.execute([Request(searchable(1))])
    assert counted(graphs) == {"refused": 1, "cancelled": 1, "failed": 1}


class Full:
    """An entry that lets nobody in."""

    def check(self, now, *, rows):
        raise OverloadError("overloaded: the queue is full")


def test_a_missing_input_is_named(load):
    model = load("request_features")
    answers = model.execute([Request(history([3], num_ads=1, profile=None)), Request(history([3]))])
    assert [a.has_error() for a in answers] == [True, False]
    assert answers[0].error().code() == TritonError.INVALID_ARG
    assert "missing: profile" in answers[0].error().message()


def test_models_behind_the_ensemble_check_num_ads_again(graphs, load):
    model = load("beam_scheduler")
    answers = model.execute([Request(searchable(1, num_ads=100_000)), Request(searchable(1))])
    assert [a.has_error() for a in answers] == [True, False]
    assert answers[0].error().code() == TritonError.INVALID_ARG
    assert "num_ads: expected 1..40" in answers[0].error().message()


def test_our_mistake_is_internal(load, monkeypatch, caplog):
    model = load("request_features")
    monkeypatch.setattr(model, "spec", None)
    error = model.execute([Request(history([3]))])[0].error()
    assert error.code() == TritonError.INTERNAL
    assert "AttributeError" in caplog.text


def test_our_mistake_in_the_beam_scheduler_is_in_the_log(graphs, load, monkeypatch, caplog):
    model = load("beam_scheduler")
    monkeypatch.setattr(model, "limits", None)
    answers = model.execute([Request(searchable(1)), Request(searchable(1))])
    assert [a.error().code() for a in answers] == [TritonError.INTERNAL] * 2
    assert caplog.text.count("AttributeError: 'NoneType'") == 2


def test_a_batch_that_fails_as_a_whole_answers_every_request(graphs, load, monkeypatch, caplog):
    model = load("beam_scheduler")
    monkeypatch.setattr(model.scheduler._reader, "refresh", lambda: {}["gone"])
    answers = model.execute([Request(searchable(2)), Request(searchable(1))])
    assert [a.error().code() for a in answers] == [TritonError.INTERNAL] * 2
    assert caplog.text.count("KeyError: 'gone'") == 1


def test_ad_resolver(load):
    model = load("ad_resolver")
    snapshot = model.reader.snapshot
    live = snapshot.sids_of(snapshot.leaf_ad_ids[:1])[0][0]
    expected = snapshot.ads_of_leaves(snapshot.leaves_of(live[None]))[1].tolist()
    sids = np.full((2, 4, 3), -1, np.int32)
    sids[0, 1], sids[1, 0] = live, live
    inputs = {
        "beam_sids": sids,
        "beam_scores": np.full((2, 4), -1.5, np.float32),
        "beam_values": np.full((2, 4), np.nan, np.float32),
        "searched_model": np.ones((2, 1), np.int64),
        "searched_version": np.array([[0], [9]], np.int64),
        "num_ads": np.array([[1], [5]], np.int32),
        "exclude": np.array([[-1], [expected[0]]], np.int64),
    }
    out = model.execute([Request(inputs)])[0].arrays()
    assert out["ad_ids"].shape == (2, 5)
    assert out["ad_ids"][0].tolist() == [expected[0], -1, -1, -1, -1]
    assert [a for a in out["ad_ids"][1].tolist() if a >= 0] == expected[1:]
    assert out["index_version"].tolist() == [[0], [1]]  # of search and look-up the older one
    assert out["sids"].shape == (2, 5, 3)
    assert all(np.isfinite(out[k]).all() for k in ("scores", "expected_value"))


def test_ad_keys(load, pipeline, tmp_path):
    """Keys [b, k] of ads of every kind: with a key, without, unknown, padding; in the store's live state."""
    key = "обувь 👟"
    with IndexStore(tmp_path / "index") as store:
        store.build(
            "tok",
            LEVEL_SIZES,
            ad_ids=np.array([id_of(key)]),
            sids=np.zeros((1, 3), np.int32),
            statuses=np.array(["active"]),
            keys=[key],
        )
    config = with_settings(
        pipeline.repository / "ad_keys" / "config.pbtxt",
        tmp_path / "config.pbtxt",
        index=str(tmp_path / "index"),
    )
    model = load("ad_keys", config=config)
    ads = np.array([[id_of(key), 5], [-1, id_of(key)]])
    many = np.zeros((1, 41), np.int64)  # more than `max_num_ads` of an answer
    found = model.execute([Request({"resolved_ads": ads}), Request({"resolved_ads": many})])
    assert found[0].arrays()["ad_keys"].tolist() == [[key.encode(), b""], [b"", key.encode()]]
    assert "expected 1..40 (ads to return), got 41" in found[1].error().message()
    assert found[1].error().code() == TritonError.INVALID_ARG
    model.finalize()


@pytest.fixture
def resolver_of_two(pipeline, load, tmp_path):
    """An ad_resolver whose versions 1 and 2 are of different generations: SID 0 0 0 is ad 7, or ad 9."""
    bundles = shutil.copytree(pipeline.bundles, tmp_path / "bundles")
    second = shutil.copytree(bundles / "1", bundles / "2")
    manifest = json.loads((second / "manifest.json").read_text())
    changed = manifest | {"model_version": 2, "tokenizer_id": "new"}
    (second / "manifest.json").write_text(json.dumps(changed))
    files = IndexFiles(tmp_path / "index")
    for name in (pipeline.tokenizer_id, "new"):
        files.generation(name, LEVEL_SIZES)
    files.apply({pipeline.tokenizer_id: [(7, (0, 0, 0), True, True)], "new": [(9, (0, 0, 0), True, True)]})
    config = with_settings(
        pipeline.repository / "ad_resolver" / "config.pbtxt",
        tmp_path / "config.pbtxt",
        bundles=str(bundles),
        index=str(tmp_path / "index"),
    )
    return load("ad_resolver", config=config), files


def beams(versions):
    rows = len(versions)
    return {
        "beam_sids": np.zeros((rows, 1, 3), np.int32),
        "beam_scores": np.zeros((rows, 1), np.float32),
        "beam_values": np.zeros((rows, 1), np.float32),
        "searched_model": np.array(versions, np.int64)[:, None],
        "searched_version": np.full((rows, 1), 100),
        "num_ads": np.ones((rows, 1), np.int32),
        "exclude": np.zeros((rows, 0), np.int64),
    }


def test_beams_are_looked_up_in_the_generation_of_their_version(resolver_of_two, monkeypatch):
    model, files = resolver_of_two
    answers = model.execute([Request(beams([1])), Request(beams([2, 1])), Request(beams([3]))])
    assert answers[0].arrays()["ad_ids"].tolist() == [[7]]
    assert answers[1].arrays()["ad_ids"].tolist() == [[9], [7]]
    assert "bundle" in answers[2].error().message()  # there is no version 3
    assert len(model.reader._followed) == 2
    monkeypatch.setattr(serving.backend.resolve, "FORGET_S", 0.0)
    model.execute([Request(beams([2]))])
    assert list(model.reader._followed) == ["new"]
    assert model.execute([Request(beams([1]))])[0].arrays()["ad_ids"].tolist() == [[7]]


def test_index_gauges(resolver_of_two, triton, monkeypatch):
    model, files = resolver_of_two
    clock = [50.0]
    monkeypatch.setattr(serving.backend.resolver_metrics.time, "monotonic", lambda: clock[0])

    def shown(name):
        return triton.MetricFamily.shown[f"gr4ad_index_{name}"].values[()]

    assert shown("version") == shown("lag_seconds") == []
    model.execute([Request(beams([1]))])
    assert (shown("version"), shown("lag_seconds")) == ([1.0], [np.inf])
    (files.path / HEARTBEAT).touch()
    files.apply({"new": [(9, (0, 0, 0), False, True)]})
    clock[0] += 0.9
    model.execute([Request(beams([1]))])
    assert len(shown("version")) == 1  # a second has not passed
    clock[0] += 0.2
    model.execute([Request(beams([1]))])
    assert shown("version") == [1.0, 2.0]
    assert shown("lag_seconds")[1] < 60


def test_a_server_without_metrics(resolver_of_two, triton, caplog, monkeypatch):
    def refuse(**arguments):
        raise RuntimeError("metrics are disabled")

    refuse.GAUGE = refuse.COUNTER = None
    monkeypatch.setattr(triton, "MetricFamily", refuse)
    ResolverMetrics(triton, resolver_of_two[0].reader).look()
    assert "no metrics: metrics are disabled" in caplog.text


def test_bls_equals_ort_in_process(graphs, pipeline):
    reader = IndexReader(pipeline.index)
    try:
        slots, profile = random_requests(4)
        found = [
            beam_search(
                executor,
                reader.snapshot.trie,
                slots,
                profile,
                plan=WidthPlan.parse(WIDTHS, levels=3),
                num_results=np.full(4, 7),
                value_table=VALUE_TABLE,
            )
            for executor in (
                BlsExecutor(graphs, levels=3, version=1),
                OrtExecutor(pipeline.bundles / "1", levels=3),
            )
        ]
    finally:
        reader.close()
    for name in ("sids", "leaves", "scores", "expected_value", "widths"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
    assert graphs.calls == [(name, 1) for name in GRAPHS]  # one call a level, all of one version


def test_bls_hands_keys_and_values_on_untouched(graphs):
    executor = BlsExecutor(graphs, levels=3, version=1)
    slots, profile = random_requests(2)
    _, carry = executor.prefix(slots, profile)
    executor.tail(
        2, carry, parents=[], token=np.zeros((2, 1), np.int32), allowed=np.zeros((2, 1, 3), np.int32)
    )
    for name in ("m", "context_kv", "context_bias", "past_kv_1"):
        assert graphs.tensors[-1][name] is carry[name]


def test_bls_error_names_model_and_version(triton):
    def broken(version, inputs):
        raise RuntimeError("out of memory")

    triton.models["lazyar_prefix"] = broken
    slots, profile = random_requests(1)
    with pytest.raises(EngineError, match="lazyar_prefix version 5: RuntimeError: out of memory"):
        BlsExecutor(triton, levels=3, version=5).prefix(slots, profile)


def test_beam_scheduler(graphs, load):
    model = load("beam_scheduler")
    model.scheduler.search([])  # the graphs are tried once
    assert [n for n, _ in graphs.calls] == GRAPHS
    graphs.calls.clear()
    requests = [Request(searchable(2)), Request(searchable(1, start=2, num_ads=20))]
    first, second = (r.arrays() for r in model.execute(requests))
    assert [n for n, _ in graphs.calls] == GRAPHS  # both requests share one search
    assert first["beam_sids"].shape[::2] == (2, 3)
    assert first["beam_sids"].dtype == np.int32
    assert second["beam_sids"].shape[1] >= 20
    assert (second["beam_sids"][0, :20] >= 0).all()
    assert first["searched_model"].tolist() == [[1], [1]]
    assert first["degraded"].tolist() == [[False], [False]]
    assert first["beam_widths"].shape == (2, 4)
    live = model.scheduler._reader.snapshot
    sids = first["beam_sids"][0]
    assert (live.leaves_of(sids[sids[:, 0] >= 0]) >= 0).all()
    assert (sids < np.array(LEVEL_SIZES)).all()


def test_beam_scheduler_width_cap(graphs, load):
    model = load("beam_scheduler")
    out = model.execute([Request(searchable(1, num_ads=1), json.dumps({"width_cap": 3}))])[0].arrays()
    assert out["degraded"].tolist() == [[True]]
    assert out["beam_widths"].max() <= 3
    again = model.execute([Request(searchable(1, num_ads=1), json.dumps({"width_cap": "3"}))])[0].arrays()
    np.testing.assert_array_equal(out["beam_sids"], again["beam_sids"])


@pytest.mark.parametrize("cap", ['"wide"', "0", "-3", "1.5", "true", "[]", '""', '"' + "9" * 5000 + '"'])
def test_a_bad_width_cap_fails_its_own_request_only(graphs, load, cap):
    model = load("beam_scheduler")
    answers = model.execute([Request(searchable(1)), Request(searchable(1), f'{{"width_cap": {cap}}}')])
    assert [a.has_error() for a in answers] == [False, True]
    assert answers[1].error().code() == TritonError.INVALID_ARG
    assert "width_cap: expected a whole number >= 1, got" in answers[1].error().message()


def test_beam_scheduler_widths_of_a_request(graphs, load):
    model = load("beam_scheduler")
    plain, narrow = Request(searchable(1, num_ads=1)), json.dumps({"widths": "2-3-4:1"})
    first, second = (r.arrays() for r in model.execute([plain, Request(searchable(1, num_ads=1), narrow)]))
    assert second["beam_widths"].tolist() == [[2, 3, 4, 1]]
    assert second["degraded"].tolist() == [[True]]
    assert first["degraded"].tolist() == [[False]]
    # The policy: no level gets more than max_widths, which here is the configured plan.
    wide = json.dumps({"widths": "900-900-900:900"})
    third = model.execute([Request(searchable(1, num_ads=1), wide)])[0].arrays()
    np.testing.assert_array_equal(third["beam_widths"], first["beam_widths"])
    assert third["degraded"].tolist() == [[False]]


@pytest.mark.parametrize(
    "widths", ["0-3-5:1", "2-3-5:0", "2-3", "2-3-5-7", "a-b-c", "", "2--3-5", "-1-3-5", 7, ["2"], "9" * 300]
)
def test_bad_widths_fail_their_own_request_only(graphs, load, widths):
    model = load("beam_scheduler")
    bad = Request(searchable(1), json.dumps({"widths": widths}))
    answers = model.execute([Request(searchable(1)), bad])
    assert [a.has_error() for a in answers] == [False, True]
    assert answers[1].error().code() == TritonError.INVALID_ARG
    assert "parameter widths: " in answers[1].error().message()


def test_graphs_in_the_scheduler_give_the_same_answer(graphs, load, pipeline, triton, tmp_path):
    """No graph is called as a model, and a version whose graphs cannot be opened is refused."""
    expected = load("beam_scheduler").execute([Request(searchable(2))])[0].arrays()
    config = with_settings(
        pipeline.repository / "beam_scheduler" / "config.pbtxt",
        tmp_path / "config.pbtxt",
        serving={"graph_calls": "in_process"},
    )
    for model in list(load.opened):
        model.scheduler._reader.close() if hasattr(model, "scheduler") else None
        load.opened.remove(model)
    graphs.calls.clear()
    model = load("beam_scheduler", config=config)
    found = model.execute([Request(searchable(2))])[0].arrays()
    assert graphs.calls == []
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    manifest = model.scheduler._active.manifest
    model.engine.prepare(manifest)
    with pytest.raises(BundleError, match="model version 99: its graphs cannot be opened"):
        model.engine.prepare(manifest.model_copy(update={"version": 99}))


def test_a_failing_engine_is_internal_and_passes(graphs, load, caplog):
    model = load("beam_scheduler")
    working = graphs.models["lazyar_tail_3"]
    graphs.models["lazyar_tail_3"] = lambda version, inputs: {}["gone"]
    caplog.clear()
    answers = model.execute([Request(searchable(1)), Request(searchable(2))])
    for error in (a.error() for a in answers):
        assert error.code() == TritonError.INTERNAL
        assert "lazyar_tail_3 version 1" in error.message()
    assert len([r for r in caplog.records if r.name.startswith("serving.")]) == 1  # one failure, one line
    graphs.models["lazyar_tail_3"] = working
    assert not model.execute([Request(searchable(1))])[0].has_error()


def test_graph_model_with_a_wrong_shape(load):
    model = load("lazyar_prefix")
    slots, profile = random_requests(2)
    good, wrong = (
        Request({"slots": slots, "profile": profile}),
        Request({"slots": slots[:, 1:], "profile": profile}),
    )
    answers = model.execute([good, wrong, Request({"slots": slots}), good])
    assert [a.has_error() for a in answers] == [False, True, True, False]
    np.testing.assert_array_equal(answers[0].arrays()["logprob"], answers[3].arrays()["logprob"])
    np.testing.assert_allclose(np.exp(answers[0].arrays()["logprob"]).sum(axis=1), 1, atol=1e-5)


def test_a_graph_model_whose_file_is_not_the_bundles(triton, pipeline, tmp_path, caplog):
    """It loads, so that Triton loads the other versions at its start, and answers nothing."""
    folder = shutil.copytree(pipeline.repository / "lazyar_prefix", tmp_path / "lazyar_prefix")
    graph = folder / "1" / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    model = load_model(folder / "1" / "model.py", triton, config=folder / "config.pbtxt")
    slots, profile = random_requests(1)
    (answer,) = model.execute([Request({"slots": slots, "profile": profile})])
    assert "model.onnx: expected sha256" in answer.error().message()
    assert "graph prefix of version 1" in caplog.text


def test_from_request_to_ads(graphs, load):
    """The three adapters one after the other, as the ensemble wires them."""
    features = load("request_features")
    ads, shown = features.reader.snapshot.ad_ids[:4], features.reader.snapshot
    built = features.execute([Request(history(ads, num_ads=6))])[0].arrays()
    features.reader.close()
    scheduler = load("beam_scheduler")
    num_ads = np.array([[6]], np.int32)
    beams = scheduler.execute(
        [
            Request(
                {
                    "slot_ads": built["slot_ads"],
                    "arrived": built["arrived"],
                    "slots": built["slots"],
                    "profile_codes": built["profile_codes"],
                    "num_ads": num_ads,
                    "exclude": built["excluded"],
                }
            )
        ]
    )[0].arrays()
    scheduler.scheduler._reader.close()
    resolver = load("ad_resolver")
    out = resolver.execute(
        [
            Request(
                {k: v for k, v in beams.items() if k not in ("beam_widths", "degraded")}
                | {"num_ads": num_ads, "exclude": built["excluded"]}
            )
        ]
    )[0].arrays()
    assert np.isin(out["ad_ids"], shown.leaf_ad_ids).all()
    assert len(set(out["ad_ids"][0].tolist())) == 6
    assert (np.diff(out["scores"][0]) <= 0).all()
    assert (out["expected_value"] > 0).all()
    assert (shown.sids_of(out["ad_ids"][0])[0] == out["sids"][0]).all()
