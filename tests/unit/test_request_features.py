"""Features of a request besides its user: values to codes, in training as at serving."""

import json

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from examples.client import Catalogue
from export.render import _context_tensors
from serving.model.features import FeatureSpec
from serving.model.manifest import Manifest, ManifestError
from serving.model.request_features import RequestFeature
from serving.search.executor import prefix_inputs
from tests.fake_triton import FakeTriton, Request, load_model
from tests.manifest import manifest
from tests.model_config import with_settings
from tests.tiny import SPEC
from training.data.samples import _request_codes
from training.preset.data import DataConfig, FeatureConfig, RequestFeatureConfig

PLACE = RequestFeature(name="placement", column="place", values=("feed", "größe"))
HOUR = RequestFeature(name="hour", column="hour", size=24)


@pytest.mark.parametrize(
    ("feature", "value", "code"),
    [
        (PLACE, "feed", 1),
        (PLACE, "größe".encode(), 2),
        (PLACE, b"gr\xff", 0),
        (PLACE, "", 0),
        (PLACE, 1, 0),
        (HOUR, 0, 1),
        (HOUR, np.int32(23), 24),
        (HOUR, 24, 0),
        (HOUR, -1, 0),
    ],
)
def test_code_of_a_value(feature, value, code):
    assert feature.code(value) == code
    assert 0 <= code < feature.codes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "expected values or a size"),
        ({"values": ["a"], "size": 3}, "expected values or a size"),
        ({"values": ["a", "a"]}, "expected distinct values"),
        ({"name": "num_ads", "size": 3}, "expected a name"),
        ({"name": "Hour", "size": 3}, "expected a name"),
    ],
)
def test_features_that_cannot_be_are_refused_by_the_preset(changes, expected):
    with pytest.raises(ValidationError, match=expected):
        RequestFeatureConfig(**({"name": "hour"} | changes))


def test_two_features_of_one_name_are_refused():
    twice = [{"name": "hour", "size": 24}, {"name": "hour", "size": 12}]
    with pytest.raises(ValidationError, match="distinct names"):
        DataConfig(source="parquet", path="x", request_features=twice)
    with pytest.raises(ValueError, match="distinct names"):
        FeatureSpec(request_features=(HOUR, HOUR))


def test_a_manifest_keeps_them_and_older_ones_have_none():
    spec = FeatureSpec(levels=2, profile_sizes=(3,), request_features=(PLACE, HOUR), gap_edges_s=(10, 60))
    assert FeatureSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.column_sizes == (3, 3, 25)
    content = manifest(1, "tok", features=spec)
    assert Manifest.parse(json.dumps(content).encode()).features == spec
    del content["features"]["request_features"]
    assert Manifest.parse(json.dumps(content).encode()).features.request_features == ()
    content["features"]["request_features"] = [{"name": "hour", "column": "hour"}]
    with pytest.raises(ManifestError, match="expected values or a size"):
        Manifest.parse(json.dumps(content).encode())


def test_gap_edges_are_the_presets():
    spec = FeatureConfig(gap_edges_s=(5, 30)).spec(levels=3, profile_sizes=())
    assert (spec.gap_edges_s, spec.gap_buckets) == ((5, 30), 3)
    assert FeatureConfig().spec(levels=3, profile_sizes=()) == FeatureSpec(levels=3)
    with pytest.raises(ValueError, match="strictly increasing"):
        FeatureConfig(gap_edges_s=(5, 5)).spec(levels=3, profile_sizes=())
    for edges in ((), (-1, 5)):
        with pytest.raises(ValidationError):
            FeatureConfig(gap_edges_s=edges)


def test_training_takes_those_of_each_requests_first_row():
    events = pl.DataFrame({"place": ["feed", None, "größe", "cellar", "feed"], "hour": [0, 23, None, 24, 7]})
    spec = FeatureSpec(request_features=(PLACE, HOUR))
    codes = _request_codes(spec, events, anchors=np.array([4, 0, 1, 2, 3]))
    assert codes.tolist() == [[1, 8], [1, 1], [0, 24], [2, 0], [0, 0]]
    with pytest.raises(ValueError, match="expected the column 'hour' of request feature 'hour'"):
        _request_codes(spec, events.drop("hour"), anchors=np.zeros(0, np.int64))
    texts = events.with_columns(hour=pl.col("hour").cast(pl.String))
    with pytest.raises(ValueError, match="expected whole numbers in 'hour'"):
        _request_codes(spec, texts, anchors=np.zeros(1, np.int64))


