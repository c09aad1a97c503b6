"""Folder of TensorRT engines, found again by what they were built from.

An engine is two files, `<stem>-<key>.plan` and `<stem>-<key>.json`; the JSON is written last, so a plan
without one is a leftover of a build that did not end. The key is a hash of graph, profile, builder, its
version and the device's compute capability: a change of any is another engine.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from export.profiles import ShapeRange
from serving.files import read_object, sha256, write_file

_CAPABILITY = re.compile(r"\d+\.\d")


class EngineError(RuntimeError):
    """An engine is missing, broken, or of another builder, version or device."""


class Device(NamedTuple):
    """What engines of one builder are for."""

    version: str
    capability: str
    name: str = ""


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is built from.

    Attributes:
        stem: graph, e.g. "tail_2".
        graph_sha256: of its ONNX file.
        profile: ranges of its inputs.
        builder: "tensorrt" or "tensorrt-rtx".
        version: of the builder.
        capability: compute capability of the device, e.g. "8.9".
        device: its model where the builder built on one, "" where it built ahead of time.
    """

    stem: str
    graph_sha256: str
    profile: dict[str, ShapeRange]
    builder: str
    version: str
    capability: str
    device: str = ""

    def __post_init__(self) -> None:
        """Reject a capability that is none."""
        if not _CAPABILITY.fullmatch(self.capability):
            raise ValueError(f'compute capability: expected a form like "8.9", got {self.capability!r}')

    @property
    def key(self) -> str:
        """16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class EngineFolder:
    """Engines on disk."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read or made yet."""
        self.folder = folder

    def path(self, spec: EngineSpec) -> Path:
        """Where the plan of `spec` lies, or will."""
        return self.folder / f"{spec.stem}-{spec.key}.plan"

    def find(self, spec: EngineSpec) -> dict[str, Any] | None:
        """Description of an engine that is whole, None where there is none.

        Raises:
            EngineError: the plan is not the one that was written.
        """
        path = self.path(spec)
        if not path.with_suffix(".json").exists():
            return None
        content = _description(path.with_suffix(".json"))
        if not path.is_file() or sha256(path) != content["plan_sha256"]:
            raise EngineError(
                f"{path}: expected the engine that was built (sha256 {content['plan_sha256'][:12]}..), got "
                "another or none; delete both files and build again"
            )
        return content

    def save(self, spec: EngineSpec, plan: bytes, *, details: dict[str, Any]) -> dict[str, Any]:
        """Write an engine, whole or not at all.

        Raises:
            EngineError: it cannot be written (disk full); nothing is left behind.
        """
        path = self.path(spec)
        description = {
            **asdict(spec),
            "plan_bytes": len(plan),
            "plan_sha256": hashlib.sha256(plan).hexdigest(),
            **details,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
        try:
            write_whole(path, plan)
            write_whole(path.with_suffix(".json"), json.dumps(description, indent=1).encode())
        except EngineError:
            for part in (path, path.with_suffix(".json")):  # one without the other is of no use to anybody
                part.unlink(missing_ok=True)
            raise
        return description

    def only(self, builder: str) -> Device:
        """What the engines of a builder are for.

        Raises:
            EngineError: there are none, or engines of several versions or devices.
        """
        kinds = set()
        for file in sorted(self.folder.glob("*-*.json")):
            content = _description(file)
            if content["builder"] == builder:
                kinds.add(Device(content["version"], content["capability"], content["device"]))
        if len(kinds) != 1:
            listed = ", ".join(f"{d.version} for {d.name or d.capability}" for d in sorted(kinds)) or "none"
            raise EngineError(
                f"{self.folder}: expected engines of builder {builder} of one version for one device, found "
                f"{listed}; build them with `python -m export.tensorrt --builder {builder}` on the GPU host, "
                "inside the Triton container that will run them"
            )
        return kinds.pop()

    def require(self, spec: EngineSpec) -> Path:
        """Plan of `spec`.

        Raises:
            EngineError: says what is there instead, and how to build it.
        """
        if self.find(spec) is not None:
            return self.path(spec)
        others = []
        for file in sorted(self.folder.glob(f"{spec.stem}-*.json")):
            try:
                other = _description(file)
            except EngineError:
                continue
            wanted = asdict(spec)
            others += [
                f"{file.name} has {name} {str(other.get(name))[:40]}, expected {str(wanted[name])[:40]}"
                for name in ("builder", "version", "capability", "device", "graph_sha256")
                if other.get(name) != wanted[name]
            ][:1] or [f"{file.name} has other profiles (widths or limits of section `serving` changed)"]
        found = "; ".join(others) or "none"
        raise EngineError(
            f"{self.folder}: expected an engine of {spec.stem} by {spec.builder} {spec.version} for compute "
            f"capability {spec.capability}, found: {found}; build it with `python -m export.tensorrt`"
        )


def _description(path: Path) -> dict[str, Any]:
    try:
        content = read_object(path)
        missing = {"plan_sha256", *EngineSpec.__dataclass_fields__} - content.keys()
        if missing:
            raise ValueError(f"expected the description of an engine, lacks {sorted(missing)}")
    except (OSError, ValueError) as error:
        raise EngineError(f"{path}: not readable: {error}; delete it") from error
    return content


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        EngineError: it cannot be written.
    """
    try:
        write_file(path, content)
    except OSError as error:
        raise EngineError(f"{path}: {len(content):,} bytes cannot be written: {error}") from error
