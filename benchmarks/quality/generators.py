"""The generator of the preset, and K = 0 and MTP in LazyAR's place: trained by the recipe, asked by search.

A seed is that of tokenizer and training. The arms of one seed share its tokenizer and so speak the same SIDs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.quality.protocol import DEPTH, NOTHING, Answers, Asked
from benchmarks.tokenizer import generator
from serving.search.widths import WidthPlan
from training.evaluation.competing import Competing
from training.evaluation.item_level import ItemLevel
from training.evaluation.ranking import FoundAds, rank_by_model
from training.evaluation.requests import Requests
from training.loop.checkpoint import load_checkpoint
from training.loop.retention import find_checkpoint
from training.preset.preset import Preset
from training.rollout.executor import TorchExecutor
from training.run import RunData

LAZYAR, K0, MTP = "sid", "k0", "mtp"
ITEM_BEAMS, ITEM = "item_beams", "item"  # rows of the preset's own arm where it has an item level
ARMS: dict[str, tuple[str, ...]] = {  # the preset's own first: its tokenizer is that of the others
    LAZYAR: (),
    K0: ("model.shared_layers=0", "training.lambda_mtp=0", "model.item=null"),
    MTP: ("model.decoder=mtp", "training.lambda_mtp=0", "model.item=null"),
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
    """The last. Rankings go on rising where the losses of validation no longer fall (docs/decisions.md)."""
    return find_checkpoint(run / "model")


class ArmAnswers:
    """What a trained arm answers. Whatever takes time is done when it is asked for, and once."""

    def __init__(self, run: Path, preset: Preset, *, asked: Asked) -> None:
        """Open its checkpoint.

        Args:
            run: of an arm.
            preset: section `evaluation` says the widths, and how many requests a search takes.
            asked: users.
        """
        self._checkpoint = load_checkpoint(checkpoint_of(run))
        self._model, self._spec = self._checkpoint.model.eval(), self._checkpoint.spec
        data = RunData.load(run)
        data.check_tokenizer(self._spec)
        dataset = data.dataset(self._spec)
        self._config, self._users = preset.evaluation, asked.users
        self._order = np.argsort(asked.groups.now[asked.rows], kind="stable")  # searched oldest first
        self._requests = Requests(asked.groups, asked.rows[self._order], targets=[], values=[])
        self._competing = Competing.of(
            dataset, data.prepared.tables.ads, exclude_seen=True, serving=preset.serving
        )
        self._items = None if self._model.item is None else ItemLevel(self._model, dataset, self._requests)

    @property
    def parameters(self) -> int:
        """Of the model, all of them."""
        return sum(p.numel() for p in self._model.parameters())

    @property
    def rows(self) -> dict[str, Callable[[], Answers]]:
        """What is answered, by name: "" by the SIDs alone, others by the item level of a model with one."""
        by_sid = {"": lambda: self._answers(self._found.ranked)}
        if self._items is None:
            return by_sid
        return by_sid | {
            ITEM_BEAMS: lambda: self._answers(self._found.by_item),
            ITEM: lambda: self._answers(self._all_items()),
        }

    def _all_items(self) -> list[np.ndarray]:
        assert self._items is not None
        return self._items.order_all(self._competing, limit=DEPTH)

    @cached_property
    def _found(self) -> FoundAds:
        config, levels = self._config, self._spec.level_sizes
        return rank_by_model(
            TorchExecutor(self._model),
            self._requests,
            competing=self._competing,
            level_sizes=levels,
            plan=WidthPlan.parse(config.widths, levels=len(levels)),
            limit=DEPTH,
            batch_size=config.batch_size,
            value_table=self._spec.value_buckets.means,
            normalise=config.levels_normalised(len(levels)),
            item_level=self._items,
            item_pool=config.item_pool,
        )

    def _answers(self, ranked: list[np.ndarray]) -> Answers:
        items = np.full((len(self._order), DEPTH), NOTHING)
        for row, ads in zip(self._order, ranked, strict=True):
            items[row, : len(ads)] = ads
        return Answers(self._users, items)
