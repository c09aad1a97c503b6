"""The exported graphs compute what the model computes, at any shape, and stay what they were."""

import shutil

import numpy as np
import onnx
import pytest

from export.parity import ParityError, check_parity, parity_errors, require_parity
from serving.backend.resolve import resolve
from serving.engines.ort import OrtExecutor
from serving.index.snapshot import IndexSnapshot
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.tiny import LEVEL_SIZES, VALUE_TABLE, plain_model, random_requests, tiny_model, tiny_snapshot
from training.rollout.executor import TorchExecutor

NARROW = WidthPlan((4, 8, 16), 6)


def search(executor, *, count=3, plan=NARROW, num=4, snapshot=None):
    slots, profile = random_requests(count)
    return beam_search(
        executor,
        (snapshot or tiny_snapshot()).trie,
        slots,
        profile,
        plan=plan,
        num_results=np.full(count, num),
        value_table=VALUE_TABLE,
    )


def ort(pipeline):
    return OrtExecutor(pipeline.bundles / "1", levels=3)


def test_parity_holds_at_other_sizes_than_those_exported(pipeline):
    for batch, beams in ((5, 9), (1, 1), (2, 40)):
        errors = parity_errors(tiny_model(), pipeline.bundles / "1", batch=batch, beams=beams, seed=batch)
        assert errors.shape == (batch,)
        assert errors.max() < 1e-5


def test_graphs_of_another_model_are_refused(pipeline):
    with pytest.raises(
        ParityError,
        match=r"expected log-probabilities of ONNX Runtime within 0.0001 of PyTorch in the median",
    ):
        check_parity(tiny_model(seed=1), pipeline.bundles / "1")


@pytest.mark.parametrize("name", ["prefix", "tail_2", "tail_3", "tail_4"])
def test_one_changed_weight_in_any_graph_is_noticed(pipeline, tmp_path, name):
    bundle = shutil.copytree(pipeline.bundles / "1", tmp_path / "1")
    graph = onnx.load(str(bundle / f"{name}.onnx"))
    floats = [
        w for w in graph.graph.initializer if w.data_type == onnx.TensorProto.FLOAT and len(w.dims) == 2
    ]
    weight = max(floats, key=lambda w: int(np.prod(w.dims)))
    weight.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.1), weight.name)
    )
    onnx.save(graph, str(bundle / f"{name}.onnx"))
    errors = parity_errors(tiny_model(), bundle)
    assert np.median(errors) > 1e-3
    with pytest.raises(ParityError):
        check_parity(tiny_model(), bundle)


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ((1e-6, 1e-6, float("nan")), "got nan and nan"),
        ((1e-6, 2e-4, 2e-4), "got 0.0002 and 0.0002"),
        ((1e-6, 1e-6, 2e-2), "got 1e-06 and 0.02"),
    ],
)
def test_what_is_no_parity(errors, said):
    with pytest.raises(ParityError, match=said):
        require_parity(np.array(errors), what="these")


def test_a_rare_ill_conditioned_request_stops_no_export():
    """Of weights that learn online one request in many has 100 times the rounding of the others."""
    assert require_parity(np.array([1e-6, 5e-4, 3e-6]), what="these") == 5e-4


@pytest.mark.parametrize(("batch", "beams", "children"), [(1, 1, 1), (1, 13, 2), (4, 1, 6), (6, 3, 1)])
def test_tails_take_any_batch_beams_and_children(pipeline, batch, beams, children):
    random = np.random.default_rng(0)
    slots, profile = random_requests(batch)
    engines = [ort(pipeline), TorchExecutor(tiny_model())]
    carries = [e.prefix(slots, profile)[1] for e in engines]
    sizes, parents = [*LEVEL_SIZES, len(VALUE_TABLE)], []
    n_before = 1
    for level in (2, 3, 4):
        n = beams if level > 2 else min(beams, 4)
        if level > 2:
            parent = random.integers(0, n_before, (batch, n)).astype(np.int32)
            parents = [np.take_along_axis(p, parent, 1) for p in parents] + [parent]
        token = random.integers(0, sizes[level - 2], (batch, n)).astype(np.int32)
        allowed = random.integers(-1, sizes[level - 1], (batch, n, children)).astype(np.int32)
        outputs = []
        for i, engine in enumerate(engines):
            logprob, carries[i] = engine.tail(
                level, carries[i], parents=parents, token=token, allowed=allowed
            )
            outputs.append(np.where(allowed >= 0, logprob, 0))
        assert outputs[0].shape == (batch, n, children)
        np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)
        n_before = n


