"""Sizes and widths: what is compared with what, and what is not there."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from benchmarks.scaling import __main__ as command
from benchmarks.scaling.__main__ import SIZES, text
from benchmarks.scaling.measure import measure, widths_of
from benchmarks.scaling.plot import paper_gain
from benchmarks.simulation.answers import Trained, answers_of
from benchmarks.simulation.bids import PriceShape
from benchmarks.simulation.measures import measures, ordered
from benchmarks.simulation.scored import Scored
from benchmarks.simulation.settings import Arm, Settings
from benchmarks.simulation.train import PLAIN
from benchmarks.simulation.world import World
from serving.search.widths import WidthPlan
from tests.once import made_once
from tests.tiny_log import open_run, write_run
from tests.unit.test_simulation import PriceyRanker, settings_of
from training.loop.checkpoint import Checkpoint
from training.loop.retention import save_checkpoint
from training.model.gr4ad import Generator
from training.preset.preset import Preset

STEPS = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of two sizes and two seeds, and one that stopped early; nothing is trained."""

    def make(folder):
        preset_file, run = write_run(folder, users=24)
        _, spec, dataset = open_run((preset_file, run))
        wide = replace(spec, model=spec.model.model_copy(update={"width": 32}))
        for name, own, step in (("small", spec, STEPS), ("large", wide, STEPS), ("early", spec, STEPS - 1)):
            for seed in (0, 1):
                torch.manual_seed(seed)
                history = [{"step": 3, "validation_sid": 9.0}, {"step": step, "validation_sid": 4.0 + seed}]
                seen = dataset.seen_sids(own.level_sizes)
                checkpoint = Checkpoint(
                    model=own.build().eval(),
                    spec=own,
                    settings={},
                    seen_sids=seen,
                    step=step,
                    history=history,
                )
                at = run / "arms" / f"{name}-seed{seed}"
                save_checkpoint(at / "model", checkpoint, keep=1)
                for shared in ("data", "tokenizer"):
                    (at / shared).symlink_to(run / shared)

    return made_once(tmp_path_factory, "scaling", make)


@pytest.fixture(scope="module")
def world(folder, tmp_path_factory):
    settings = Settings.model_validate(settings_of(folder))
    return World.open(settings, tmp_path_factory.mktemp("out") / "cache")


def arms_of(folder, *names):
    return {name: Arm(name=name, run=f"{folder}/run/arms/{name}-seed{{seed}}") for name in names}


@pytest.mark.parametrize(("name", "parameters"), [("0.3M", 0.3e6), ("1M", 1e6), ("3M", 3e6), ("10M", 10e6)])
def test_sizes_are_as_large_as_they_are_called(name, parameters):
    preset = Preset.load("configs/demo.yaml", (*PLAIN, *SIZES[name][1]))
    with torch.device("meta"):
        model = Generator(
            preset.model,
            preset.features.spec(levels=3, profile_sizes=(8,) * 8),
            level_sizes=(*preset.tokenizer.codebook_sizes, preset.tokenizer.hash_size),
            value_buckets=preset.model.value_buckets,
        )
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.12)


