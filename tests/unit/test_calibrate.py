"""Calibration: which requests it refuses, and that its ranges are what the graphs really saw."""

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from export.calibrate import CalibrationError, calibrate, check_requests
from export.gate_requests import GateRequests, held_out_requests
from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.tiny import VALUE_TABLE, random_requests, tiny_model, tiny_snapshot
from tests.tiny_log import write_run
from training.model.fp8 import MissingPackageError
from training.model.split import split
from training.preset import Preset
from training.rollout.executor import TorchExecutor
from training.run import RunData

PLAN = WidthPlan((4, 8, 16), 6)
BATCH = 4


@pytest.fixture(scope="module")
def snapshot():
    return tiny_snapshot()


@pytest.fixture(scope="module")
def modelopt():
    return pytest.importorskip("modelopt", reason="calibration needs nvidia-modelopt (make precision-setup)")


def requests_of(snapshot, rows, *, count=12):
    slots, profile = random_requests(count, seed=3)
    return GateRequests(slots[rows], profile[rows], snapshot, None)


def ranges_of(model, requests, **options):
    options = {"plan": PLAN, "value_table": VALUE_TABLE, "batch_size": BATCH} | options
    return calibrate(model, requests, **options)


def seen_by(model, requests):
    """Largest |x| that every linear layer of every graph sees in each batch: (graph, layer) -> [batches]."""
    graphs = {stem: copy.deepcopy(graph) for stem, graph in split(model).items()}
    found = {}
    handles = []
    for start in range(0, len(requests.slots), BATCH):
        for stem, graph in graphs.items():
            for name, module in graph.named_modules():
                if isinstance(module, nn.Linear):

                    def note(_, inputs, key=(stem, name), batch=start // BATCH):
                        before = found.setdefault(key, {}).get(batch, 0.0)
                        found[key][batch] = max(before, float(inputs[0].abs().max()))

                    handles.append(module.register_forward_pre_hook(note))
        rows = slice(start, start + BATCH)
        beam_search(
            TorchExecutor(nn.ModuleDict(graphs)),
            requests.snapshot.trie,
            requests.slots[rows],
            requests.profile[rows],
            plan=PLAN,
            num_results=np.ones(len(requests.slots[rows]), np.int64),
            value_table=VALUE_TABLE,
        )
        while handles:
            handles.pop().remove()
    return {key: [largest for _, largest in sorted(by_batch.items())] for key, by_batch in found.items()}


# Requests that are fewer than they look. Batches of 4.

REFUSED = {
    "none": ([], "calibration: expected at least one request, got none"),
    "one, repeated": ([5] * 6, "calibration: expected different requests, got 6 times the same one"),
    "a batch, repeated": (
        [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3],
        "calibration: expected batches of different requests, got batch 2 equal to batch 0",
    ),
    "a batch, in another order": (
        [0, 1, 2, 3, 3, 1, 0, 2],
        "calibration: expected batches of different requests, got batch 1 equal to batch 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_searched(snapshot, monkeypatch, case):
    rows, message = REFUSED[case]
    monkeypatch.setattr("export.calibrate.split", lambda _: pytest.fail("calibrated"))
    with pytest.raises(CalibrationError, match=f"^{message}$"):
        ranges_of(tiny_model(), requests_of(snapshot, np.array(rows, int)))


@pytest.mark.parametrize(
    "rows",
    [
        [5],  # one is not many, but it is what was asked for
        [0, 1, 2, 3, 0, 1, 2, 4],  # some come again
        [0, 0, 1, 2, 0, 1, 1, 2],  # the same three, but not as often
        [0, 1, 2, 3, 4, 5],
    ],
)
def test_accepted(rows):
    slots, profile = random_requests(12, seed=3)
    check_requests(slots[rows], profile[rows], batch_size=BATCH)


def test_requests_differ_by_profile_too():
    slots, profile = random_requests(2, seed=3)
    slots, profile = slots[[1, 1]], np.array([[0, 1], [1, 0]], np.int32)
    check_requests(slots, profile, batch_size=1)
    with pytest.raises(CalibrationError, match="2 times the same one"):
        check_requests(slots, profile[[0, 0]], batch_size=1)


# What is measured.


def test_ranges_are_the_largest_values_seen(modelopt, snapshot):
    model = tiny_model()
    requests = requests_of(snapshot, np.arange(12))
    wanted = seen_by(model, requests)
    got = ranges_of(model, requests)
    graphs = split(model)
    assert set(got) == {"prefix", "tail_2", "tail_3", "tail_4"}
    assert {(stem, r.name) for stem, found in got.items() for r in found} == {
        (stem, f"{name}.weight") for stem, name in wanted
    }
    for stem, found in got.items():
        modules = dict(graphs[stem].named_modules())
        for r in found:
            name = r.name.removesuffix(".weight")
            assert r.activation == max(wanted[stem, name]), (stem, name)
            weight = modules[name].weight.detach().numpy()
            np.testing.assert_array_equal(r.weight, weight)


def test_every_batch_counts(modelopt, snapshot):
    """Whichever batch has the largest values: the first, one between, the last."""
    model = tiny_model()
    everything = requests_of(snapshot, np.arange(12))
    alone = []  # largest input of one layer for each request
    with (
        torch.no_grad(),
        model.context_kv[0].key.register_forward_pre_hook(
            lambda _, inputs: alone.extend(inputs[0].abs().amax(dim=(1, 2)).tolist())
        ),
    ):
        model.encode(torch.from_numpy(everything.slots), torch.from_numpy(everything.profile))
    outlier = int(np.argmax(alone))
    others = np.delete(np.arange(12), outlier)
    assert max(alone[r] for r in others) < 0.99 * alone[outlier]
    for place in (0, 5, 11):
        requests = requests_of(snapshot, np.insert(others, place, outlier))
        found = {r.name: r.activation for r in ranges_of(model, requests)["prefix"]}
        assert found["model.context_kv.0.key.weight"] == pytest.approx(alone[outlier], rel=1e-6)


def test_graphs_have_ranges_of_their_own(modelopt, snapshot):
    """Tails share layers, norm and the last head: each has seen other beams."""
    got = ranges_of(tiny_model(), requests_of(snapshot, np.arange(12)))
    by_name = {stem: {r.name: r.activation for r in found} for stem, found in got.items()}
    for name in ("layers.0.out_self.weight", "layers.0.out_context.weight", "layers.0.ffn.0.weight"):
        assert len({by_name[stem][name] for stem in ("tail_2", "tail_3", "tail_4")}) == 3
    assert by_name["prefix"]["model.layers.2.out_self.weight"] not in {
        by_name[stem]["layers.0.out_self.weight"] for stem in ("tail_2", "tail_3", "tail_4")
    }


def test_the_model_is_not_changed(modelopt, snapshot):
    model = tiny_model()
    state = copy.deepcopy(model.state_dict())
    kinds = {name: type(module) for name, module in model.named_modules()}
    requests = requests_of(snapshot, np.arange(8))
    before = TorchExecutor(model).prefix(requests.slots, requests.profile)[0]
    ranges_of(model, requests)
    assert list(model.state_dict()) == list(state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert not any("quantizer" in name for name, _ in model.named_modules())
    after = TorchExecutor(model).prefix(requests.slots, requests.profile)[0]
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (0.0, r"prefix: model.layers.0.ffn.2: expected activations with .* above 0, got 0.0$"),
        (np.nan, "^calibration: .*nan"),
    ],
)
def test_a_layer_that_saw_nothing_usable(modelopt, snapshot, bias, message):
    model = tiny_model()
    with torch.no_grad():
        model.layers[0].ffn[0].weight.zero_()
        model.layers[0].ffn[0].bias.fill_(bias)
    with pytest.raises(CalibrationError, match=message):
        ranges_of(model, requests_of(snapshot, np.arange(4)))


def test_missing_modelopt_says_what_to_run(snapshot, monkeypatch):
    for name in ("modelopt", "modelopt.torch", "modelopt.torch.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingPackageError, match=r"needs nvidia-modelopt \(.*\); run `make precision-setup`"
    ):
        ranges_of(tiny_model(), requests_of(snapshot, np.arange(4)))


# Where the requests come from.


def test_another_tokenizer_is_refused(tmp_path):
    torch.set_num_threads(1)
    preset, run = write_run(tmp_path)
    spec = RunData.load(run).fit_spec(Preset.load(preset))
    validation, train = (
        held_out_requests(run, spec, preset=Preset.load(preset), count=8, seed=0, part=part)
        for part in ("validation", "train")
    )
    assert len(validation.slots) == len(train.slots) == 8
    check_requests(train.slots, train.profile, batch_size=BATCH)
    assert not {s.tobytes() for s in train.slots} & {s.tobytes() for s in validation.slots}
    with pytest.raises(
        ValueError,
        match=rf"run/tokenizer: expected tokenizer 1234 \(the model's\), got {spec.tokenizer_id}: "
        ".*train a new model",
    ):
        held_out_requests(
            run, replace(spec, tokenizer_id="1234"), preset=Preset.load(preset), count=8, seed=0, part="train"
        )
