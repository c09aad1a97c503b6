"""What a launcher asks of the operating system: free ports, readiness, the leftovers of a dead server."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.server_files import ServerError

_SHM = Path("/dev/shm")
_PREFIX_OPTION = "--backend-config=python,shm-region-prefix-name="


def stop_pid(pid: int, *, timeout_s: float = 40.0) -> bool:
    """Stops a detached server by its process id; returns False when it no longer runs."""
    prefix = _shm_prefix_of(pid)
    if prefix is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while _shm_prefix_of(pid) == prefix:
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            break
        time.sleep(0.1)
    remove_leftovers(prefix)
    return True


def remove_leftovers(shm_prefix: str) -> None:
    """Ends the stubs and removes the regions that a crashed server with this prefix has left; no others."""
    deadline = time.monotonic() + 5.0
    while (stubs := _stubs_of(shm_prefix)) and time.monotonic() < deadline:
        for pid in stubs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for region in _SHM.glob(f"{shm_prefix}*"):
        region.unlink(missing_ok=True)


def stub_models(shm_prefix: str) -> Counter[Path]:
    """Living processes of Python models under this prefix: file of the model -> one process an instance."""
    return Counter(Path(arguments[1]) for _, arguments in _stubs(shm_prefix))


def model_of(path: Path) -> str:
    """Name of the model whose file is <model>/<version>/model.py."""
    return path.parents[1].name


def instances_of(config: Mapping[str, Any]) -> int:
    """Instances of each version of a model, from its config as Triton gives it (JSON)."""
    return sum(int(group.get("count", 1)) for group in config.get("instance_group", [])) or 1


def _stubs_of(shm_prefix: str) -> list[int]:
    return [pid for pid, _ in _stubs(shm_prefix)]


def _stubs(shm_prefix: str) -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").glob("[0-9]*"):
        arguments = _arguments(int(entry.name))
        is_stub = bool(arguments) and arguments[0].endswith("triton_python_backend_stub")
        if is_stub and any(argument.startswith(shm_prefix) for argument in arguments):
            yield int(entry.name), arguments


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # gone meanwhile, or another user's
        return []


def _shm_prefix_of(pid: int) -> str | None:
    """Reads it from the command line of the process, which also tells a server of ours from a reused id."""
    found = [argument for argument in _arguments(pid) if argument.startswith(_PREFIX_OPTION)]
    return found[0].removeprefix(_PREFIX_OPTION) if found else None


def choose_ports(wanted: Mapping[str, int | None], *, host: str) -> dict[str, int]:
    """Checks the numbers that were asked for and fills in free ones; all are held until all are known."""
    with contextlib.ExitStack() as stack:
        chosen = {}
        # Numbers first, so that no free choice takes one of them.
        for service, port in sorted(wanted.items(), key=lambda item: item[1] is None):
            probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # A port with connections in TIME_WAIT only is free for Triton, too.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port or 0))
            except OSError as error:
                raise ServerError(f"{service} port {port} on {host} is not free: {error.strerror}") from error
            chosen[service] = probe.getsockname()[1]
        return {service: chosen[service] for service in wanted}


def is_ready(host: str, port: int) -> bool:
    """Whether the server behind this HTTP port says that all its models are ready."""
    connection = http.client.HTTPConnection("127.0.0.1" if host == "0.0.0.0" else host, port, timeout=2.0)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def error_lines(log_file: Path) -> str:
    """The last lines Triton marks as errors: its long tables push them out of the log's tail."""
    lines = log_file.read_text(errors="replace").splitlines() if log_file.is_file() else []
    errors = [line for line in lines if line[:1] == "E" and line[1:5].isdigit()]
    noise = ("CudaDriverHelper", "CUDA driver version is insufficient")  # said wherever there is no GPU
    return "\n".join(line for line in errors[-25:] if not any(text in line for text in noise))
