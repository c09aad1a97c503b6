"""The gate of lower precisions: figures by hand, what it lets through, and that nothing bad is published."""

import json
import math
import shutil

import numpy as np
import onnx
import pytest

import export.bundle as bundle_module
import export.lower as lower_module
from export.bundle import write_bundle
from export.compare import Found, compare, search
from export.gate import Gate, GateError, check, summary
from export.gate_requests import GateRequests, random_requests
from export.int8 import quantize_int8
from export.lower import Lowering
from export.parity import ParityError
from serving.engines.ort import OrtExecutor
from serving.files import sha256
from serving.model.bundle import read_manifest, versions
from serving.model.current import current_version
from serving.search.widths import WidthPlan
from tests import tiny
from tests.pipeline import checkpoint, exported
from tests.tiny import VALUE_TABLE, tiny_snapshot
from training.preset.precision import PrecisionConfig

PLAN = WidthPlan((4, 16, 64), 8)
CONFIG = PrecisionConfig(gate_requests=24, gate_batch_size=7)


def found(leaves, scores=None, values=()):
    scores = np.zeros(len(leaves)) if scores is None else scores
    return Found(np.array(leaves), np.array(scores), np.array(values, float), np.zeros(0, np.int64))


@pytest.fixture(scope="module")
def requests(pipeline):
    """Requests whose targets are the first ads that FP32 finds, so that recall@50 sees every change."""
    slots, profile = tiny.random_requests(24)
    drawn = GateRequests(slots, profile, tiny_snapshot(ads=4000, paused=0), None)
    reference = search(
        OrtExecutor(pipeline.bundles / "1", levels=3),
        drawn,
        plan=PLAN,
        normalise=None,
        batch_size=24,
        value_table=VALUE_TABLE,
        title="targets",
    )
    return GateRequests(slots, profile, drawn.snapshot, [np.sort(f.ads[:20]) for f in reference])


@pytest.fixture
def bundles(pipeline, tmp_path):
    """Bundles to publish into, with the graphs of the tiny deployment."""
    with exported(pipeline.bundles / "1"):
        yield shutil.copytree(pipeline.bundles, tmp_path / "bundles")


def publish(pipeline, bundles, requests, *, config=CONFIG, tokenizer=True):
    return write_bundle(
        checkpoint(tokenizer_id=pipeline.tokenizer_id),
        bundles,
        tokenizer=pipeline.tokenizer if tokenizer else None,
        lowering=Lowering("int8", Gate(requests, config, PLAN)),
    )


def wrecking(*names):
    """A quantizer that turns the columns of every integer weight of some graphs around."""

    def quantize(source, target):
        quantize_int8(source, target)
        for name in names:
            model = onnx.load(str(target / f"{name}.onnx"))
            for weight in model.graph.initializer:
                if weight.data_type == onnx.TensorProto.INT8 and len(weight.dims) == 2:
                    turned = np.ascontiguousarray(onnx.numpy_helper.to_array(weight)[:, ::-1])
                    weight.CopyFrom(onnx.numpy_helper.from_array(turned, weight.name))
            onnx.save(model, str(target / f"{name}.onnx"))

    return quantize


def test_figures_by_hand():
    reference = [
        found([3, 1, 2, 9], [-1.0, -2.0, -3.0, -4.0], [10.0, 20.0, 30.0]),
        found([5, 6], [-1.0, -1.5], [2.0, 4.0]),
    ]
    candidate = [
        found([1, 3, 7, 2], [-1.5, -1.75, -2.0, -3.0], [22.0, 10.0, 1.0]),  # 2 has no value here
        found([6, 8], [-1.0, -2.0], [3.0, 3.0]),
    ]
    figures = compare(reference, candidate)
    assert figures["beams"] == 4
    assert figures["overlap"] == {"10": (3 / 4 + 1 / 2) / 2, "50": 0.625, "all": 0.625}
    # found by both: 1 (-2 -> -1.5), 2 (-3 -> -3), 3 (-1 -> -1.75) and 6 (-1.5 -> -1)
    assert figures["log_prob_error"] == {"mean": pytest.approx((0.5 + 0 + 0.75 + 0.5) / 4), "max": 0.75}
    # with values in both: 1 (20 -> 22), 3 (10 -> 10), 6 (4 -> 3)
    assert figures["expected_value"] == {"error": pytest.approx(3 / 34), "ratio": pytest.approx(35 / 34)}


