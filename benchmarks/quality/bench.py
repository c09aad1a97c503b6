"""One data set: its tables, users who are asked, and cells of the answers of every model."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import polars as pl

from benchmarks.quality import control, generators, simple
from benchmarks.quality.cells import Cells, counted_minutes, minutes
from benchmarks.quality.files import DataFiles
from benchmarks.quality.protocol import Answers, Asked, Sequences
from benchmarks.quality.report import SASREC
from benchmarks.quality.sasrec import SasRecConfig
from benchmarks.steps import run_step
from training.loop.checkpoint import CONTENT, MODEL
from training.preset.preset import Preset

QUICK = (
    "training.steps=400",
    "training.validate_every=200",
    "training.validation_requests=512",
)
QUICK_SASREC = {"epochs": 2, "width": 64, "negatives": 1024}
WITHOUT_TEXTS = ("tokenizer.min_df=1",)  # the number of an item, its only word, is no other one's
STOPPING_USERS = 4000  # whose validation items say when SASRec stops


class Benchmark:
    """One data set: its tables, users who are asked, and cells of the answers."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Prepare the data.

        Raises:
            ValueError: files are missing or not of the form they should have.
            OSError: one cannot be read.
        """
        self.arguments = arguments
        name = f"{arguments.dataset}-quick" if arguments.quick else arguments.dataset
        arguments.run = arguments.out / name
        self.files = DataFiles.find(arguments.data_dir, arguments.dataset, given=arguments)
        tables, data = arguments.run / "tables", arguments.run / "data"
        self.files.write(tables)
        items = pl.scan_parquet(tables / "ads.parquet").select(pl.len()).collect().item()
        arguments.overrides = [
            f"data.path={tables}",
            f"tokenizer.codebook_sizes=[{first_codes(items)}]",
            *(() if self.files.titles or self.files.attributes else WITHOUT_TEXTS),
            *(QUICK if arguments.quick else ()),
            *arguments.overrides,
        ]
        self.preset = Preset.load(arguments.config, arguments.overrides)
        common = ["--config", arguments.config, *_sets(arguments.overrides)]
        run_step("training.data.prepare", *common, "--out", data)
        self.sequences = Sequences.load(data)
        self.validation, self.asked = (
            Asked.of(self.sequences, self.preset, part=part, count=users)
            for part, users in (("validation", STOPPING_USERS), (arguments.part, arguments.users))
        )
        self.cells = Cells(
            arguments.run / ("answers" if arguments.part == "test" else f"answers-{arguments.part}"),
            {f"data/{name}": data / name for name in ("ads.parquet", "events.parquet", "split.json")},
            {"part": arguments.part, "users": len(self.asked.users)},
        )

    def generator(self, arm: str, seed: int) -> None:
        """Train an arm, or what is left of it, and let it answer."""
        spent = self.arguments.run / "arms" / f"{arm}-seed{seed}" / "minutes.json"
        spent.parent.mkdir(parents=True, exist_ok=True)
        with counted_minutes(spent):
            run = generators.train(self.arguments, arm, seed=seed)
        checkpoint = generators.checkpoint_of(run)

        answers = generators.ArmAnswers(run, self.preset, asked=self.asked)
        noted = {"parameters": answers.parameters, "cpu_minutes": minutes(spent)}
        of_search = {
            key: getattr(self.preset.evaluation, key) for key in ("widths", "normalise", "item_pool")
        }
        for name, make in answers.rows.items():
            if name and arm != generators.LAZYAR:
                continue

            def answer(make: Callable[[], Answers] = make) -> tuple[Answers, dict[str, Any]]:
                return make(), noted

            self.cells.make(
                name or arm,
                seed,
                files={"weights": checkpoint / MODEL, "checkpoint": checkpoint / CONTENT},
                values=of_search,
                answer=answer,
            )

    def sasrec(self, seed: int) -> None:
        """Train the control and let it answer."""
        quick = QUICK_SASREC if self.arguments.quick else {}
        config = SasRecConfig(**quick, precision=self.preset.training.precision)
        items = len(self.sequences.item_ids)

        def answer() -> tuple[Answers, dict[str, Any]]:
            began = time.process_time()
            model, history = control.train(
                self.sequences.training(), items=items, config=config, validation=self.validation, seed=seed
            )
            spent = (time.process_time() - began) / 60
            ranked = control.rank(model, self.asked, config=config)
            noted = {
                "parameters": sum(p.numel() for p in model.parameters()),
                "cpu_minutes": spent,
                "best_epoch": control.best_epoch(history),
                "history": history,
            }
            return Answers(self.asked.users, self.sequences.ids(ranked)), noted

        self.cells.make(SASREC, seed, files={}, values=asdict(config), answer=answer)

    def simple(self, seed: int) -> None:
        """What needs no model; the seed only says where it is kept."""
        for name, answer in simple.ANSWERS.items():

            def answered(answer: simple.Answer = answer) -> tuple[Answers, dict[str, Any]]:
                ranked = answer(self.sequences, self.asked)
                return Answers(self.asked.users, self.sequences.ids(ranked)), {}

            self.cells.make(name, seed, files={}, values={}, answer=answered)


def first_codes(items: int) -> int:
    """Codes of the first level: a power of two, about three items a code, at most 8,192."""
    return 2 ** min(max(round(math.log2(items / 3)), 3), 13)


def _sets(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]
