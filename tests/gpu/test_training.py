"""Training and the beam search in PyTorch on a GPU, against the same on the CPU."""

import os

import numpy as np
import pytest
import torch

from serving.search.beam_search import beam_search
from serving.search.widths import WidthPlan
from tests.tiny import VALUE_TABLE, random_requests, tiny_model, tiny_snapshot
from tests.tiny_log import write_run
from training.loop.device import Device
from training.loop.retention import open_checkpoint
from training.preset import Preset
from training.recipes.pretrain import prepare_training
from training.rollout.executor import TorchExecutor


@pytest.fixture(scope="module", autouse=True)
def _gpu():
    if not torch.cuda.is_available():
        reason = f"torch {torch.__version__} finds no GPU"
        if os.environ.get("GR4AD_REQUIRE_GPU"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("log"))


def trained(run, folder, *overrides):
    preset = Preset.load(run[0], overrides)
    with Device.join(preset.training.device, preset.training.precision) as device:
        trainer = prepare_training(preset, run[1], folder=folder, device=device)
        trainer.run()
    return trainer


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.005), ("bf16", 0.05)])
def test_a_run_is_that_of_the_cpu(run, tmp_path, precision, tolerance):
    """Sums are added in another order, so losses agree, weights only roughly."""
    cpu = trained(run, tmp_path / "cpu", "training.device=cpu")
    gpu = trained(run, tmp_path / "gpu", f"training.precision={precision}")
    assert {p.device.type for p in gpu.model.parameters()} == {"cuda"}
    assert {p.dtype for p in gpu.model.parameters()} == {torch.float32}
    for a, b in zip(cpu.history, gpu.history, strict=True):
        for name in a.keys() - {"seconds", "step"}:
            assert a[name] == pytest.approx(b[name], rel=tolerance), name


def test_a_checkpoint_of_the_cpu_goes_on_on_the_gpu_and_back(run, tmp_path):
    for step, device in ((20, "cpu"), (30, "cuda"), (40, "cpu")):
        trained(run, tmp_path, f"training.device={device}", f"training.steps={step}")
    found = open_checkpoint(tmp_path)
    assert [r["step"] for r in found.history] == [20, 30, 40]
    assert found.history[-1]["train_total"] < found.history[0]["train_total"]


def test_a_run_that_diverges_ends(run, tmp_path):
    with pytest.raises(ArithmeticError, match="expected a finite loss and gradient"):
        trained(run, tmp_path, "training.learning_rate=1e20", "training.warmup_steps=0")
    assert not (tmp_path / "checkpoints").exists()


def test_the_beams_of_a_rollout_are_those_of_the_cpu():
    slots, profile = random_requests(5)
    found = [
        beam_search(
            TorchExecutor(tiny_model().to(device)),
            tiny_snapshot().trie,
            slots,
            profile,
            plan=WidthPlan((4, 8, 16), 6),
            num_results=np.full(5, 16),
            value_table=VALUE_TABLE,
        )
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_array_equal(found[0].sids, found[1].sids)
    np.testing.assert_allclose(found[0].scores, found[1].scores, atol=1e-4)
