"""Model bundles as the server reads them: without `manifest.json` there is no bundle.

A folder of bundles holds one sub-folder a version and the file CURRENT, which names the version to serve.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving.files import sha256
from serving.model.features import FeatureSpec

FORMAT_VERSION = 2  # goes up when tensors of the graphs change their names or shapes
MANIFEST = "manifest.json"
CURRENT = "CURRENT"


class BundleError(RuntimeError):
    """A bundle is missing, incomplete, corrupted, or of a newer format."""


class BundleFormatError(BundleError):
    """A bundle is whole, but of another release's format."""


@dataclass(frozen=True)
class Manifest:
    """What serving needs to know of a bundle.

    Attributes:
        version: model version, a positive integer; Triton's version of the graphs.
        tokenizer_id: tokenizer whose SIDs the model speaks.
        level_sizes: V_1 .. V_T.
        features: context of a request.
        value_table: float32 [V_value], mean eCPM of each value bucket.
        profile_columns: categories of each profile column; code 0 is unknown, code i is category i - 1.
        content: the whole manifest.
    """

    version: int
    tokenizer_id: str
    level_sizes: tuple[int, ...]
    features: FeatureSpec
    value_table: np.ndarray
    profile_columns: dict[str, tuple[str, ...]]
    content: dict[str, Any]

    @property
    def levels(self) -> int:
        """SID levels T."""
        return len(self.level_sizes)

    @property
    def precision(self) -> str:
        """Precision of the graphs: "fp32", "int8"."""
        return str(self.content.get("precision", "fp32"))


def read_manifest(bundle: str | Path, *, verify: bool = True) -> Manifest:
    """Read a bundle's manifest.

    Args:
        bundle: folder of one version.
        verify: compare the sha256 of every file.

    Raises:
        BundleError: says which file, what was expected and what was found.
    """
    bundle = Path(bundle)
    path = bundle / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"bundle {bundle}: expected {MANIFEST}, found none: the bundle is missing or incomplete"
        )
    try:
        content = json.loads(path.read_text())
        found = content["format_version"]
        if type(found) is not int or found != FORMAT_VERSION:
            raise BundleFormatError(
                f"bundle {bundle}: expected format_version {FORMAT_VERSION}, got {found!r}; "
                "another release made it: export the model again with this one"
            )
        manifest = Manifest(
            version=int(content["model_version"]),
            tokenizer_id=str(content["tokenizer_id"]),
            level_sizes=tuple(content["level_sizes"]),
            features=FeatureSpec.from_json(content["features"]),
            value_table=np.asarray(content["value_means"], np.float32),
            profile_columns={k: tuple(v) for k, v in content["profile_columns"].items()},
            content=content,
        )
        files = dict(content["sha256"])
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"bundle {bundle}: {MANIFEST} is not readable: {type(error).__name__}: {error}"
        ) from error
    if bundle.name.isdigit() and int(bundle.name) != manifest.version:
        raise BundleError(f"bundle {bundle}: expected model_version {bundle.name}, got {manifest.version}")
    for name, expected in files.items() if verify else ():
        check_file(bundle, name, expected)
    return manifest


def check_file(bundle: Path, name: str, expected: str) -> None:
    """Compare one file of a bundle with the sha256 of the manifest.

    Raises:
        BundleError: it is missing or corrupted.
    """
    file = bundle / name
    if not file.is_file():
        raise BundleError(f"bundle {bundle}: expected file {name}, found none")
    actual = sha256(file)
    if actual != expected:
        raise BundleError(
            f"bundle {bundle}: {name}: expected sha256 {expected[:16]}…, got {actual[:16]}…: "
            "the file is corrupted"
        )


def versions(bundles: str | Path) -> list[int]:
    """Versions with a manifest, ascending."""
    return sorted(int(p.parent.name) for p in Path(bundles).glob(f"*/{MANIFEST}") if p.parent.name.isdigit())


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
        text = path.read_text().strip()
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path}: expected the version to serve, got: {error}; run `make export`"
        ) from error
    if not text.isdigit() or int(text) not in versions(bundles):
        raise BundleError(f"{path}: expected one of the complete versions {versions(bundles)}, got {text!r}")
    return int(text)
