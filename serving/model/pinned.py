"""The version that is pinned: while one is, `CURRENT` names no other."""

from __future__ import annotations

from pathlib import Path

from serving.files import number_of, read_small
from serving.model.bundle import BundleError

PINNED = "CURRENT.pinned"  # the version that CURRENT has to name, as long as the file is there


class PinError(BundleError):
    """A version is pinned, and another one was to serve."""


def pinned_version(bundles: Path) -> int | None:
    """The version that is pinned; None where none is.

    Raises:
        PinError: the file does not say which.
    """
    path = bundles / PINNED
    if not path.exists():
        return None
    try:
        text = read_small(path, limit=64).decode("ascii", "backslashreplace").strip()
    except (OSError, ValueError) as error:
        raise PinError(f"{path}: expected the version that is pinned, got: {error}") from error
    version = number_of(text)
    if not version:
        raise PinError(f"{path}: expected the version that is pinned, got {text!r}; remove the file to unpin")
    return version


def require_free(bundles: Path, version: int) -> None:
    """Refuse a version where another one is pinned.

    Raises:
        PinError: one is.
    """
    pinned = pinned_version(bundles)
    if pinned not in (None, version):
        raise PinError(
            f"model version {version}: expected version {pinned}, which is pinned; `python -m export pin "
            "--off` lets others serve"
        )
