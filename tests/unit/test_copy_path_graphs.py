"""A copy path in graphs, bundles and servers: the same numbers, and nobody serves it without knowing."""

import shutil
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from tritonclient.grpc import model_config_pb2

from export.bundle import write_bundle
from export.fp16 import convert_to_fp16
from export.graph_config import check_graph, graph_values
from export.int8 import quantize_int8
from export.parity import parity_errors
from export.pbtxt import check_config, fill
from export.profiles import profiles
from serving.engines.bls import BlsExecutor
from serving.engines.ort import OrtExecutor
from serving.engines.padding import PaddedExecutor, ShapeBuckets
from serving.model.bundle import BundleError, read_manifest
from serving.search.probe import probe
from serving.search.widths import WidthPlan
from tests.copying import NORMALISE, requests, search
from tests.pipeline import checkpoint, exported, serving_config
from tests.tiny import LEVEL_SIZES, copying_model, tiny_snapshot
from tests.unit.test_bls_device import Cupy, DeviceTriton
from tests.unit.test_bundle import edit
from training.rollout.executor import TorchExecutor


def test_graphs_equal_the_model(copying_graphs):
    assert parity_errors(copying_model(), copying_graphs).max() < 1e-4
    for normalise in NORMALISE[:3]:
        plan = WidthPlan((4, 8, 16), 6)
        onnx, model = (
            search(tiny_snapshot(), executor=executor, plan=plan, normalise=normalise)
            for executor in (OrtExecutor(copying_graphs, levels=3), TorchExecutor(copying_model()))
        )
        np.testing.assert_array_equal(onnx.sids, model.sids)
        np.testing.assert_allclose(onnx.scores, model.scores, atol=2e-5)


def test_parity_looks_at_the_copy_path(copying_graphs):
    changed = copying_model()
    with torch.no_grad():
        changed.copy_path.gate += 0.01
    assert np.median(parity_errors(changed, copying_graphs)) > 1e-3


def test_padding_changes_nothing(copying_graphs):
    plan = WidthPlan((4, 8, 16), 6)
    buckets = ShapeBuckets.of((plan,), level_sizes=LEVEL_SIZES, value_buckets=4, max_batch=8)
    inner = OrtExecutor(copying_graphs, levels=3)
    found, expected = (
        search(tiny_snapshot(), executor=executor, plan=plan, count=3)
        for executor in (PaddedExecutor(inner, buckets), inner)
    )
    np.testing.assert_array_equal(found.sids, expected.sids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


@pytest.fixture
def bundle(pipeline, copying_graphs, tmp_path):
    """A bundle of a model with a copy path."""
    found, model = checkpoint(tokenizer_id=pipeline.tokenizer_id), copying_model()
    found = replace(found, model=model, spec=replace(found.spec, model=model.config, features=model.spec))
    with exported(copying_graphs):
        return write_bundle(found, tmp_path / "bundles", tokenizer=pipeline.tokenizer)


def test_a_bundle_says_it_and_older_ones_are_read(bundle, pipeline, tmp_path):
    manifest = read_manifest(bundle)
    assert (manifest.format_version, manifest.has_copy_path) == (4, True)
    assert manifest.model["copy_path"] is True
    features = manifest.features.to_json()
    edit(bundle, model=manifest.model | {"copy_path": False})
    with pytest.raises(BundleError, match="copy_logprob among the outputs of prefix: expected False"):
        read_manifest(bundle)
    # Format 3 had a mixture over the slots of the history.
    edit(bundle, format_version=3, model=manifest.model, features=features | {"habits": 0})
    with pytest.raises(BundleError, match="features.habits above 0: expected True"):
        read_manifest(bundle)
    older = shutil.copytree(pipeline.bundles / "1", tmp_path / "older" / "1")
    model = {k: v for k, v in read_manifest(older).model.items() if k != "copy_path"}
    edit(older, format_version=2, model=model)
    assert read_manifest(older).has_copy_path is False


def test_a_version_is_tried_before_it_answers(bundle):
    manifest = read_manifest(bundle)
    executor = OrtExecutor(bundle, levels=3)
    probe(executor, manifest)

    class Other:
        def prefix(self, slots, profile):
            logprob, carry = executor.prefix(slots, profile)
            return logprob, {**carry, "copy_logprob": self.copies}

        def tail(self, *arguments, **options):
            return executor.tail(*arguments, **options)

    for copies, message in (
        (np.log(np.full((1, 11), 1 / 11)), "expected all for the model without a history, got 0.0909 of 1"),
        (np.full((1, 11), np.nan), "got nan of nan"),
        (np.zeros((1, 9)), r"expected numbers of the model and 10 habits, got the shape \(1, 9\)"),
    ):
        other = Other()
        other.copies = copies
        with pytest.raises(BundleError, match=message):
            probe(other, manifest)


@pytest.mark.parametrize("target", ["cpu", "onnxruntime", "tensorrt"])
def test_servers_are_told_of_the_output(bundle, target):
    manifest, config = read_manifest(bundle), serving_config()
    values = graph_values("prefix", manifest, config=config, target=target, bundles="b")
    parsed = check_config("lazyar_prefix", fill("graph", values))
    check_graph(parsed, bundle / "prefix.onnx", ranges=profiles(manifest, config)["prefix"])
    [output] = [o for o in parsed.output if o.name == "copy_logprob"]
    assert list(output.dims) == [11]
    assert output.data_type == model_config_pb2.TYPE_FP32


@pytest.mark.parametrize("on_device", [False, True])
def test_triton_calls_equal_calls_in_process(bundle, monkeypatch, on_device):
    """What the search reads comes to the host, also from a GPU."""
    monkeypatch.setitem(sys.modules, "cupy", Cupy())
    inner, triton = OrtExecutor(bundle, levels=3), DeviceTriton()
    for name, session in {
        "prefix": inner._prefix,
        **{f"tail_{t}": s for t, s in inner._tails.items()},
    }.items():

        def call(version, inputs, *, session=session):
            names = [o.name for o in session.get_outputs()]
            return dict(zip(names, session.run(names, inputs), strict=True))

        triton.models[f"lazyar_{name}"] = call
    bls = BlsExecutor(triton, levels=3, version=1, copy_path=True, device_memory=on_device)
    plan = WidthPlan((4, 8, 16), 6)
    found, expected = (search(tiny_snapshot(), executor=e, plan=plan) for e in (bls, inner))
    np.testing.assert_array_equal(found.sids, expected.sids)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("lower", [quantize_int8, convert_to_fp16])
def test_lower_precisions_keep_it(copying_graphs, tmp_path, lower):
    lower(copying_graphs, tmp_path)
    graph = onnx.load(str(tmp_path / "prefix.onnx")).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in graph.output}
    assert kinds["copy_logprob"] == onnx.TensorProto.FLOAT
    weights = {i.name: i.data_type for i in graph.initializer}
    [query] = [name for name in weights if name.endswith("copy_path.query_state")]
    assert weights[query] in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    slots, profile = requests()
    exact, low = (
        OrtExecutor(folder, levels=3).prefix(slots, profile)[1]["copy_logprob"]
        for folder in (copying_graphs, tmp_path)
    )
    np.testing.assert_allclose(np.exp(low), np.exp(exact), atol=0.03)
    assert low[0, 0] == 0.0
