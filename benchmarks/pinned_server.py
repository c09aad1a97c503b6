"""Triton on some cores only, and what it says of its own time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from launcher.server_files import ServerError, ServerFiles
from launcher.triton_server import TritonServer


class Server(TritonServer):
    """A server whose processes, those of the Python models included, may use these cores only."""

    def __init__(self, repository: Path, *, cores: Iterable[int], **options: Any) -> None:
        """Describe; `with` starts it."""
        super().__init__(repository, **options)
        self._cores = set(cores)

    def start(self) -> Server:
        """Start it and see that every process keeps to its cores.

        Raises:
            ServerError: it did not start, or a process may run elsewhere.
        """
        super().start()
        for name, process in self.processes().items():
            if not set(process.cpu_affinity()) <= self._cores:
                self.stop()
                raise ServerError(f"{name}: expected cores {self._cores}, got {process.cpu_affinity()}")
        return self

    def __enter__(self) -> Server:
        """Start it."""
        return self.start()

    def processes(self) -> dict[str, psutil.Process]:
        """The server by the name "tritonserver", and the processes of Python models by the model's name."""
        server = psutil.Process(self.pid)
        found = {"tritonserver": server}
        for number, stub in enumerate(server.children(recursive=True)):
            name = Path(stub.cmdline()[1]).parents[1].name  # <model>/<version>/model.py
            found[name if name not in found else f"{name} {number}"] = stub
        return found

    def cpu_seconds(self) -> Counter[str]:
        """CPU time that each process has used so far."""
        return Counter({name: sum(p.cpu_times()[:2]) for name, p in self.processes().items()})

    def statistics(self) -> dict[str, Counter[str]]:
        """Triton's own counts and nanoseconds so far, by model."""
        return {
            m.name: Counter(
                requests=m.inference_stats.success.count,
                executions=m.execution_count,
                total=m.inference_stats.success.ns,
                queue=m.inference_stats.queue.ns,
                input=m.inference_stats.compute_input.ns,
                infer=m.inference_stats.compute_infer.ns,
                output=m.inference_stats.compute_output.ns,
            )
            for m in self.admin.statistics()
        }

    def _command(self, files: ServerFiles) -> list[str]:
        cores = ",".join(map(str, sorted(self._cores)))
        return ["taskset", "--cpu-list", cores, *super()._command(files)]
