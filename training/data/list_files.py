"""Which files lie in a folder of candidate lists, and what a roll-out may remove of it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from serving.inputs import RECORD
from training.data.list_about import ABOUT, About, ListStoreError

_ID = re.compile("[A-Za-z0-9_-]{1,64}", re.ASCII)
_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]+", re.ASCII)
_SHARD = r"part-\d{5,}\.parquet"
_OWN = re.compile(  # what a roll-out leaves in a folder; `.x.new` is half of a file, of a run that was killed
    rf"{_SHARD}|{re.escape(ABOUT)}|{re.escape(RECORD)}"
    rf"|\.({_SHARD}|{re.escape(ABOUT)}|{re.escape(RECORD)})\.new|rewards\.{_ID.pattern}",
    re.ASCII,
)


def part_of(folder: Path, shard: int) -> Path:
    """File of a shard, of lists or of their rewards."""
    return folder / f"part-{shard:05d}.parquet"


def rewards_of(folder: Path, reward: str) -> Path:
    """Folder of the rewards of lists.

    Args:
        folder: of the lists.
        reward: id of the reward model.

    Raises:
        ValueError: the id is no name of a folder.
    """
    if not _ID.fullmatch(reward):
        raise ValueError(f"expected an id of 1..64 letters, digits, - and _, got {reward!r}")
    return folder / f"rewards.{reward}"


def check_name(name: str) -> str:
    """The name of a folder of lists, as it is.

    Raises:
        ValueError: it could lead out of the folder that holds all of them.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name of lists: expected letters, digits, -, _ and ., but for . and .. alone, got {name!r}"
        )
    return name


def files_of(folder: Path) -> list[Path]:
    """Files without which the lists of a folder are not all there, but for their rewards."""
    try:
        shards = About.load(folder).shards
    except ListStoreError:
        shards = 0
    return [folder / ABOUT, *(part_of(folder, shard) for shard in range(shards))]


def remove_lists(folder: Path) -> None:
    """Remove what a roll-out left in a folder.

    Raises:
        ListStoreError: it holds anything else, so it is no folder of lists; everything is as it was.
        OSError: something cannot be removed.
    """
    there = sorted(folder.iterdir()) if folder.exists() else []
    other = [path.name for path in there if not _OWN.fullmatch(path.name)]
    if other:
        raise ListStoreError(
            f"{folder}: expected a folder of candidate lists alone, got {', '.join(other[:3])} in it; give "
            "another name"
        )
    (folder / ABOUT).unlink(missing_ok=True)  # first: without it nothing else there is read
    for path in there:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
