"""A training that could not be exported or served is refused before it begins."""

import json

import numpy as np
import polars as pl
import pytest

from examples.new_ad import given_fields
from serving.backend.settings import ServingConfig
from serving.model.features import GAP_EDGES_S, FeatureSpec
from tests.tiny_log import open_run, write_run
from tests.whole_way import purchases, write_tables
from training.data.exportable import check_model
from training.data.prepare import main
from training.data.prepared import load_prepared
from training.preset.preset import Preset
from training.run import RunData, SpecError

GIVEN_SIDS = {"tokenizer": {"sids": "given"}}


def prepare(tmp_path, capsys, *, ads, data=None, **sections):
    """`make data`: status and what it says of errors."""
    tables = write_tables(
        tmp_path / "tables",
        ads=ads,
        users=pl.DataFrame({"user_id": np.arange(10)}),
        events=purchases(users=10, ads=50),
    )
    source = {"source": "parquet", "path": str(tables), "split": {"by": "last_events"}}
    preset = tmp_path / "preset.yaml"
    preset.write_text(json.dumps({"data": source | (data or {})} | sections))
    return main(["--config", str(preset), "--out", str(tmp_path / "data")]), capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "data", "sections", "message"),
    [
        ({}, {}, GIVEN_SIDS, "expected columns ['text']"),
        ({"text": ["a"] * 50}, {}, GIVEN_SIDS, "expected the columns sid_0, sid_1, sid_2"),
        ({"sid_0": [1] * 50}, {}, GIVEN_SIDS, "levels of tokenizer.given_sizes, got sid_0"),
        ({"sid_0": [1] * 50}, {}, {}, "expected texts for tokenizer.embedding: bag"),
        (
            {"embedding": [[1.0, 2.0]] * 49 + [[1.0]]},
            {},
            {"tokenizer": {"embedding": "given"}},
            "row 49, column 'embedding': expected lists of one length > 0",
        ),
        ({"text": ["a"] * 50}, {"numeric_columns": ["price"]}, {}, "expected columns ['price']"),
        (
            {"text": ["a"] * 50, "price": [1.0] * 49 + [float("nan")]},
            {"numeric_columns": ["price"]},
            {},
            "row 49, column 'price': expected a finite number or null, got nan",
        ),
        (
            {"text": ["a"] * 50},
            {"request_features": [{"name": "hour", "size": 24}]},
            {},
            "expected columns ['hour']",
        ),
        (
            {f"sid_{level}": [2**20 - 1] * 50 for level in range(4)},
            {},
            {
                "tokenizer": {"sids": "given", "given_sizes": [None] * 4},
                "serving": {"widths": "4-4-4-4:1"},
                "evaluation": {"cutoffs": [1], "widths": "1-1-1-1:1"},
            },
            "level sizes whose product is below 2**63",
        ),
    ],
)
def test_what_cannot_become_a_model_is_refused_by_make_data(
    tmp_path, capsys, columns, data, sections, message
):
    ads = pl.DataFrame({"ad_id": np.arange(50), **columns})
    status, said = prepare(tmp_path, capsys, ads=ads, data=data, **sections)
    assert (status, message in said) == (1, True), said
    assert not (tmp_path / "data").exists()


def test_columns_that_the_preset_names_are_kept_and_others_are_not(tmp_path, capsys):
    ads = pl.DataFrame(
        {"ad_id": np.arange(50), "sid_0": [1] * 50, "embedding": [[1.0]] * 50, "price": [2] * 50, "x": 1}
    )
    status, said = prepare(
        tmp_path,
        capsys,
        ads=ads,
        data={
            "numeric_columns": ["price"],
            "request_features": [{"name": "who", "column": "provenance", "values": ["made up"]}],
        },
        tokenizer={"embedding": "given"},
    )
    assert status == 0, said
    tables = load_prepared(tmp_path / "data").tables
    assert {"sid_0", "embedding", "price"} <= set(tables.ads.columns)
    assert "x" not in tables.ads.columns
    assert tables.events.columns.count("provenance") == 1


def test_a_shape_that_no_server_takes_is_named_whole():
    serving = ServingConfig(widths="1-1-1-1:1")
    with pytest.raises(ValueError, match=r"features of 4 SID levels, got 3; .*product is below 2\*\*63"):
        check_model(FeatureSpec(levels=3), level_sizes=(2**20,) * 4, serving=serving)


def test_a_model_does_not_go_on_with_other_request_features_or_gap_edges(tmp_path):
    made, run = write_run(tmp_path)
    preset, spec, _ = open_run((made, run))
    data = RunData.load(run)
    assert data.go_on(spec, preset) == spec
    feature = "data.request_features=[{name: hour, size: 24}]"
    with pytest.raises(SpecError, match="data.request_features .*its weights do not fit them"):
        data.go_on(spec, Preset.load(made, [feature]))
    # As many buckets, but each of its embeddings was learned for another time.
    edges = [edge + 1 for edge in GAP_EDGES_S]
    for other in (edges, [10, 60]):
        with pytest.raises(SpecError, match="features.gap_edges_s .*its weights do not fit them"):
            data.go_on(spec, Preset.load(made, [f"features.gap_edges_s={other}"]))


def test_the_fields_of_an_event_from_a_row_of_the_tables():
    row = {"ad_id": 1, "text": "", "created_at": 0, "sid_1": 4, "sid_0": 3, "price": 5, "size": None}
    assert given_fields(row) == {"sid": [3, 4], "numbers": {"price": 5.0}}
    assert given_fields({"embedding": [0.5]}) == {"embedding": [0.5]}
    wide = {f"embedding_{i}": float(i) for i in (10, 9, 0)}
    assert given_fields(wide) == {"embedding": [0.0, 9.0, 10.0]}
