"""What `make ablate-lazyar` compares: equal models, and ratios of the same requests."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ablate_lazyar import OTHERS, Ablation, compared
from training.preset.preset import Preset


def test_variants_differ_in_the_decoder_alone(tmp_path: Path) -> None:
    arguments = argparse.Namespace(config="configs/demo.yaml", run=tmp_path, overrides=(), quick=False)
    ablation = Ablation(arguments)
    presets = {
        name: Preset.load("configs/demo.yaml", [*ablation._settings, *settings])
        for name, settings in ablation.variants.items()
    }
    assert {n: p.model.shared_layers for n, p in presets.items()} == {"lazyar": 3, "k0": 0, "mtp": 4}
    assert {n: p.model.decoder for n, p in presets.items()} == {
        "lazyar": "lazyar",
        "k0": "lazyar",
        "mtp": "mtp",
    }
    assert not any(p.model.copy_path or p.features.habits for p in presets.values())
    assert {n: p.training.lambda_mtp for n, p in presets.items()} == {"lazyar": 0.1, "k0": 0.0, "mtp": 0.0}
    for name in OTHERS:
        same = presets[name].model_copy(
            update={
                "model": presets[name].model.model_copy(update={"shared_layers": 3, "decoder": "lazyar"}),
                "training": presets[name].training.model_copy(update={"lambda_mtp": 0.1}),
            }
        )
        assert same == presets["lazyar"]
    assert len({str(ablation.folder(name, seed)) for name in presets for seed in range(3)}) == 9


def test_ratios_are_of_means_over_seeds_with_an_interval_of_paired_requests() -> None:
    random = np.random.default_rng(0)
    theirs = [{10: random.random(2000)} for _ in range(3)]
    mine = [{10: 1.1 * seed[10]} for seed in theirs]
    found = compared({"lazyar": mine, "k0": theirs}, "k0")["10"]
    assert found["ratio"] == pytest.approx(1.1)
    assert found["ratio_95"] == pytest.approx([1.1, 1.1])  # the same requests are drawn for both
    assert found["by_seed"] == pytest.approx([1.1] * 3)
    shuffled = compared({"lazyar": [{10: seed[10][::-1]} for seed in mine], "k0": theirs}, "k0")["10"]
    low, high = shuffled["ratio_95"]
    assert high - low > 0.01  # not so where they are not paired
