"""Versions of a model: which are there, which is pinned, which one a rollback goes to, which may go."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from export.verdicts import read_verdicts
from serving.files import locked, write_file
from serving.index.layout import ready_generations
from serving.model.bundle import BundleError, is_complete, read_manifest, versions
from serving.model.canary import Canary, read_canary, write_canary
from serving.model.current import current_version, named_versions
from serving.model.pinned import PINNED, pinned_version

LOCK = ".publish.lock"  # in the folder of bundles: one publisher at a time


def pin(bundles: Path, version: int | None) -> None:
    """Pin a version, or none: publishes and rollbacks to others are refused until then. It ends a canary.

    Raises:
        BundleError: there is no such version.
        OSError: the disk is full or not writable; it is as it was.
    """
    with locked(bundles / LOCK):
        if version is None:
            (bundles / PINNED).unlink(missing_ok=True)
        elif not is_complete(bundles, version):
            raise BundleError(f"{bundles}: expected one of the versions {versions(bundles)}, got {version}")
        else:
            write_canary(bundles, None)
            write_file(bundles / PINNED, f"{version}\n")


def canary_of(bundles: Path) -> Canary | None:
    """The canary there is; None for none, also where a file that is damaged names it: servers have none."""
    try:
        return read_canary(bundles)
    except BundleError:
        return None


def version_before(bundles: Path) -> int:
    """The newest version that served before the one that serves, and is older.

    Raises:
        BundleError: there is none.
    """
    current = current_version(bundles)
    older = [version for version in named_versions(bundles) if version < current]
    if not older:
        raise BundleError(f"{bundles}: expected a version that served before {current}, found none")
    return max(older)


def remove_superseded(bundles: Path, *, index: Path, kept: int) -> list[int]:
    """Remove versions that are not among the last, do not serve, are not pinned, and that nobody needs.

    A server stays at the newest version that CURRENT named and whose tokenizer is ready in its index; the
    sidecar needs one version of each of these tokenizers.

    Args:
        bundles: folder of bundles.
        index: folder of the index.
        kept: how many of the last ones stay.

    Returns:
        What was removed.

    Raises:
        IndexStoreError: the index does not say which tokenizers are ready.
        OSError: one could not be removed.
    """
    with locked(bundles / LOCK):
        there, ready = versions(bundles), ready_generations(index)
        canary = canary_of(bundles)
        stay = {*there[-kept:], pinned_version(bundles), canary and canary.version}
        for version in named_versions(bundles):
            stay.add(version)
            if _tokenizer(bundles, version) in ready:
                break
        # The sidecar encodes new ads with the newest bundle of each tokenizer that the index has.
        newest = {_tokenizer(bundles, version): version for version in there}
        stay |= {version for tokenizer, version in newest.items() if tokenizer in ready}
        for leftover in bundles.glob(".*.gone"):
            shutil.rmtree(leftover)
        gone = [version for version in there if version not in stay]
        for version in gone:
            folder = bundles / str(version)
            aside = folder.with_name(f".{version}.gone")  # half of a version must not look like one
            folder.rename(aside)
            shutil.rmtree(aside)
    return gone


def listed(bundles: Path) -> list[dict[str, Any]]:
    """A row for each version, oldest first: what it is made of, how good, and whether it serves.

    Returns:
        `version`, `step`, `precision`, `base` (of a refit; None of an export), `recall50` (of a refit's gate;
        None where it had none), `seconds` (that it took), `state`: any of "serves", "served", "pinned",
        "canary: .. of the requests", "promoted: ..", "rolled back: ..", "damaged: ..".
    """
    canary, verdicts = canary_of(bundles), {v.version: v for v in read_verdicts(bundles)}
    named, pinned, rows = named_versions(bundles), pinned_version(bundles), []
    try:
        current = current_version(bundles)
    except BundleError:
        current = None
    for version in versions(bundles):
        marks = ["serves"] if version == current else ["served"] if version in named else []
        marks += ["pinned"] if version == pinned else []
        if canary is not None and version == canary.version:
            marks.append(f"canary: {canary.share:.3g} of the requests")
        elif version in verdicts:
            marks.append(f"{verdicts[version].verdict}: {verdicts[version].reason}")
        try:
            manifest = read_manifest(bundles / str(version), verify=False)
        except BundleError as error:
            rows.append({"version": version, "state": f"damaged: {error}"})
            continue
        refit = manifest.refit or {}
        rows.append(
            {
                "version": version,
                "step": manifest.step,
                "precision": manifest.precision,
                "base": refit.get("base"),
                "recall50": refit.get("recall50", (None, None))[1],
                "seconds": manifest.export_seconds,
                "state": ", ".join(marks),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of `listed` as text."""
    names = ("version", "step", "precision", "base", "recall50", "seconds", "state")
    lines = [names, *(tuple(_cell(row.get(name)) for name in names) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _tokenizer(bundles: Path, version: int) -> str | None:
    try:
        return read_manifest(bundles / str(version), verify=False).tokenizer_id
    except BundleError:
        return None
