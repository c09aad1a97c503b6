"""CURRENT, the file that names the version to serve, and beside it the list of what it named.

A server that cannot use the version of CURRENT stays at, or starts with, one that CURRENT named before. So
that list also says which versions may be in use somewhere, and must not be taken away.
"""

from __future__ import annotations

import logging
from pathlib import Path

from serving.files import number_of, read_small, write_file
from serving.model.bundle import BundleError, is_complete, read_manifest, versions
from serving.model.manifest import Manifest
from serving.model.pinned import require_free

logger = logging.getLogger(__name__)

CURRENT = "CURRENT"
CANARY = "CANARY"  # see `serving.model.canary`
HISTORY = "CURRENT.named"  # versions, one a line, newest first, that of CURRENT included
_REMEMBERED = 16


def point_current(bundles: str | Path, version: int) -> None:
    """Make `version` the one to serve; rollback is pointing at an earlier one. A canary ends with that.

    Raises:
        PinError: another version is pinned.
        OSError: the disk is full or not writable; the version that served before still does.
    """
    bundles = Path(bundles)
    require_free(bundles, version)
    named = [version, *(known for known in named_versions(bundles) if known != version)]
    # First: whoever reads between the two writes finds one version too many, and misses none.
    write_file(bundles / HISTORY, "".join(f"{known}\n" for known in named[:_REMEMBERED]))
    write_file(bundles / CURRENT, f"{version}\n")
    try:
        (bundles / CANARY).unlink(missing_ok=True)
    except OSError as error:  # of no account where CURRENT names another version than before
        logger.warning("a canary that has ended is still named: %s", error)


def read_current(bundles: str | Path, *, verify: bool = True) -> Manifest:
    """Manifest of the version that CURRENT names; see `read_manifest`."""
    return read_manifest(Path(bundles) / str(current_version(bundles)), verify=verify)


def current_version(bundles: str | Path) -> int:
    """The version that CURRENT names.

    Raises:
        BundleError: no such file, or it does not name a complete bundle.
    """
    path = Path(bundles) / CURRENT
    try:
        text = read_small(path, limit=64).decode("ascii", "backslashreplace").removesuffix("\n")
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path}: expected the version to serve, got: {error}; run `make export`"
        ) from error
    version = number_of(text)
    if not version or not is_complete(bundles, version):
        raise BundleError(f"{path}: expected one of the complete versions {versions(bundles)}, got {text!r}")
    return version


def named_versions(bundles: str | Path) -> list[int]:
    """Complete versions that CURRENT names or named, newest first.

    Where the list is missing or damaged, the versions older than that of CURRENT stand in.
    """
    try:
        current = [current_version(bundles)]
    except BundleError:
        current = []
    try:
        named = _history(Path(bundles) / HISTORY)
    except (OSError, ValueError) as error:
        logger.warning("older versions stand in for those that CURRENT named: %s", error)
        named = []
    if not named and current:
        named = [version for version in reversed(versions(bundles)) if version < current[0]]
    found = dict.fromkeys([*current, *named])
    return [version for version in found if is_complete(bundles, version)]


def _history(path: Path) -> list[int]:
    if not path.exists():
        return []
    lines = read_small(path, limit=64 * _REMEMBERED).decode("ascii", "backslashreplace").splitlines()
    numbers = [number for number in map(number_of, lines) if number]
    if len(numbers) != len(lines):
        raise ValueError(f"{path}: expected a version a line, got {lines}")
    return numbers