@pytest.fixture
def adapter(pipeline, tmp_path):
    """`request_features` of a model with other features than the tiny one."""
    opened, triton = [], FakeTriton()

    def load(**changes):
        folder = pipeline.repository / "request_features"
        features = json.loads(json.dumps(SPEC.to_json())) | changes
        config = with_settings(folder / "config.pbtxt", tmp_path / "config.pbtxt", features=features)
        opened.append(load_model(folder / "1" / "model.py", triton, config=config))
        return opened[-1], triton

    yield load
    for model in opened:
        model.finalize()
        model.reader.close()


def asked(**more):
    inputs = {
        "history_ad_ids": np.zeros((1, 0), np.int64),
        "history_behaviors": np.zeros((1, 0), np.int32),
        "history_timestamps": np.zeros((1, 0), np.int64),
        "num_ads": np.array([[3]], np.int32),
    }
    return Request(inputs | more)


def test_the_adapter_encodes_what_came_and_counts_what_it_does_not_know(adapter, monkeypatch):
    monkeypatch.setattr("serving.backend.unknown_values.TELL_EVERY_S", 0)
    declared = FeatureSpec(request_features=(PLACE, HOUR)).to_json()["request_features"]
    model, triton = adapter(request_features=json.loads(json.dumps(declared)))
    profile = np.array([[1, 2]], np.int32)
    hour, place = np.array([[7]], np.int32), np.array([["größe".encode()]], object)
    answers = model.execute(
        [
            asked(profile=profile, hour=hour, placement=place),
            asked(profile=profile),
            asked(profile=profile, hour=hour + 99, placement=np.array([[b"cellar"]], object)),
            asked(hour=hour),
        ]
    )
    assert [a.arrays()["profile_codes"].tolist() for a in answers[:3]] == [
        [[1, 2, 2, 8]],
        [[1, 2, 0, 0]],
        [[1, 2, 0, 0]],
    ]
    assert "missing: profile" in answers[3].error().message()
    counted = triton.MetricFamily.shown["gr4ad_unknown_values_total"].values
    assert counted == {(("feature", "placement"),): [1.0], (("feature", "hour"),): [1.0]}


def test_a_model_without_a_column_has_no_such_tensors(adapter):
    model, _ = adapter(profile_sizes=[])
    answer = model.execute([asked()])[0].arrays()
    assert "profile_codes" not in answer
    assert set(_context_tensors(FeatureSpec()).values()) == {""}
    with_hour = _context_tensors(FeatureSpec(request_features=(HOUR, PLACE)))
    assert '"hour" data_type: TYPE_INT32 dims: [ 1 ] optional: true' in with_hour["context_inputs"]
    assert '"placement" data_type: TYPE_STRING dims: [ 1 ] optional: true' in with_hour["context_inputs"]
    assert '"profile"' not in with_hour["context_inputs"] + with_hour["context_map"]
    assert "dims: [ 2 ]" in with_hour["profile_codes"]
    slots = np.zeros((2, 4, 6), np.int32)
    assert list(prefix_inputs(slots, np.zeros((2, 0), np.int32))) == ["slots"]
    assert list(prefix_inputs(slots, np.zeros((2, 1), np.int32))) == ["slots", "profile"]


def test_the_client_sends_those_of_the_users_last_event():
    events = pl.DataFrame(
        {
            "user_id": [1, 1, 2],
            "ad_id": [5, 6, 5],
            "timestamp": [20, 10, 5],
            "behavior": ["click"] * 3,
            "value": [1.0] * 3,
            "place": ["größe", "feed", None],
            "hour": [2**40, 3, 4],
        }
    )
    users = pl.DataFrame({"user_id": [1, 2]})
    none = pl.DataFrame()
    catalogue = Catalogue(none, users, events, none, {}, 30, request_features=(PLACE, HOUR))
    first, second = (catalogue.request(user, num_ads=3) for user in (1, 2))
    assert first["placement"].tolist() == [["größe".encode()]]
    assert HOUR.code(first["hour"][0, 0]) == 0
    assert first["hour"].dtype == np.int32
    assert "placement" not in second
    assert second["hour"].tolist() == [[4]]
    assert "profile" not in first
