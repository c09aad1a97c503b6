"""Trainer, publisher, roll-out and join, killed at random moments while requests are served and reported on.

Requests and feedback are those of `benchmarks.feedback_kills`, in the shape of a trained run. At the end
every purchase that was reported must be in the weights once, by the record that the last checkpoint keeps of
the targets it has learnt; each checkpoint begins where the one that it names ends; and after
every kill `CURRENT` names a version that is there whole.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.feedback_kills import Feeder, start_again
from benchmarks.loop.stack import PUBLISHER, ROLL_OUT, TRAINER, Learning, Ledger, copied
from export.render import render
from feedback.store.samples import Fact, JoinedSample, Samples
from launcher.indexer_process import FeedbackProcess
from serving.index.reader import IndexReader
from serving.model.bundle import BundleError, read_manifest, versions
from serving.model.current import current_version
from serving.model.features import FeatureSpec
from serving.served_log.record import ServedRecord
from training.loop.checkpoint import CheckpointError, load_checkpoint
from training.loop.retention import FOLDER, find_checkpoint, has_checkpoint
from training.online.state import digest_of
from training.preset.preset import Preset

JOIN = "join"
ALIVE_S = {TRAINER: 90.0, PUBLISHER: 60.0, ROLL_OUT: 60.0, JOIN: 20.0}
"""Longest time from a start to the next kill: enough to start and to do some work."""
_SETTLE_S = 900.0
REWARD = ("requests=300", "judged_requests=100", "trees=20")  # a small one: what it says does not matter here
SETTINGS = (
    *("serving.graph_calls=in_process", "serving.load_control=fixed", "serving.cache='off'"),
    *("online.learning_rate=1e-6", "online.checkpoint_seconds=1"),  # random purchases teach no sense
    *("online.probe_requests=8", "publish.gate_requests=8"),
)


class Served(Feeder):
    """Serves ads of an index to users with random histories."""

    def __init__(self, run: Path, service: FeedbackProcess, *, seed: int) -> None:
        """Of the run's index and first version."""
        super().__init__(run / "served", service, seed=seed, every_s=0.8)
        self._features: FeatureSpec = read_manifest(run / "bundles" / "1", verify=False).features
        reader = IndexReader(run / "index")
        self._ads = reader.snapshot.leaf_ad_ids.copy()
        self._sids = reader.snapshot.sids_of(self._ads)[0]
        reader.close()

    def record(self, name: str, *, now: float) -> ServedRecord:
        """Three ads, a history of one purchase a slot."""
        rows, at = self._features.rows, [self._draw.randrange(len(self._ads)) for _ in range(3)]
        return (
            super()
            .record(name, now=now)
            .model_copy(
                update={
                    "slot_ads": [int(self._ads[self._draw.randrange(len(self._ads))]) for _ in range(rows)],
                    "slots": [[3, 0, 0]] * rows,
                    "profile": [0] * len(self._features.column_sizes),
                    "ad_ids": self._ads[at].tolist(),
                    "sids": self._sids[at].tolist(),
                }
            )
        )