def test_plans_widen_as_the_preset_does():
    demo = Preset.load("configs/demo.yaml").serving.widths
    assert widths_of(256) == demo
    for beams in (1, 2, 3, 32, 1024):
        plan = WidthPlan.parse(widths_of(beams), levels=3)
        assert (plan.sid[-1], plan.value) == (beams, min(beams, 64))
        assert plan.sid == tuple(max(1, beams // part) for part in (4, 2, 1))


def test_the_papers_gains_by_hand():
    assert paper_gain("size") == (pytest.approx(0.32 / 0.03), pytest.approx(100 * (104.43 / 102.13 - 1)))
    assert paper_gain("beams") == (8, pytest.approx(100 * (104.21 / 102.33 - 1)))


def test_points_are_what_the_simulation_measures(folder, world):
    arms, ranker = arms_of(folder, "small", "large"), PriceyRanker()
    report = measure(world, arms, beams=(8, 16), steps=STEPS, ranker=ranker)
    assert [(p["size"], p["beams"]) for p in report["points"]] == [
        *(("small", 8), ("small", 16)),
        *(("large", 8), ("large", 16)),
    ]
    expected = {}
    for size, arm in arms.items():
        for beams in (8, 16):
            by_seed = []
            for seed in (0, 1):
                searched = arm.model_copy(update={"widths": f"{beams // 4}-{beams // 2}-{beams}:{beams}"})
                answers = answers_of(world, searched, Trained.find(arm, seed=seed))
                truth, ranked = (
                    Scored.of(judge, world.dataset, world.requests, answers=[answers.ads])
                    for judge in (world.response, ranker)
                )
                order = ordered(answers, "value", ranker=None, rerank=8)
                by_seed.append(measures(world, order, truth=truth, ranker=ranked, shape=PriceShape.load()))
            for metric in by_seed[0]:
                expected[size, beams, metric] = np.mean([f[metric] for f in by_seed])
    assert {m for *_, m in expected} >= {"recall@5", "value@5", "response@5", "revenue ranked"}
    for point in report["points"]:
        for metric, cell in point["metrics"].items():
            mean = expected[point["size"], point["beams"], metric]
            assert cell["mean"] == pytest.approx(mean)
            for against, other in (
                ("size", ("small", point["beams"])),
                ("beams", (point["size"], report["start"])),
            ):
                theirs = expected[*other, metric]
                assert cell[against]["ratio"] == (pytest.approx(mean / theirs - 1) if theirs else None)
    assert (report["start"], report["at_beams"]) == (8, 16)  # those of the paper where they are searched
    assert report["sizes"]["large"]["loss"] == pytest.approx(4.5)  # of the last step, mean over seeds
    assert report["sizes"]["large"]["parameters"] > report["sizes"]["small"]["parameters"]


def test_a_size_that_is_not_there_to_its_end_is_named(folder, world):
    arms = arms_of(folder, "early", "small", "none")
    report = measure(world, arms, beams=(8,), steps=STEPS, ranker=None)
    assert list(report["sizes"]) == ["early", "small", "none"]
    assert f"expected step {STEPS}, got {STEPS - 1}" in report["sizes"]["early"]["missing"]
    assert "none-seed0" in report["sizes"]["none"]["missing"]
    assert {p["size"] for p in report["points"]} == {report["smallest"]} == {"small"}
    shown = text(report, metrics=["recall@5"])
    assert "expected step" in shown
    assert "none-seed0" in shown
    with pytest.raises(ValueError, match="expected a size that is trained, got none"):
        measure(world, arms_of(folder, "early", "none"), beams=(8,), steps=STEPS, ranker=None)


def test_the_command_trains_all_with_equal_steps_and_measures_what_is_there(folder, tmp_path, monkeypatch):
    rules, asked = tmp_path / "rules.yaml", []
    rules.write_text(yaml.safe_dump(settings_of(folder)))
    monkeypatch.setattr(command, "RULES", rules)
    sizes = {"1M": ("small", ("model.width=16",)), "3M": ("large", ()), "10M": ("none", ("model.width=64",))}
    monkeypatch.setattr(command, "SIZES", sizes)

    def train(arguments, arm, *, seed, tokenizer, settings):
        asked.append((arm, seed, settings))

    monkeypatch.setattr(command.generator, "train", train)
    words = ["--config", folder / "preset.yaml", "--run", folder / "run", "--out", tmp_path / "out"]
    words += ["--set", f"training.steps={STEPS}", "--sizes", "10M", "1M", "3M", "--beams", 16, 8]
    words += ["--requests", 12, "--seeds", 0, 1]
    monkeypatch.setattr(sys, "argv", ["scaling", *map(str, words)])
    command.main()
    assert asked == [(sizes[size][0], seed, (*PLAIN, *sizes[size][1])) for seed in (0, 1) for size in sizes]
    report = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert [p["beams"] for p in report["points"]] == [8, 16, 8, 16]
    assert report["sizes"]["10M"]["missing"]
    assert report["requests"] == 12
    assert (tmp_path / "out" / "scaling.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(command.generator, "train", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(
        "benchmarks.simulation.answers._search", lambda *a, **k: pytest.fail("searched again")
    )
    monkeypatch.setattr(sys, "argv", ["scaling", *map(str, words), "--no-train"])
    command.main()
