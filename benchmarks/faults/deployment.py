"""A deployment as an operator starts it, small enough to be broken often."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import catalogue
from benchmarks.faults.observer import Answer, Observer
from benchmarks.live_index.deployment import free_port, prepare, sidecar
from examples.client import send
from launcher.indexer_process import IndexerProcess
from serving.index.reader import IndexReader
from serving.model.bundle import read_manifest, versions
from serving.model.current import HISTORY, point_current
from training.preset.preset import Preset

CONFIG = "configs/demo.yaml"
WIDTHS = "8-16-32:8"
SMALL = (
    *("model.width=64", "model.layers=3", "model.shared_layers=2"),
    *("tokenizer.codebook_sizes=[32,32]", "tokenizer.hash_size=64"),
    *("features.short_slots=8", "features.long_slots=8", f"serving.widths={WIDTHS}", "serving.threads=1"),
    "serving.slo_ms=2000",  # load control has its own bench
)
"""A request takes some milliseconds: faults are about processes and files, not about arithmetic."""
ADS = 5_000
TIMEOUT_S = 3.0  # of a request
_TENSORS = ("ad_ids", "scores", "expected_value", "sids")


def prepared(run: Path, *more: str) -> Preset:
    """Bundle, tokenizer and repository below `run`, made once, and the index, made anew.

    Args:
        run: folder to work in.
        more: settings of the preset that differ.
    """
    for version in versions(run / "bundles")[1:]:  # of publishes
        shutil.rmtree(run / "bundles" / str(version))
    if (run / "bundles").is_dir():
        (run / "bundles" / HISTORY).unlink(missing_ok=True)
        point_current(run / "bundles", 1)
    preset = Preset.load(CONFIG, (*SMALL, *more))
    prepare(run, ads=ADS, preset=preset)
    return preset


def requests(run: Path) -> list[Answer]:
    """Requests of sixteen users, whose ads are in the index of a prepared run."""
    reader = IndexReader(run / "index")
    spec = read_manifest(run / "bundles" / "1", verify=False).features
    drawn = catalogue.requests(16, spec, reader.snapshot, num_ads=10)
    reader.close()
    return drawn


@dataclass
class Ports:
    """Where it listens, all on the loopback."""

    http: int
    grpc: int
    metrics: int


class Deployment:
    """`python -m launcher` and `python -m indexer serve` on a prepared run; a context manager."""

    def __init__(self, run: Path, *, launcher: tuple[str, ...] = ()) -> None:
        """Describe; `launcher` are more options of its command."""
        self.run, self.ports = run, Ports(free_port(), free_port(), free_port())
        self.run_file, self.log_file = run / "server.json", run / "launcher.log"
        self.sidecar: IndexerProcess = sidecar(run)
        self._options = launcher
        self.process: subprocess.Popen[bytes] | None = None
        self.tensors: list[Answer] = []

    @property
    def grpc_url(self) -> str:
        """Triton's own."""
        return f"127.0.0.1:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """The gateway's."""
        return f"127.0.0.1:{self.ports.http}"

    def start(self) -> None:
        """Start the launcher and wait until it is ready.

        Raises:
            RuntimeError: it ended, or it takes longer than two minutes.
        """
        ports = (f"--{name}-port={port}" for name, port in vars(self.ports).items())
        command = [sys.executable, "-m", "launcher", f"--repository={self.run / 'repository'}", *ports]
        command += [f"--run-file={self.run_file}", f"--log={self.run / 'triton.log'}", *self._options]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the launcher does not become ready: {self.log_file.read_text()[-2000:]}")
            time.sleep(0.1)

    def __enter__(self) -> Deployment:
        """Start all, and draw requests."""
        self.start()
        self.sidecar.start()
        self.tensors = requests(self.run)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all."""
        self.sidecar.stop()
        self.stop()

    def stop(self, number: int = signal.SIGTERM, *, timeout_s: float = 60.0) -> int | None:
        """Send the launcher a signal and wait; its exit status."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def healthy(self) -> bool:
        """What a load balancer asks."""
        try:
            with urllib.request.urlopen(f"http://{self.http_url}/v2/health/ready", timeout=3) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, number: int) -> Answer:
        """Answer of a request, every other one over HTTP, searched anew at fixed widths.

        Raises:
            InferenceServerException: it was refused or not answered in time.
        """
        http = number % 2
        answer = send(
            self.http_url if http else self.grpc_url,
            self.tensors[number % len(self.tensors)],
            protocol="http" if http else "grpc",
            timeout_s=TIMEOUT_S,
            parameters={"cache": "bypass", "widths": WIDTHS},
        )
        return {name: answer[name] for name in _TENSORS}

    def observer(self, *, every_s: float = 0.1) -> Observer:
        """Whoever sees what its users see; as it answers now is right."""
        expected = [self.ask(i) for i in range(len(self.tensors))]
        return Observer(self.ask, self.healthy, expected=expected, every_s=every_s)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Living processes by what they are: launcher, gateway, tritonserver, the name of a model."""
        assert self.process is not None
        found: dict[str, list[psutil.Process]] = {}
        root = psutil.Process(self.process.pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                found.setdefault(_kind(process.cmdline()), []).append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    @property
    def shm_prefix(self) -> str:
        """Of what the server has in shared memory."""
        words = self.processes()["tritonserver"][0].cmdline()
        return next(word.partition("prefix-name=")[2] for word in words if "shm-region-prefix-name=" in word)


def _kind(words: list[str]) -> str:
    if not words:
        return "gone"
    if words[0].endswith("triton_python_backend_stub"):
        return Path(words[1]).parents[1].name  # <model>/<version>/model.py
    if words[0].endswith("tritonserver"):
        return "tritonserver"
    modules = [after for before, after in zip(words, words[1:], strict=False) if before == "-m"]
    return modules[0] if modules else Path(words[0]).name
