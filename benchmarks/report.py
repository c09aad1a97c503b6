"""What every benchmark notes beside its figures."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "onnx", "onnxruntime", "torch", "nvidia-pytriton", "transformers", "ctranslate2")


def stamp() -> dict[str, Any]:
    """Hardware, versions and commit, as `{"environment": {...}}`."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "environment": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "versions": versions,
            "commit": _commit(),
        }
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    values = {k.strip(): v.strip() for k, v in fields.items()}
    flags = values.get("flags", "").split()
    kept = [f for f in ("avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16") if f in flags]
    return f"{values.get('model name', 'unknown')} ({', '.join(kept)})"


def _commit() -> str:
    root = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
