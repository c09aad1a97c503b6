"""All processes of a loop: two servers, the sidecar, feedback, the trainer, and who publishes for it.

    online server -> served log -> feedback service -> trainer -> publish --follow -> online server
    frozen server: version 1 of the same bundles, the same index, for comparison

Trainer and publisher run at the lowest priority: answers come first.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from benchmarks.closed_loop.settings import SERVING, WINDOW_S, Settings
from benchmarks.steps import status_of
from export.render import render
from launcher.indexer_process import FeedbackProcess, IndexerProcess
from launcher.paths import HOME
from launcher.server_log import tail
from launcher.triton_server import TritonServer
from serving.backend.settings import ServingConfig
from training.preset.preset import Preset

ONLINE = "online"  # the trainer's folder below the run
_GIVEN = ("data", "tokenizer", "model")  # of the run that it begins from


class LoopError(RuntimeError):
    """A step or a process of the loop failed; with the last lines that it printed."""


class Deployment:
    """The processes on a run folder of their own; a context manager."""

    def __init__(self, settings: Settings) -> None:
        """Nothing runs yet."""
        self.settings, self.run = settings, settings.work.resolve()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._exit = ExitStack()
        overrides = (*settings.overrides, *SERVING)
        self._serving = Preset.load(settings.config, overrides).serving
        self.online: TritonServer
        self.frozen: TritonServer
        self.sidecar: IndexerProcess
        self.feedback: FeedbackProcess

    @property
    def store(self) -> Path:
        """Of feedback."""
        return self.run / "feedback"

    def __enter__(self) -> Deployment:
        """Prepare the run folder and start all but the trainer.

        Raises:
            LoopError: a step failed.
            ServerError, IndexerError: a process does not become ready.
        """
        try:
            self._prepare()
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all, those that learn first."""
        for child in self._children.values():
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in self._children.values():
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._exit.close()

    def learn(self) -> None:
        """Start the trainer, and who publishes its checkpoints."""
        run, words = f"--run={self.run}", self.settings.words()
        store = f"--feedback={self.store}"
        self._begin("trainer", "training.recipes.online", *words, run, store)
        follow = ("--follow", f"--model={self.run / ONLINE}", f"--repository={self.run / 'repository'}")
        self._begin("publisher", "export", "publish", *words, run, *follow)

    def ended(self) -> dict[str, int]:
        """Exit status of trainer and publisher where they ended by themselves."""
        return {name: code for name, child in self._children.items() if (code := child.poll()) is not None}

    def said(self, name: str) -> str:
        """The log of the trainer or the publisher, its last mebibyte."""
        return tail(self.run / f"{name}.log", max_bytes=1 << 20)

    def _prepare(self) -> None:
        """Version 1, an index and repositories, as if nothing had been served yet."""
        settings, base = self.settings, (self.settings.cache / "base").resolve()
        for name in _GIVEN:
            if not (settings.run / name).is_dir():
                raise LoopError(f"expected {settings.run / name}, found none: make train PRESET=.. makes it")
        _link(settings.run, base)
        step = ("export", *settings.words(), f"--run={base}", f"--repository={base / 'repository'}")
        self._step(*step, log=settings.cache / "export.log")
        shutil.rmtree(self.run, ignore_errors=True)
        _link(settings.run, self.run)
        for folder in (self.run, self.run / "frozen"):
            shutil.copytree(base / "bundles", folder / "bundles")
        index = self.run / "index"
        tables = (f"--ads={self.run / 'data/ads.parquet'}", f"--sids={self.run / 'tokenizer/sids.parquet'}")
        bundles = f"--bundles={self.run / 'bundles'}"
        self._step("indexer", "build", bundles, *tables, f"--out={index}", log=self.run / "index.log")
        log = self._serving.served_log.model_copy(update={"sink": "file", "folder": str(self.run / "served")})
        self._render(self.run, self._serving.model_copy(update={"served_log": log}))
        self._render(self.run / "frozen", self._serving)

    def _render(self, folder: Path, config: ServingConfig) -> None:
        render(folder / "bundles", folder / "repository", index=self.run / "index", config=config)

    def _start(self) -> None:
        index = f"--index={self.run / 'index'}"
        bundles = f"--bundles={self.run / 'bundles'}"
        start, log = self._exit.enter_context, self.run / "sidecar.log"
        self.sidecar = start(IndexerProcess(index, bundles, log_file=log))
        for name, folder in (("frozen", self.run / "frozen"), ("online", self.run)):
            server = TritonServer(folder / "repository", log_file=self.run / f"{name}.log")
            setattr(self, name, start(server))
        times = ("--clock=served", f"--window-s={WINDOW_S}")
        served = f"--served={self.run / 'served'}"
        (self.run / "served").mkdir(exist_ok=True)
        self.feedback = start(
            FeedbackProcess(f"--store={self.store}", served, *times, log_file=self.run / "feedback.log")
        )

    def _begin(self, name: str, module: str, *options: str) -> None:
        """As a process that ends with this one; Ctrl-C is for this one alone."""
        child = [sys.executable, str(HOME / "launcher" / "child.py"), str(os.getpid())]
        command = [*child, "nice", "-n", "19", sys.executable, "-m", module, *options]
        with (self.run / f"{name}.log").open("wb") as log:
            self._children[name] = subprocess.Popen(
                command, cwd=HOME, stdout=log, stderr=log, start_new_session=True
            )

    def _step(self, module: str, *options: str, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        code = status_of(module, *options, log=log, cwd=HOME)
        if code:
            raise LoopError(f"{module} failed with status {code}:\n{tail(log, max_bytes=2000)}")


def _link(run: Path, folder: Path) -> None:
    """What a run was made of, in another folder: read, never written."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _GIVEN:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to((run / name).resolve())
