"""A small trained run with a feedback store of requests that it answered, for tests of online learning."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feedback.events.event import FeedbackEvent
from feedback.join.joiner import Joiner
from feedback.join.rules import JoinConfig
from indexer.store.incoming import Incoming
from serving.index.snapshot import IndexSnapshot
from serving.served_log.record import ServedRecord
from tests.served import served
from tests.tiny_log import DAY, open_run, write_run
from training.data.samples import RequestDataset
from training.loop.device import Device
from training.online.learner import Learner
from training.preset.preset import Preset
from training.recipes.online import prepare_online
from training.recipes.pretrain import prepare_training

START = 49 * DAY  # behind the tiny log
SETTINGS = {
    "batch_size": 8,
    "learning_rate": 1e-3,
    "warmup_steps": 2,
    "wait_seconds": 0,
    "checkpoint_seconds": 0,
    "probe_requests": 12,
}


class OnlineRun:
    """A run, and what is served by it.

    Attributes:
        preset: path of the preset.
        run: run folder with a trained model.
        store: folder of the feedback store.
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        """Train, with these settings besides; there is no store yet."""
        torch.set_num_threads(1)
        self.settings = settings
        self.preset, self.run = write_run(folder)
        preset = Preset.load(self.preset, ["training.steps=40", "training.validate_every=40", *settings])
        prepare_training(preset, self.run, folder=self.run / "model", device=Device()).run()
        *_, self.dataset = open_run((self.preset, self.run), *settings)
        self.store = self.run / "feedback"
        self.now = float(START)

    def forget(self) -> None:
        """No feedback, nothing learnt, no lists."""
        for folder in (self.store, self.run / "online", self.run / "lists"):
            shutil.rmtree(folder, ignore_errors=True)
        self.now = float(START)

    def serve(self, count: int, *, seed: int = 0, keep_samples: int = 1_000_000, **changes: Any) -> None:
        """Add so many requests, each with a purchase or two, and close their windows.

        Args:
            count: requests.
            seed: of users, ads and values; it names the requests, too.
            keep_samples: of the store.
            changes: of every record.
        """
        draw = random.Random(seed)
        items: list[ServedRecord | FeedbackEvent] = []
        for n in range(count):
            at = int(self.now) + n
            record = self.record(f"q{seed}.{n}", draw=draw, at=at, **changes)
            items.append(record)
            for ad in record.ad_ids[:4]:
                items.append(self.event(record, ad, "impression"))
            for ad in draw.sample(record.ad_ids[:4], draw.randrange(1, 3)):
                items.append(self.event(record, ad, "conversion", value=float(draw.randrange(1, 30))))
        self.feed(items, later=count + 700, keep_samples=keep_samples)

    def record(self, name: str, *, draw: random.Random, at: int, **changes: Any) -> ServedRecord:
        """One answer with five ads of the catalogue to a user without a history."""
        ads, spec = draw.sample(range(60), 5), self.dataset.spec
        values = {
            "user_id": draw.randrange(12),
            "timestamp": at,
            "written": float(at),
            "slot_ads": [draw.randrange(60) for _ in range(spec.rows)],
            "slots": [[3, 1, 0]] * spec.rows,
            "profile": [draw.randrange(size) for size in spec.column_sizes],
            "ad_ids": ads,
            "sids": self.sids_of(np.array(ads))[0].tolist(),
            "scores": [-3.0 - i for i in range(5)],
            "expected_value": [1.0] * 5,
            "num_ads": 5,
        }
        return served(name, **values | changes)

    def event(
        self, record: ServedRecord, ad: int, behavior: str, *, value: float | None = None, delay: int = 1
    ) -> FeedbackEvent:
        """What came of an ad of a request."""
        return FeedbackEvent(
            request_id=record.request_id,
            ad_id=ad,
            behavior=behavior,
            timestamp=record.timestamp + delay,
            value=value,
        )

    def feed(
        self, items: Sequence[ServedRecord | FeedbackEvent], *, later: float, keep_samples: int = 1_000_000
    ) -> None:
        """Join records and feedback; so many seconds later windows that are over are closed."""
        times = JoinConfig(window_s=600, correct_s=2 * DAY, keep_samples=keep_samples)
        joiner = Joiner(self.store, times, now=lambda: self.now, map_size=1 << 28)
        joiner.apply(
            [Incoming(i, i.encode() if isinstance(i, ServedRecord) else b"{}", "x") for i in items],
            offsets={},
        )
        self.now += later
        while joiner.close_due():
            pass
        joiner.close()

    def learner(
        self, *, say: Any = print, after: int | None = None, fresh: bool = False, **online: Any
    ) -> Learner:
        """The recipe's, with SIDs of the catalogue instead of an index."""
        settings = [f"online.{key}={value}" for key, value in (SETTINGS | online).items()]
        return prepare_online(
            Preset.load(self.preset, [*self.settings, *settings]),
            self.run,
            folder=self.run / "online",
            store=self.store,
            sids=lambda _: self,
            device=Device(),
            after=after,
            fresh=fresh,
            say=say,
        )

    def refresh(self) -> None:
        """The catalogue does not change."""

    def sids_of(self, ads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As an index has them."""
        return catalogue(self.dataset).sids_of(ads)


def catalogue(dataset: RequestDataset) -> IndexSnapshot:
    """All ads of a data set as an index."""
    sizes = tuple(int(size) for size in dataset.ad_sids.max(axis=0) + 1)
    active = np.ones(len(dataset.ad_ids), bool)
    return IndexSnapshot.build(dataset.ad_ids, dataset.ad_sids, active=active, level_sizes=sizes)


def learnt(learner: Learner, *, steps: int = 10_000) -> Learner:
    """Let it learn until nothing is left, or for so many steps more."""
    last, intake = learner.step + steps, learner._intake

    def stop() -> bool:
        return learner.step >= last or (intake.behind == 0 and intake._samples is not None)

    learner.run(stop)
    return learner


def said(lines: Sequence[str], text: str) -> list[str]:
    """Lines that have a text in them."""
    return [line for line in lines if text in line]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, no_curves):
    """One for all tests of a file."""
    return OnlineRun(tmp_path_factory.mktemp("online"))


@pytest.fixture
def run(trained):
    """Trained, with no feedback and nothing learnt yet."""
    trained.forget()
    return trained
