"""The generator of the preset, and K = 0 and MTP in LazyAR's place: trained by the recipe, asked by search.

A seed is that of tokenizer and training. The arms of one seed share its tokenizer and so speak the same SIDs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from benchmarks.quality.protocol import DEPTH, NOTHING, Answers, Asked
from benchmarks.tokenizer import generator
from serving.search.widths import WidthPlan
from training.evaluation.competing import Competing
from training.evaluation.ranking import rank_by_model
from training.evaluation.requests import Requests
from training.loop.checkpoint import load_checkpoint
from training.loop.retention import find_checkpoint
from training.preset.preset import Preset
from training.rollout.executor import TorchExecutor
from training.run import RunData

LAZYAR, K0, MTP = "sid", "k0", "mtp"
ARMS: dict[str, tuple[str, ...]] = {  # the preset's own first: its tokenizer is that of the others
    LAZYAR: (),
    K0: ("model.shared_layers=0", "training.lambda_mtp=0"),
    MTP: ("model.decoder=mtp", "training.lambda_mtp=0"),
}


def train(arguments: argparse.Namespace, arm: str, *, seed: int) -> Path:
    """Train an arm, or what is left of it; returns its run.

    Args:
        arguments: of the command line: run, config, overrides, threads.
        arm: one of `ARMS`.
        seed: of tokenizer and training.
    """
    run = arguments.run / "arms" / f"{arm}-seed{seed}"
    if arm != LAZYAR and not (run / "tokenizer").exists():
        shared = arguments.run / "arms" / f"{LAZYAR}-seed{seed}" / "tokenizer"
        run.mkdir(parents=True, exist_ok=True)
        (run / "tokenizer").symlink_to(os.path.relpath(shared, run))
    return generator.train(arguments, arm, seed=seed, tokenizer=(), settings=ARMS[arm])


def checkpoint_of(run: Path) -> Path:
    """The best by validation loss."""
    return find_checkpoint(run / "model", "best")


def answers_of(run: Path, preset: Preset, *, asked: Asked) -> tuple[Answers, int]:
    """Items of the beams, the most probable SIDs first; and the model's parameters.

    Args:
        run: of an arm.
        preset: section `evaluation` says the widths, and how many requests a search takes.
        asked: users.
    """
    checkpoint = load_checkpoint(checkpoint_of(run))
    data, spec, config = RunData.load(run), checkpoint.spec, preset.evaluation
    data.check_tokenizer(spec)
    order = np.argsort(asked.groups.now[asked.rows], kind="stable")  # searched oldest first
    dataset = data.dataset(spec)
    found = rank_by_model(
        TorchExecutor(checkpoint.model.eval()),
        Requests(asked.groups, asked.rows[order], targets=[], values=[]),
        competing=Competing.of(dataset, data.prepared.tables.ads, exclude_seen=True),
        level_sizes=spec.level_sizes,
        plan=WidthPlan.parse(config.widths, levels=len(spec.level_sizes)),
        limit=DEPTH,
        batch_size=config.batch_size,
        value_table=spec.value_buckets.means,
        normalise=config.levels_normalised(len(spec.level_sizes)),
    )
    items = np.full((len(order), DEPTH), NOTHING)
    for row, ads in zip(order, found.ranked, strict=True):
        items[row, : len(ads)] = ads
    return Answers(asked.users, items), sum(p.numel() for p in checkpoint.model.parameters())
