"""The run file: what a running launcher says of itself, for those who may stop it or load models."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.paths import DEFAULT_CACHE
from launcher.processes import process_stat
from launcher.server_files import ServerError
from serving.files import new_file

DEFAULT_RUN_FILE = Path(os.environ.get("GR4AD_RUN_FILE") or DEFAULT_CACHE / "server.json")


@dataclass(frozen=True)
class RunFile:
    """Its content; the file is its user's alone, because of the key.

    Attributes:
        pid: Process id of the launcher.
        started: When that process started, in clock ticks since boot: tells it from another that got its
        number.
        grpc_url: host:port of Triton's gRPC.
        key: Of `launcher.triton_admin`.
    """

    pid: int
    started: int
    grpc_url: str
    key: str

    def write(self, path: Path) -> None:
        """Writes it, readable by nobody else at any moment."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as partial:
            partial.touch(mode=0o600)
            partial.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> RunFile:
        """Reads it.

        Raises:
            ServerError: it is not there, or not ours.
        """
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ServerError(f"no running server is described by {path}: {error}") from error

    @property
    def runs(self) -> bool:
        """Whether that very launcher still runs."""
        return start_time(self.pid) == self.started


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None for one that has ended."""
    stat = process_stat(pid)
    return None if stat is None or stat[0] == "Z" else int(stat[19])
