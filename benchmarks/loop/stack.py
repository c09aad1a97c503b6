"""A trained run that serves and learns from what it serves: every process that an operator starts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.variants import Answer
from benchmarks.feedback_client import send_until_taken
from examples.client import Catalogue, send
from export.render import render
from feedback.store.samples import Samples
from launcher.indexer_process import FeedbackProcess
from launcher.triton_server import TritonServer
from serving.model.bundle import read_manifest, versions
from serving.model.current import HISTORY, point_current
from training.loop.checkpoint import CONTENT
from training.loop.retention import FOLDER
from training.preset.preset import Preset

NUM_ADS = 10
TRAINER, PUBLISHER, ROLL_OUT = "trainer", "publisher", "roll-out"


def copied(demo: Path, run: Path) -> None:
    """What serves and learns of a trained run, with its first version alone.

    Raises:
        FileNotFoundError: the run was not trained, exported and indexed.
    """
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    there = ("reward",) if (demo / "reward").is_dir() else ()
    for name in ("data", "tokenizer", "model", "bundles", "index", *there):
        shutil.copytree(demo / name, run / name)
    first = versions(run / "bundles")[0]
    (run / "bundles" / HISTORY).unlink(missing_ok=True)
    point_current(run / "bundles", first)
    for version in versions(run / "bundles")[1:]:
        shutil.rmtree(run / "bundles" / str(version))


class Learning:
    """Trainer, publisher and roll-out of a run, each of which may be killed and started again.

    Attributes:
        processes: by name.
    """

    def __init__(self, run: Path, *, preset: tuple[str, ...], repository: Path | None = None) -> None:
        """Describe.

        Args:
            run: run folder.
            preset: its words of the command line.
            repository: of the server; None for RUN/repository.
        """
        words = (*preset, f"--run={run}")
        python = (sys.executable, "-m")
        self._commands = {
            TRAINER: (*python, "training.recipes.online", *words),
            ROLL_OUT: (*python, "training.recipes.roll_out_online", *words, "--requests=64"),
            PUBLISHER: (
                *(*python, "export", "publish", *words, "--follow"),
                *(f"--model={run / 'online'}", f"--repository={repository or run / 'repository'}"),
            ),
        }
        self._run = run
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start one; what it prints is added to NAME.log of the run."""
        with (self._run / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self._commands[name], stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )

    def stop(self, name: str, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait; its exit status."""
        process = self.processes[name]
        if process.poll() is None:
            process.send_signal(number)
        return process.wait(60)

    def log(self, name: str) -> str:
        """The end of what it printed."""
        return (self._run / f"{name}.log").read_text()[-2000:]

    def ready(self, *, within_s: float = 300.0) -> None:
        """Wait until the trainer has read the logs.

        Raises:
            RuntimeError: it ended.
            TimeoutError: it takes longer.
        """
        ends = time.monotonic() + within_s
        while "ready at step" not in self.log(TRAINER):
            self.require()
            if time.monotonic() > ends:
                raise TimeoutError(f"the trainer is not ready after {within_s:g} s: {self.log(TRAINER)}")
            time.sleep(0.1)

    def require(self) -> None:
        """All that were started run.

        Raises:
            RuntimeError: one has ended; with what it printed last.
        """
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"the {name} ended: {self.log(name)}")


class Ledger:
    """What each checkpoint says that it has learnt; a thread looks for new ones.

    Attributes:
        by_step: `online` of every checkpoint that was seen.
    """

    def __init__(self, model: Path) -> None:
        """Look at the checkpoints of a model."""
        self.by_step: dict[int, dict[str, Any]] = {}
        self._root, self._over = model / FOLDER, threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()

    def look(self) -> None:
        """Take over what is there now."""
        for path in self._root.glob("step-*"):
            step = int(path.name.removeprefix("step-"))
            if step not in self.by_step:
                try:
                    self.by_step[step] = json.loads((path / CONTENT).read_text())["online"]
                except OSError:  # a newer one has taken its place
                    continue

    def _follow(self) -> None:
        while not self._over.wait(0.1):
            self.look()


@dataclass
class Users:
    """Ask and report: a request of the next user, and a purchase of one of its ads.

    Attributes:
        url: of the server.
        feedback: says where the service listens.
        catalogue: of the run.
        number: of requests so far.
    """

    url: str
    feedback: Callable[[], str]
    catalogue: Catalogue
    number: int = 0

    def ask(self) -> tuple[str, Answer, int]:
        """Name of the request, its answer, its time.

        Raises:
            InferenceServerException: it was not answered.
        """
        users, name = self.catalogue.users["user_id"], f"r{self.number}"
        self.number += 1
        tensors = self.catalogue.request(int(users[self.number % len(users)]), num_ads=NUM_ADS)
        found = send(self.url, tensors, request_id=name, parameters={"user_id": self.number % len(users)})
        return name, found, int(tensors["timestamp"][0, 0])

    def report(self, name: str, ads: np.ndarray, at: int, *, bought: int) -> None:
        """All ads were shown, one was bought; returns once that is on disk. It is tried until it is.

        Raises:
            AssertionError: the service refuses it.
        """
        value = round(1.0 + bought, 2)
        events = [{"ad_id": int(ad), "behavior": "impression"} for ad in ads]
        events.append({"ad_id": int(ads[bought]), "behavior": "conversion", "value": value})
        events = [{"request_id": name, "timestamp": at} | event for event in events]
        send_until_taken(self.feedback, events)


class Stack:
    """Server, feedback service, trainer and publisher of a copied run; a context manager."""

    def __init__(self, run: Path, *, config: str, settings: tuple[str, ...], window_s: float) -> None:
        """Render the repository.

        Args:
            run: see `copied`.
            config: preset.
            settings: of it that differ.
            window_s: of the join.
        """
        served = run / "served"
        settings = (*settings, "serving.graph_calls=in_process", "serving.threads=1")
        settings += ("serving.served_log.sink=file", f"serving.served_log.folder={served}")
        preset = Preset.load(config, settings)
        render(run / "bundles", run / "repository", index=run / "index", config=preset.serving)
        words = (f"--config={config}", *(f"--set={setting}" for setting in settings))
        self.run, self.server = run, TritonServer(run / "repository", log_file=run / "triton.log")
        self.learning = Learning(run, preset=words)
        self.service = FeedbackProcess(
            *(f"--store={run / 'feedback'}", f"--served={served}", f"--window-s={window_s}"),
            *("--correct-s=3600", "--map-size-gib=1"),
            log_file=run / "feedback.log",
        )

    def __enter__(self) -> Stack:
        """Start all."""
        self.server.start()
        self.service.start()
        self.learning.start(TRAINER)
        self.learning.start(PUBLISHER)
        self.learning.ready()
        self.users = Users(self.server.grpc_url, lambda: self.service.url, Catalogue.load(self.run))
        self.ledger = Ledger(self.run / "online")
        return self

    def learnt_by(self, version: int) -> int:
        """Number of the last sample that a version learnt from; 0 of one that was trained on logs."""
        manifest = read_manifest(self.run / "bundles" / str(version), verify=False)
        self.ledger.look()
        return 0 if manifest.refit is None else int(self.ledger.by_step[manifest.step]["offset"])

    def sequences(self) -> dict[str, int]:
        """Of the first sample of each request."""
        found: dict[str, int] = {}
        with Samples(self.run / "feedback") as samples:
            for sample in samples.read(after=0, limit=1 << 20):
                found.setdefault(str(sample.record.request_id), sample.sequence)
        return found

    def __exit__(self, *_: object) -> None:
        """Stop all."""
        self.ledger.close()
        for name in self.learning.processes:
            self.learning.stop(name)
        self.service.stop()
        self.server.stop()
