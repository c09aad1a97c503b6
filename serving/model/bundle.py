"""Model bundles on disk: a folder of files and the manifest that names every one of them.

A folder of bundles holds one sub-folder a version; `serving.model.current` says which of them serves.
"""

from __future__ import annotations

from pathlib import Path

from serving.files import number_of, read_small, sha256
from serving.model.manifest import Manifest, ManifestError, ManifestFormatError

MANIFEST = "manifest.json"
_MAX_BYTES = 64 << 20


class BundleError(RuntimeError):
    """A bundle is missing, incomplete, corrupted, or of a newer format."""


class BundleFormatError(BundleError):
    """A bundle is whole, but of another release's format."""


def read_manifest(bundle: str | Path, *, verify: bool = True) -> Manifest:
    """Read a bundle's manifest.

    Args:
        bundle: folder of one version.
        verify: compare every file with its sha256, and the list of files with those that are there.

    Raises:
        BundleError: says which file and field, what was expected and what was found.
    """
    bundle = Path(bundle)
    path = bundle / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"bundle {bundle}: expected {MANIFEST}, found none: the bundle is missing or incomplete"
        )
    try:
        manifest = Manifest.parse(read_small(path, limit=_MAX_BYTES))
    except ManifestFormatError as error:
        raise BundleFormatError(f"bundle {bundle}: {MANIFEST}: {error}") from error
    except ManifestError as error:
        raise BundleError(f"bundle {bundle}: {MANIFEST}: {error}") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"bundle {bundle}: {MANIFEST} is not readable: {error}") from error
    number = number_of(bundle.name)
    if number is not None and number != manifest.version:
        raise BundleError(f"bundle {bundle}: expected model_version {number}, got {manifest.version}")
    if verify:
        _check_list(bundle, manifest)
        for name, expected in manifest.sha256.items():
            check_file(bundle, name, expected)
    return manifest


def check_file(folder: Path, name: str, expected: str) -> None:
    """Compare one file, of a bundle for instance, with the sha256 of the manifest.

    Raises:
        BundleError: it is missing, not readable or corrupted.
    """
    file = folder / name
    if not file.is_file():
        raise BundleError(f"bundle {folder}: expected file {name}, found none")
    try:
        actual = sha256(file)
    except OSError as error:
        raise BundleError(f"bundle {folder}: {name}: expected a readable file, got: {error}") from error
    if actual != expected:
        raise BundleError(
            f"bundle {folder}: {name}: expected sha256 {expected[:16]}…, got {actual[:16]}…: "
            "the file is corrupted"
        )


def versions(bundles: str | Path) -> list[int]:
    """Versions with a manifest, ascending."""
    numbers = (number_of(path.parent.name) for path in Path(bundles).glob(f"*/{MANIFEST}"))
    return sorted(number for number in numbers if number)


def is_complete(bundles: str | Path, version: int) -> bool:
    """Whether a version has a manifest."""
    return (Path(bundles) / str(version) / MANIFEST).is_file()


def _check_list(bundle: Path, manifest: Manifest) -> None:
    """A file that the manifest does not name could be anybody's; hidden ones are the file system's."""
    names = (path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file())
    found = {str(name) for name in names if not any(part.startswith(".") for part in name.parts)}
    unknown = sorted(found - manifest.sha256.keys() - {MANIFEST})
    if unknown:
        raise BundleError(
            f"bundle {bundle}: {MANIFEST}: sha256: expected every file, lacks {', '.join(unknown[:5])}"
        )
