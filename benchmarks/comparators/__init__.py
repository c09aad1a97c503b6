"""What the speed benchmark compares with; packages it needs beyond requirements.lock are optional."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingComparatorError(RuntimeError):
    """A comparator's package is not installed."""


def require(package: str) -> ModuleType:
    """Import an optional package.

    Raises:
        MissingComparatorError: it is not installed; the text says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingComparatorError(
            f"this comparator needs {package} (missing module: {error.name}): "
            "pip install --no-deps -r requirements-bench.txt"
        ) from error
