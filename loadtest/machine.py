"""The machine that figures were measured on, and the code that was measured."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16")


def processor() -> str:
    """Model of the CPU, and its instructions that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    has = values.get("flags", "").split()
    return f"{values.get('model name', 'unknown')} ({', '.join(flag for flag in _FLAGS if flag in has)})"


def commit() -> str:
    """Commit of this checkout, "-dirty" behind it where files differ; "unknown" without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
