"""What every benchmark notes beside its figures."""

from __future__ import annotations

import os
import platform
from typing import Any

from loadtest import machine

PACKAGES = ("numpy", "onnx", "onnxruntime", "torch", "nvidia-pytriton", "transformers", "ctranslate2")


def stamp() -> dict[str, Any]:
    """Hardware, versions and commit, as `{"environment": {...}}`."""
    return {
        "environment": {
            "cpu": machine.processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "versions": machine.versions(PACKAGES),
            "commit": machine.commit(),
        }
    }


def holds(value: float | None, bound: str) -> bool:
    """Whether a figure keeps to a bound, "<= 1.15" or "< 10"; none does not."""
    sign, _, most = bound.partition(" ")
    return value is not None and (value < float(most) or (sign == "<=" and value == float(most)))
