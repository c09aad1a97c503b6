"""A bad version as a canary: is it rolled back by rule, how soon, and who was answered by it?"""

from __future__ import annotations

import dataclasses
import itertools
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.faults.deployment import SMALL, Deployment
from benchmarks.faults.variants import Answer, Expected
from benchmarks.feedback_client import send_feedback
from examples.client import send
from export.publish import Place, begin_canary
from export.refit import refit
from export.seeded import seeded_checkpoint
from export.verdicts import read_verdicts
from launcher.indexer_process import FeedbackProcess
from serving.files import read_object
from serving.model.bundle import MANIFEST
from serving.model.canary import Canary, read_canary
from serving.model.current import current_version
from training.loop.checkpoint import Checkpoint
from training.preset.preset import Preset
from training.spec import ModelSpec

SHARE = 0.2
REQUESTS = 150  # of a canary, after which a good one is promoted
QPS = 40.0
WINDOW_S = 2.0  # after an answer, in which what came of it counts
LIKED, OTHERS = 0.5, 0.02  # chance that an ad is bought: of those that version 1 would show, of others
FALLEN = 0.5  # of the value of an answer: what a planted version is left with, or less
SCALES = (1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 2.0, 3.0, 5.0)
LONGEST_S = 180.0

Say = Callable[[str], None]