def kills(
    run: Path, *, demo: Path, config: str, count: int, say: Callable[[str], None], seed: int = 0
) -> dict[str, Any]:
    """Kill, and count what is wrong.

    Args:
        run: folder to work in.
        demo: trained, exported and indexed run.
        config: its preset.
        count: kills.
        say: is told how it goes.
        seed: of everything that is drawn.

    Returns:
        `lost`, purchases that the last checkpoint has not learnt in time; `learnt_twice`, purchases that it
        has learnt more than once, and checkpoints that do not begin where the one before ends;
        `half_published`, versions and checkpoints that were named and not whole; and of what these were
        counted.

    Raises:
        RuntimeError: trainer or publisher ended by itself.
    """
    copied(demo, run)
    words = (f"--config={config}", *(f"--set={setting}" for setting in SETTINGS))
    serving = Preset.load(config, SETTINGS).serving
    render(run / "bundles", run / "repository", index=run / "index", config=serving)
    if not (run / "reward").is_dir():
        small = (f"--set=reward.{setting}" for setting in REWARD)
        fit = (sys.executable, "-m", "training.reward", f"--config={config}", f"--run={run}", *small)
        subprocess.run(fit, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    draw, store = random.Random(seed), run / "feedback"
    options = (f"--store={store}", f"--served={run / 'served'}", "--window-s=1", "--correct-s=3600")
    service = FeedbackProcess(*options, "--map-size-gib=1", log_file=run / "feedback.log")
    learning, feeder = Learning(run, preset=words), Served(run, service, seed=seed)
    killed: Counter[str] = Counter()
    half = 0
    service.start()
    for name in (TRAINER, PUBLISHER, ROLL_OUT):
        learning.start(name)
    ledger = Ledger(run / "online")
    feeder.start()
    try:
        learning.ready()
        due = {name: time.monotonic() + draw.uniform(0, alive) for name, alive in ALIVE_S.items()}
        for number in range(count):
            name = min(due, key=due.__getitem__)
            time.sleep(max(0.0, due[name] - time.monotonic()))
            learning.require()
            if name == JOIN:
                service.kill()
                start_again(service, draw)
            else:
                learning.stop(name, signal.SIGKILL)
                half += _not_whole(run)
                learning.start(name)
            killed[name] += 1
            due[name] = time.monotonic() + draw.uniform(0, ALIVE_S[name])
            if number % 10 == 9:
                say(
                    f"{number + 1} kills, {len(feeder.facts)} requests, step {max(ledger.by_step, default=0)}"
                )
        feeder.stop()
        _settle(run, feeder, ledger, learning)
    finally:
        for name in learning.processes:
            learning.stop(name)
        ledger.look()
        ledger.close()
        service.stop()
    half += _not_whole(run) + _not_whole_at_all(run)
    return _judged(run, feeder, ledger) | {
        "half_published": half,
        "kills": sum(killed.values()),
        "kills_of": dict(killed),
        "versions_published": current_version(run / "bundles") - 1,
    }


def _settle(run: Path, feeder: Feeder, ledger: Ledger, learning: Learning) -> None:
    """Wait until everything is learnt, or no more comes."""
    ends = time.monotonic() + _SETTLE_S
    while _judged(run, feeder, ledger)["lost"] and time.monotonic() < ends:
        time.sleep(2.0)
        learning.require()


def _judged(run: Path, feeder: Feeder, ledger: Ledger) -> dict[str, Any]:
    last = load_checkpoint(find_checkpoint(run / "online"))
    assert last.online is not None
    assert last.learnt is not None
    learnt = Counter(last.learnt.tolist())
    reported, lost, samples = 0, 0, 0
    with Samples(run / "feedback") as store:
        records: dict[str, JoinedSample] = {}
        for sample in store.read(after=0, limit=1 << 20):
            records[str(sample.record.request_id)] = sample
            samples += 1
    expected = set()
    for name, facts in feeder.facts.items():
        for ad, behavior, when, value in facts:
            if behavior != 3:
                continue
            reported += 1
            if name not in records:
                lost += 1
                continue
            digest = digest_of(records[name], Fact(ad, behavior, when, value))
            lost += not learnt[digest]
            expected.add(digest)
    twice = sum(times - 1 for times in learnt.values()) + len(learnt.keys() - expected)
    gaps, step, online = 0, last.step, last.online
    while step:
        before = online["since"]["step"]
        known = ledger.by_step.get(before, {"offset": 0} if not before else {})
        gaps += known.get("offset") != online["since"]["offset"]
        step, online = before, known if before else online
        if before and not known:
            break
    counts = {name: last.online[name] for name in ("learnt", "empty", "refused", "lost", "skipped")}
    return {
        "lost": lost + counts["lost"] + counts["skipped"] + counts["refused"],
        "learnt_twice": twice + gaps,
        "requests": len(feeder.facts),
        "purchases": reported,
        "samples": samples,
        "steps": last.step,
        "checkpoints": len(ledger.by_step),
        "offset": last.online["offset"],
        **{f"samples_{name}": number for name, number in counts.items()},
    }


def _not_whole(run: Path) -> int:
    """How many of the version that `CURRENT` names and the latest checkpoint are not whole, 0 to 2."""
    found = 0
    while True:
        version = current_version(run / "bundles")
        try:
            read_manifest(run / "bundles" / str(version))
        except (BundleError, OSError):
            if current_version(run / "bundles") != version:
                continue  # it moved on meanwhile
            found += 1
        break
    if has_checkpoint(run / "online"):
        path = find_checkpoint(run / "online")
        try:
            load_checkpoint(path)
        except CheckpointError:
            found += path.exists()
    return found


def _not_whole_at_all(run: Path) -> int:
    """Of all versions and checkpoints, once nobody writes."""
    found = 0
    for version in versions(run / "bundles"):
        try:
            read_manifest(run / "bundles" / str(version))
        except (BundleError, OSError):
            found += 1
    for path in sorted((run / "online" / FOLDER).glob("step-*")):
        try:
            checkpoint = load_checkpoint(path)
            found += not all(np.isfinite(w.numpy()).all() for w in checkpoint.model.state_dict().values())
        except CheckpointError:
            found += 1
    return found
