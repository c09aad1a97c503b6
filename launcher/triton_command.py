"""Command line and environment of `tritonserver`, with the reason of each option."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.paths import HOME
from launcher.server_files import ServerFiles
from launcher.triton_admin import lock_options


@dataclass(frozen=True)
class TritonOptions:
    """How one server is to be run.

    Attributes:
        repository: The model repository.
        models: Names to load; None for all.
        host: The address that gRPC listens on.
        exit_timeout_s: Seconds Triton gives, after SIGTERM, requests in flight. Unloading comes on top.
        shm_default_bytes: First size of a Python model instance's shared memory, which grows as needed.
        extra: More options of `tritonserver`.
        env: Added to the environment of the server and of every `model.py`.
    """

    repository: Path
    models: tuple[str, ...] | None = None
    host: str = "127.0.0.1"
    exit_timeout_s: int = 5
    shm_default_bytes: int = 16 << 20
    extra: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def command(
        self, files: ServerFiles, *, ports: Mapping[str, int], shm_prefix: str, key: str
    ) -> list[str]:
        """Command line.

        Args:
            files: Which server.
            ports: grpc and triton_metrics are its own.
            shm_prefix: Of the names of its regions of shared memory.
            key: Of `launcher.triton_admin`. Other users of this machine can read a command line
            (docs/security.md).
        """
        command = [str(files.binary), f"--model-repository={self.repository}"]
        command += ["--model-control-mode=explicit", f"--exit-timeout-secs={self.exit_timeout_s}"]
        # With strict readiness one new version that fails to load makes a server that serves well "not
        # ready", for good. The start does not need it: gRPC opens once all models are loaded.
        command.append("--strict-readiness=false")
        # Our configs are complete. Completing them would start one more stub for each model first.
        command.append("--disable-auto-complete-config")
        command += [f"--load-model={name}" for name in (["*"] if self.models is None else self.models)]
        # HTTP is the gateway's: Triton's own ends at a shape of 10^10, and takes orders from any web page.
        command.append("--allow-http=false")
        command += [f"--grpc-address={self.host}", f"--grpc-port={ports['grpc']}"]
        command += ["--metrics-address=127.0.0.1", f"--metrics-port={ports['triton_metrics']}"]
        command += lock_options(key)
        if files.backend_directory is not None:
            command.append(f"--backend-directory={files.backend_directory}")
        if files.cache_directory is not None:
            command.append(f"--cache-directory={files.cache_directory}")
        if not files.has_gpu_metrics:
            command.append("--allow-gpu-metrics=false")
        command.append(f"--backend-config=python,shm-region-prefix-name={shm_prefix}")
        command.append(f"--backend-config=python,shm-default-byte-size={self.shm_default_bytes}")
        return [*command, *self.extra]

    def environment(self, files: ServerFiles, *, metrics_url: str, shm_prefix: str) -> dict[str, str]:
        """Environment: this process's, and what the models are told."""
        env = dict(os.environ)  # OMP_NUM_THREADS and the like pass through
        # The stub runs Python isolated, but finds its prefix by the first `python3` in PATH: let it be ours.
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
        libraries = [str(path) for path in files.library_path]
        if env.get("LD_LIBRARY_PATH"):
            libraries.append(env["LD_LIBRARY_PATH"])
        if libraries:
            env["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        env["GR4AD_HOME"] = str(HOME)
        env["GR4AD_METRICS_URL"] = metrics_url  # load control reads the queue there
        env["GR4AD_SHM_PREFIX"] = shm_prefix  # of the files that its processes share
        return env | dict(self.env)