@dataclass
class Market:
    """Who is asked about ads: buys most often what version 1 would show, at about the value that it expects.

    Attributes:
        worth: by request the ads that version 1 shows and their values.
        seen: id, model version and time of each answer, in the order they came.
        failures: texts.
    """

    worth: list[dict[int, float]]
    tensors: list[Answer]
    ask: Callable[..., Answer]
    feedback_url: str
    seen: list[tuple[str, int, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def value(self, answers: list[Answer]) -> float:
        """Of an answer, by the chances above."""
        found = []
        for worth, answer in zip(self.worth, answers, strict=True):
            mean = float(np.mean(list(worth.values())))
            found.append(
                sum(LIKED * worth[ad] if ad in worth else OTHERS * mean for ad in answer["ad_ids"].tolist())
            )
        return float(np.mean(found))

    def __enter__(self) -> Market:
        """Requests come at a steady rate from now on; what is bought is reported a moment later."""
        self._over, self._bought = threading.Event(), list[dict[str, Any]]()
        self._threads = [threading.Thread(target=work) for work in (self._send, self._report)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """No more requests."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        due = time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            for number in itertools.count():
                if self._over.wait(max(0.0, due - time.monotonic())):
                    return
                pool.submit(self._one, number)
                due += 1 / QPS

    def _one(self, number: int) -> None:
        at, name = number % len(self.tensors), f"request-{number}"
        try:
            found = self.ask(self.tensors[at], request_id=name)
        except Exception as error:  # noqa: BLE001  (whatever it is, the user has no answer)
            self.failures.append(str(error)[:300])
            return
        self.seen.append((name, int(found["model_version"].ravel()[0]), time.time()))
        draw, worth = random.Random(number), self.worth[at]
        for ad in found["ad_ids"][0].tolist():
            if ad >= 0 and draw.random() < (LIKED if ad in worth else OTHERS):
                value = worth.get(ad, float(np.mean(list(worth.values())))) * draw.lognormvariate(0.0, 0.3)
                sold = {"request_id": name, "ad_id": ad, "behavior": "conversion", "value": value}
                when = int(self.tensors[at]["timestamp"].ravel()[0])
                self._bought.append(sold | {"timestamp": when})

    def _report(self) -> None:
        while not self._over.wait(0.2):
            batch, self._bought = self._bought, []
            if batch:
                send_feedback(self.feedback_url, batch)


def canary(run: Path, *, prepared: Callable[[Path, tuple[str, ...]], Preset], say: Say) -> dict[str, Any]:
    """A good version and a bad one, each as a canary that `python -m export canary` judges.

    A real server, its served log, a real feedback service; users are simulated. The bad version is version 1
    with its weights scaled until the value of its answers falls. It is planted past the gate of a refit.

    Args:
        run: folder to work in.
        prepared: makes version 1, its index and repository of settings.
        say: is told how it goes.

    Returns:
        `rollback_s`, from the moment that the version is planted to the last answer by it;
        `touched_outside_canary`, answers by it to requests that are not of the share, or after it was rolled
        back for 2 s; `canary_answers`, how many were by it, of `canary_requests` meanwhile; `canary_share`;
        `bad_scale` of the weights and `bad_value`, of an answer beside that of version 1; `bad_reason`;
        `good_verdict` and `good_s` of a version with the weights of version 1; `canary_failed_requests`.
    """
    folder = run / "served"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(run / "feedback", ignore_errors=True)
    settings = (
        *SMALL,
        *("serving.graph_calls=in_process", "serving.load_control=fixed", "serving.threads=1"),
        *("serving.cache='off'", "serving.served_log.sink=file", f"serving.served_log.folder={folder}"),
        f"publish.canary_requests={REQUESTS}",
    )
    preset = prepared(run, settings)
    place = Place(run / "bundles", run / "repository", run / "index", preset.serving)
    base = _checkpoint(run, preset)
    log = run / "feedback.log"
    options = (f"--store={run / 'feedback'}", f"--served={folder}", f"--window-s={WINDOW_S}")
    with Deployment(run) as deployment, FeedbackProcess(*options, log_file=log) as feedback:
        expected = Expected(place.bundles, place.index, deployment.tensors, widths=preset.serving.widths)
        worth = [
            dict(zip(a["ad_ids"].tolist(), a["expected_value"].tolist(), strict=True)) for a in expected.of(1)
        ]

        def ask(tensors: Answer, *, request_id: str) -> Answer:
            return send(deployment.grpc_url, tensors, timeout_s=10.0, request_id=request_id)

        with Market(worth, deployment.tensors, ask, feedback.url) as market:
            full, scale, bad, value = market.value(expected.of(1)), 0.0, base, 1.0
            for scale in SCALES:
                bad = _scaled(base, scale)
                version = int(refit(bad, place.bundles, base=1).name)
                value = market.value(expected.of(version)) / full
                say(f"canary: weights times {scale:g}: {value:.2f} of the value")
                if value <= FALLEN:
                    break
            watching = _Watching(run, place, settings=settings, deployment=deployment)
            good = watching.judged(base, base=1)
            say(f"canary: good version {good.verdict} after {good.seconds:.1f} s: {good.reason}")
            planted = watching.judged(bad, base=current_version(place.bundles))
            say(f"canary: bad version {planted.verdict} after {planted.seconds:.1f} s: {planted.reason}")
            time.sleep(5.0)
    by_it = [(name, at) for name, version, at in market.seen if version == planted.canary.version]
    during = [at for _, _, at in market.seen if planted.canary.began <= at <= planted.ended]
    outside = [n for n, at in by_it if not planted.canary.takes(n) or at > planted.ended + 2.0]
    last = max((at for _, at in by_it), default=planted.canary.began)
    return {
        "rollback_s": round(max(last, planted.ended) - planted.canary.began, 1)
        if planted.verdict == "rolled back"
        else None,
        "touched_outside_canary": len(outside),
        "canary_answers": len(by_it),
        "canary_requests": len(during),
        "canary_share": SHARE,
        "bad_scale": scale,
        "bad_value": round(value, 3),
        "bad_reason": planted.reason,
        "good_verdict": good.verdict,
        "good_s": round(good.seconds, 1),
        "canary_failed_requests": len(market.failures),
        "canary_qps": QPS,
    }


@dataclass(frozen=True)
class _Judged:
    canary: Canary
    verdict: str
    reason: str
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.canary.began


@dataclass(frozen=True)
class _Watching:
    """Begins canaries and has them judged by the command that an operator starts."""

    run: Path
    place: Place
    settings: tuple[str, ...]
    deployment: Deployment

    def judged(self, checkpoint: Checkpoint, *, base: int) -> _Judged:
        bundles = self.place.bundles
        version = int(refit(checkpoint, bundles, base=base).name)
        command = [sys.executable, "-m", "export", "canary", f"--run={self.run}"]
        command += ["--config=configs/demo.yaml", *(f"--set={setting}" for setting in self.settings)]
        command += [f"--repository={self.place.repository}", f"--feedback={self.run / 'feedback'}"]
        command += [f"--metrics=http://127.0.0.1:{self.deployment.ports.metrics}/metrics"]
        assert begin_canary(version, self.place, share=SHARE)
        canary = read_canary(bundles)
        assert canary is not None
        with (self.run / "watch.log").open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                process.wait(LONGEST_S)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
        found = [v for v in read_verdicts(bundles) if v.version == version and v.at >= canary.began]
        if not found:
            return _Judged(canary, "none", f"none within {LONGEST_S:g} s", time.time())
        return _Judged(canary, found[-1].verdict, found[-1].reason, found[-1].at)


def _checkpoint(run: Path, preset: Preset) -> Checkpoint:
    """Version 1's weights."""
    spec = ModelSpec.from_json(read_object(run / "bundles" / "1" / MANIFEST))
    return dataclasses.replace(seeded_checkpoint(preset), spec=spec)


def _scaled(base: Checkpoint, scale: float) -> Checkpoint:
    """All weights times a number."""
    with torch.no_grad():
        model = base.spec.empty()
        model.load_state_dict(base.model.state_dict())
        for weight in model.parameters():
            weight *= scale
    return dataclasses.replace(base, model=model.eval())
