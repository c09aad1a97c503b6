"""SIGTERM to a launcher with requests in flight: none may fail, and nothing may stay behind."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tritonclient.utils import InferenceServerException

from benchmarks.faults.deployment import Deployment

IN_FLIGHT = 48
_SEGFAULT = re.compile(r"\[(\d+)\]: segfault")


def stop_under_load(deployment: Deployment) -> dict[str, Any]:
    """Send `IN_FLIGHT` requests at once and SIGTERM after the first answer.

    Returns:
        `sigterm_failed` (accepted and not answered), `sigterm_refused` (told to go elsewhere), `status`
        of the launcher, `stop_s`, `stub_segfaults` (None without a log), `left` (files in
        shared memory).
    """
    pids = {process.pid for group in deployment.processes().values() for process in group}
    prefix = deployment.shm_prefix
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        asked = [pool.submit(_ask, deployment, number) for number in range(IN_FLIGHT)]
        while not any(one.done() for one in asked):
            time.sleep(0.001)
        began = time.monotonic()
        status = deployment.stop(signal.SIGTERM)
        stop_s = time.monotonic() - began
        outcomes = [one.result() for one in asked]
    return {
        "sigterm_failed": outcomes.count("failed"),
        "sigterm_refused": outcomes.count("refused"),
        "status": status,
        "stop_s": round(stop_s, 2),
        "stub_segfaults": segfaults(pids),
        "left": sorted(path.name for path in Path("/dev/shm").glob(f"{prefix}*")),
    }


def segfaults(pids: set[int]) -> int | None:
    """Processes of these that the kernel's log has with a segmentation fault; None without a log."""
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=False)
    if log.returncode:
        return None
    return len({int(pid) for pid in _SEGFAULT.findall(log.stdout)} & pids)


def _ask(deployment: Deployment, number: int) -> str:
    try:
        deployment.ask(number)
    except InferenceServerException as error:
        return "refused" if "stopping" in str(error) else "failed"
    except OSError:
        return "failed"
    return "answered"
