"""FLOP on paper against torch's own counter on the graphs that are exported; the rest against its formula."""

import json
import sys

import numpy as np
import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.roofline import Case, batch_bytes, estimate, main, request_flops
from serving.search.widths import WidthPlan
from tests.tiny import LEVEL_SIZES, SPEC, VALUE_TABLE, random_requests, tiny_model
from training.rollout.executor import TorchExecutor

PLAN = WidthPlan((5, 9, 11), 4)


def counted(model):
    """FLOP of each graph by torch's counter, which does not see products written as multiply and sum."""
    executor, found = TorchExecutor(model.requires_grad_(False)), {}
    slots, profile = random_requests(1)

    def run(name, call):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            _, carry = call()
        found[name] = counter.get_total_flops()
        return carry

    carry = run("prefix", lambda: executor.prefix(slots, profile))
    beams = [PLAN.sid[0], PLAN.sid[1], PLAN.value]
    for level, n in enumerate(beams, start=2):
        parents = [np.zeros((1, n), np.int32)] * (level - 2)
        token, allowed = np.zeros((1, n), np.int32), np.zeros((1, n, 2), np.int32)
        carry = run(
            f"tail_{level}",
            lambda level=level, parents=parents, token=token, allowed=allowed, carry=carry: executor.tail(
                level, carry, parents=parents, token=token, allowed=allowed
            ),
        )
    return found


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("shared_layers", [0, 2])
def test_flops_equal_those_that_torch_counts(share, shared_layers):
    model = tiny_model(shared_layers=shared_layers, layers=4, share_context_kv=share)
    config, levels = model.config, len(LEVEL_SIZES) + 1
    flops = request_flops(case(model))
    for name, expected in counted(model).items():
        parts = {part.split(".")[1]: count for part, count in flops.items() if part.startswith(f"{name}.")}
        attention = parts.pop("self_attention")
        if name == "prefix":  # of self-attention torch sees the shared layers
            seen = 4 * shared_layers * levels**2 * config.width
            assert attention == seen + 4 * (4 - shared_layers) * config.width
            attention = seen
        else:
            rows = {"tail_2": 5, "tail_3": 9, "tail_4": 4}[name]
            assert attention == 4 * (4 - shared_layers) * rows * int(name[-1]) * config.width
            attention = 0
        assert sum(parts.values()) + attention == expected, name


def test_weights_are_those_that_each_graph_reads():
    """Matrices of the model, a byte each, once a graph; look-up tables are not read whole."""
    model = tiny_model(layers=4)
    moved = batch_bytes(case(model), batch=7, weight_bytes=1)
    tail = sum(p.numel() for layer in model.tail_layers for p in layer.parameters() if p.ndim == 2)
    shared = sum(p.numel() for layer in model.layers[:2] for p in layer.parameters() if p.ndim == 2)
    projections = sum(p.numel() for p in model.context_kv.parameters() if p.ndim == 2)
    width = model.config.width
    assert moved["prefix.weights"] == shared + tail + projections + width**2 + LEVEL_SIZES[0] * width
    assert moved["tail_3.weights"] == tail + width**2 + LEVEL_SIZES[2] * width
    assert moved["tail_4.weights"] == tail + width**2 + len(VALUE_TABLE) * width


def test_keys_and_values_by_hand():
    """Tail 3, 2 layers: context read; level 1 read; level 2 read, copied, read; level 3 written, read."""
    model = tiny_model(layers=4)
    width, n = model.config.width, PLAN.sid[1]
    context = 2 * case(model).slots * width
    levels = 2 * width + 3 * n * 2 * width + 2 * n * 2 * width
    moved = batch_bytes(case(model), batch=3, weight_bytes=2)
    assert moved["tail_3.kv"] == 3 * 2 * 2 * (context + levels)


def case(model):
    return Case(model.config, SPEC, LEVEL_SIZES, value_buckets=len(VALUE_TABLE), plan=PLAN)


def test_estimate_follows_from_flops_bytes_and_share():
    options = {"batch": 4, "limit_s": 1.0}
    tiny = case(tiny_model(layers=4))
    half, slow = (estimate(tiny, fp8=False, share=share, **options) for share in (0.5, 0.25))
    assert half["bound_ms"] >= max(half["compute_ms"], half["memory_ms"])
    assert half["bound_ms"] <= half["compute_ms"] + half["memory_ms"]
    assert half["qps"] == pytest.approx(4 / (2 * half["bound_ms"] / 1e3))
    assert half["qps"] == pytest.approx(2 * slow["qps"])
    # Memory bounds so small a model: FP8 takes bytes from the weights alone.
    assert half["memory_ms"] > half["compute_ms"]
    fp8 = estimate(tiny, fp8=True, share=0.5, **options)
    saved = sum(v for k, v in batch_bytes(tiny, batch=4, weight_bytes=1).items() if k.endswith("weights"))
    assert half["gbytes"] - fp8["gbytes"] == pytest.approx(saved / 1e9)
    flops = request_flops(tiny)
    attention = sum(count for part, count in flops.items() if part.endswith("attention"))
    expected = 4 * (attention / 119.5e12 + (sum(flops.values()) - attention) / 239e12)
    assert fp8["compute_ms"] == pytest.approx(expected * 1e3)
    tight = estimate(tiny, fp8=False, share=0.5, batch=4, limit_s=1.9 * half["batch_ms"] / 1e3)
    assert tight["qps"] is None


def test_command_writes_all_cases_and_says_that_it_is_paper(tmp_path, monkeypatch, capsys):
    out = tmp_path / "roofline.json"
    arguments = ["--config", "configs/bench.yaml", "--widths", "8-8-8:4", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["roofline", *arguments])
    main()
    assert "PAPER, NOT MEASUREMENT" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["label"] == "paper, not measurement"
    assert [(c["shared_layers"], len(c["estimates"])) for c in report["cases"]] == [(6, 8), (0, 8)]