def test_overlap_counts_only_the_first():
    a, b = found(range(100)), found([*range(40, 60), *range(40), *range(60, 100)])
    assert compare([a], [b])["overlap"] == {"10": 0.0, "50": 0.8, "all": 1.0}


def test_nothing_in_common():
    figures = compare([found([1], values=[1.0])], [found([2], values=[1.0])])
    assert figures["overlap"]["50"] == 0
    assert figures["log_prob_error"] == {"mean": None, "max": None}


@pytest.mark.parametrize(
    ("overlap", "loss", "error", "message"),
    [
        (0.9, 0.02, 0.05, None),
        (0.98, -0.1, 0.0, None),  # found more than FP32
        (0.8999, 0.0, 0.0, r"expected overlap@50 .* of at least 0.9, got 0.8999 \(precision.min_overlap50\)"),
        (1.0, 0.03, 0.0, r"relative loss of recall@50 of at most 0.02, got 0.0300 \(precision.max_recall50"),
        (1.0, 0.0, 0.06, r"error of expected values of at most 0.05, got 0.0600 \(precision.max_value_error"),
        (math.nan, 0.0, 0.0, "at least 0.9, got nan"),
        (1.0, math.nan, 0.0, "at most 0.02, got nan"),
        (1.0, 0.0, math.nan, "at most 0.05, got nan"),
        (0.1, 0.5, 0.9, "got 0.1000 .*; .*got 0.5000 .*; .*got 0.9000 .* on 7 requests .*not published"),
    ],
)
def test_thresholds(overlap, loss, error, message):
    figures = {
        "requests": 7,
        "requests_from": "validation weeks",
        "overlap": {"50": overlap},
        "recall50": {"relative_loss": loss},
        "expected_value": {"error": error},
        "thresholds": {"min_overlap50": 0.9, "max_recall50_loss": 0.02, "max_value_error": 0.05},
    }
    if message is None:
        check(figures, precision="int8")
    else:
        with pytest.raises(GateError, match=message):
            check(figures, precision="int8")