@pytest.mark.parametrize(
    "plan", [WidthPlan((4, 8, 16), 6), WidthPlan((1, 1, 1), 1), WidthPlan((6, 30, 60), 60)]
)
def test_onnx_and_torch_give_the_same_beams(pipeline, plan):
    a, b = search(ort(pipeline), plan=plan, count=5), search(TorchExecutor(tiny_model()), plan=plan, count=5)
    np.testing.assert_array_equal(a.sids, b.sids)
    np.testing.assert_array_equal(a.widths, b.widths)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
    np.testing.assert_allclose(a.expected_value, b.expected_value, atol=1e-4)


def test_catalogue_of_one_ad_through_onnx(pipeline):
    snapshot = IndexSnapshot.build(
        np.array([7]), np.array([[5, 0, 6]]), active=np.array([True]), level_sizes=LEVEL_SIZES
    )
    beams = search(ort(pipeline), snapshot=snapshot, num=3)
    assert (beams.sids[:, 0] == [5, 0, 6]).all()
    assert np.isfinite(beams.expected_value[:, 0]).all()


@pytest.mark.slow
def test_variant_without_sharing_and_without_lazy_stage(plain_graphs):
    files = sorted(plain_graphs.iterdir())
    assert [f.name for f in files] == ["prefix.onnx", "tail_2.onnx", "tail_3.onnx", "tail_4.onnx"]
    assert parity_errors(plain_model(), plain_graphs).max() < 1e-5
    for file in files:  # batch, beams and children are symbols, nothing else is
        graph = onnx.load(str(file)).graph
        symbols = {d.dim_param for i in graph.input for d in i.type.tensor_type.shape.dim if d.dim_param}
        level = 1 if file.stem == "prefix" else int(file.stem[-1])
        assert len(symbols) == (1 if level == 1 else 3 + level - 2)  # ... and the beams of each earlier level


def test_frozen_result(pipeline):
    """Seeded model, catalogue and requests to SIDs, scores, values and ads; drift of any part shows here."""
    beams = search(ort(pipeline))
    assert beams.widths.tolist() == [4, 8, 15, 6]
    assert beams.sids[:, :3].tolist() == [
        [[0, 3, 6], [2, 0, 5], [4, 3, 3]],
        [[3, 2, 4], [4, 4, 6], [3, 4, 4]],
        [[4, 4, 6], [3, 4, 4], [3, 2, 4]],
    ]
    np.testing.assert_allclose(
        beams.scores[:, :4],
        [
            [-3.25238, -3.64206, -3.96649, -4.21225],
            [-3.23467, -3.27309, -3.38914, -3.86039],
            [-3.16839, -3.63501, -3.68773, -3.70319],
        ],
        atol=1e-3,
    )
    np.testing.assert_allclose(
        beams.expected_value[:, :3],
        [[5.17016, 3.23365, 1.65662], [2.28978, 5.35366, 3.29854], [5.57138, 2.38624, 1.67877]],
        atol=1e-3,
    )
    ads = [
        resolve(
            tiny_snapshot(),
            beams.sids[r],
            scores=beams.scores[r],
            expected_value=beams.expected_value[r],
            num_ads=5,
            exclude=np.zeros(0, np.int64),
        ).ad_ids.tolist()
        for r in range(3)
    ]
    assert ads == [[9966, 6295, 6854, 748, 53], [4024, 8609, 53, 3794, 748], [8609, 53, 4024, 748, 6295]]
