"""What candidate lists on disk are: who searched, in whose SIDs, how many requests in how many shards."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from serving.files import read_object, write_file

ABOUT = "about.json"

FORMAT = 2  # 1 gave a beam the ad of its SID that was bought, so rewards knew of the outcome


class ListStoreError(ValueError):
    """Stored lists are missing, damaged, or of another tokenizer or model than they are asked for."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What stored lists are.

    Attributes:
        weights: sha256 of the weights that searched; `log_p_ref` is theirs.
        tokenizer_id: whose SIDs they are.
        level_sizes: codes of each level.
        contexts: requests of all shards together.
        per_shard: requests of a shard; the last one may have fewer.
        inputs: everything that they were made from, by name, see `serving.inputs.Inputs.values`.
    """

    weights: str
    tokenizer_id: str
    level_sizes: tuple[int, ...]
    contexts: int
    per_shard: int
    inputs: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read it.

        Raises:
            ListStoreError: there is none, or it is not what this release writes.
        """
        path = folder / ABOUT
        try:
            content = read_object(path)
            if content.pop("format") != FORMAT:
                raise ValueError(f"expected format {FORMAT}")
            about = cls(**{**content, "level_sizes": tuple(map(int, content["level_sizes"]))})
            if about.contexts < 0 or about.per_shard < 1 or min(about.level_sizes) < 1:
                raise ValueError(f"expected counts and sizes that can be, got {content}")
        except FileNotFoundError as error:
            raise ListStoreError(
                f"{path}: expected candidate lists, got no such file: make rollout"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ListStoreError(f"{path}: expected what a roll-out writes: {error}") from error
        return about

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        write_file(folder / ABOUT, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    @property
    def shards(self) -> int:
        """How many."""
        return -(-self.contexts // self.per_shard)

    def rows(self, shard: int) -> range:
        """Requests of a shard."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, self.contexts))
