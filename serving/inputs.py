"""What a step was made from, kept beside its output: so it knows whether it is up to date, and if not, why.

Content counts, not time: a file is told by its sha256. A file whose size and times are those of the last look
is not read again. (The footer of a Parquet file would be cheaper still, but two files can share one.)

A step removes the record before it touches its output, and writes the new one when all of it is there: what
was killed in between has none, and is made again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from serving.files import read_object, sha256, write_file

RECORD = "inputs.json"

_FORMAT = 1
# A file can change twice within a tick of its clock; once it is this old, a change gives it another time.
_SETTLED_NS = 2 * 10**9
_NAMED = 6  # changes that a message names


@dataclass(frozen=True)
class Inputs:
    """Inputs of one run of a step.

    Attributes:
        values: JSON values by name; of a file its sha256.
        stamps: size, time of the last change and of the last move (ns) of files that need not be read again.
    """

    values: dict[str, Any]
    stamps: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def now(
        cls,
        values: Mapping[str, Any],
        *,
        files: Mapping[str, Path] | None = None,
        before: Self | None = None,
    ) -> Self:
        """Inputs as they are now.

        Args:
            values: settings by name, see `named`.
            files: files by name.
            before: the last record, whose digests are taken for files that were not touched since.

        Raises:
            OSError: a file cannot be read.
        """
        found, stamps = json.loads(json.dumps(dict(values))), {}
        for name, path in (files or {}).items():
            look = time.time_ns()
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            if before and name in before.values and before.stamps.get(name) == stamp:
                found[name] = before.values[name]
            else:
                found[name] = sha256(path)
            if max(stamp[1:]) + _SETTLED_NS < look:
                stamps[name] = stamp
        return cls(found, stamps)

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Read a record; None where there is none that this release reads."""
        try:
            content = read_object(path)
            if content["format"] != _FORMAT:
                return None
            return cls(dict(content["values"]), dict(content["stamps"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, path: Path) -> None:
        """Write the record, whole or not at all.

        Raises:
            OSError: the disk is full or not writable.
        """
        content = {"format": _FORMAT, "values": self.values, "stamps": self.stamps}
        write_file(path, json.dumps(content, indent=1) + "\n")


def named(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a section by their full names: `data.split.by`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{section}.{key}"
        found |= named(name, value) if isinstance(value, Mapping) else {name: value}
    return found


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, each as `name old -> new`; of content a few digits of its digest."""
    found = []
    for name in dict.fromkeys((*before, *now)):
        if name not in now:
            found.append(f"{name} is gone")
        elif name not in before:
            found.append(f"{name} is new")
        elif before[name] != now[name]:
            found.append(f"{name} {_short(before[name])} -> {_short(now[name])}")
    return found


def summary(changed: list[str]) -> str:
    """The first few of `changes`."""
    more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    return ", ".join(changed[:_NAMED]) + more


def is_up_to_date(record: Path, inputs: Inputs, *, outputs: Iterable[Path], fresh: bool = False) -> bool:
    """Whether what a step makes is there, made from these inputs; says so, or why it is made again.

    Args:
        record: where the step keeps its record.
        inputs: as they are now.
        outputs: files without which there is no output.
        fresh: it is to be made again, whatever there is.
    """
    missing = [path.name for path in outputs if not path.exists()]
    before = Inputs.load(record)
    if before is None:
        if not missing:
            print(f"{record.parent}: no record of what it was made from; making it again", flush=True)
        return False
    changed = changes(before.values, inputs.values) + [f"{name} is gone" for name in missing]
    if changed:
        print(f"{record.parent}: out of date: {summary(changed)}", flush=True)
    elif not fresh:
        print(f"{record.parent}: up to date", flush=True)
        return True
    return False


def _short(value: Any) -> str:
    text = str(value)
    return text[:8] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