def test_int8_bundle_says_what_it_is_and_how_good(pipeline, bundles, requests):
    folder = publish(pipeline, bundles, requests)
    assert (folder, current_version(bundles)) == (bundles / "2", 2)
    manifest = read_manifest(folder)
    assert (manifest.precision, read_manifest(bundles / "1").precision) == ("int8", "fp32")
    assert read_manifest(bundles / "1").quality_precision is None
    before = read_manifest(bundles / "1")
    for key in ("graphs", "parity_max_error"):  # same inputs and outputs, same FP32 graphs behind them
        assert getattr(manifest, key) == getattr(before, key)
    assert not (folder / "fp32").exists()  # one precision a bundle
    assert {p.name for p in folder.iterdir()} == {p.name for p in (bundles / "1").iterdir()}
    for name in ("prefix", "tail_2", "tail_3", "tail_4"):
        model = onnx.load(str(folder / f"{name}.onnx"))
        assert "MatMulInteger" in {n.op_type for n in model.graph.node}
        assert manifest.sha256[f"{name}.onnx"] == sha256(folder / f"{name}.onnx")

    figures = json.loads((folder / "manifest.json").read_text())["quality_precision"]
    assert (figures["gated"], figures["requests"], figures["batch_size"]) == (True, 24, 7)
    assert (figures["widths"], figures["normalise"]) == ("4-16-64:8", "codebook-codebook-codebook")
    assert figures["thresholds"] == {"min_overlap50": 0.9, "max_recall50_loss": 0.02, "max_value_error": 0.05}
    assert all(0.9 < figures["overlap"][k] <= 1 for k in ("10", "50", "all"))
    assert figures["beams"] == 64
    assert figures["recall50"]["fp32"] == 1.0  # by construction
    assert 0.98 <= figures["recall50"]["int8"] <= 1
    assert figures["recall50"]["relative_loss"] == pytest.approx(1 - figures["recall50"]["int8"])
    assert 0 < figures["log_prob_error"]["mean"] <= figures["log_prob_error"]["max"] < 0.3
    assert 0.95 < figures["expected_value"]["ratio"] < 1.05
    line = summary(figures, precision="int8")
    assert f"@50 {figures['overlap']['50']:.4f}" in line
    assert "instead of 1.0000" in line


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("prefix",), "overlap@50"),
        (("tail_2",), "overlap@50 .*recall@50"),
        (("tail_3",), "overlap@50"),
        (("tail_4",), "^precision int8: expected relative error of expected values"),  # beams never see it
    ],
)
def test_wrecked_weights_are_caught_and_nothing_is_published(
    pipeline, bundles, requests, monkeypatch, names, message
):
    before = sorted(p.name for p in bundles.rglob("*"))
    monkeypatch.setattr(lower_module, "quantize_int8", wrecking(*names))
    with pytest.raises(GateError, match=message):
        publish(pipeline, bundles, requests)
    assert sorted(p.name for p in bundles.rglob("*")) == before
    assert (versions(bundles), current_version(bundles)) == ([1], 1)


def test_thresholds_of_the_preset_decide(pipeline, bundles, requests):
    strict = CONFIG.model_copy(update={"min_overlap50": 1.0})
    with pytest.raises(GateError, match="at least 1, got 0.9"):
        publish(pipeline, bundles, requests, config=strict)
    assert versions(bundles) == [1]


def test_parity_comes_before_quantizing(pipeline, bundles, requests, monkeypatch):
    def mismatch(*_):
        raise ParityError("0.3")

    monkeypatch.setattr(bundle_module, "check_parity", mismatch)
    monkeypatch.setattr(lower_module, "quantize_int8", lambda *_: pytest.fail("quantized"))
    with pytest.raises(ParityError):
        publish(pipeline, bundles, requests)
    assert versions(bundles) == [1]


@pytest.mark.parametrize(
    ("precision", "calibrated", "message"),
    [
        ("fp32", False, "precision fp32: expected no lowering"),
        ("fp8", False, "precision fp8: expected calibration requests for fp8 and for fp8 only"),
        ("int8", True, "precision int8: expected calibration requests for fp8 and for fp8 only"),
    ],
)
def test_parts_of_a_lowering_go_together(requests, precision, calibrated, message):
    with pytest.raises(ValueError, match=message):
        Lowering(precision, Gate(requests, CONFIG, PLAN), requests if calibrated else None)


def test_seeded_weights_are_measured_but_not_gated(pipeline, bundles, monkeypatch):
    monkeypatch.setattr(lower_module, "quantize_int8", wrecking("prefix"))
    config = PrecisionConfig(gate_requests=5)
    drawn = random_requests(checkpoint(tokenizer_id="seeded"), count=5, seed=0)
    assert drawn.slots.shape[0] == drawn.profile.shape[0] == 5
    folder = publish(pipeline, bundles, drawn, config=config, tokenizer=False)
    figures = read_manifest(folder).quality_precision
    assert (figures["gated"], figures["requests"]) == (False, 5)
    assert figures["requests_from"] == "random, seeded weights: nothing is demanded"
    assert figures["recall50"] == {"fp32": None, "int8": None, "relative_loss": None}
    assert figures["overlap"]["50"] < 0.9
    assert "recall" not in summary(figures, precision="int8")
