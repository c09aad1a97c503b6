"""What following a version asks of whoever runs its graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from serving.model.manifest import Manifest

Prepare = Callable[[Manifest], None]


class Graphs(Protocol):
    """Graphs of every version that may answer."""

    def files(self, manifest: Manifest) -> dict[Path, str]:
        """Files outside the bundle that a version is made of, and the sha256 that each must have.

        Raises:
            BundleError: nothing says what they must be.
        """
        ...

    def is_loaded(self, manifest: Manifest) -> bool:
        """Whether a version's graphs are there; asked between batches, so it must be quick."""
        ...

    @property
    def prepare(self) -> Prepare | None:
        """What is slow, each time before a version takes over; called in a thread beside the batches.

        It raises BundleError where the version is of no use. None for nothing.
        """
        ...

    def probe(self, manifest: Manifest) -> None:
        """Run the graphs of a version that is loaded once, between batches.

        Raises:
            BundleError: they fail, or compute something else than the manifest says.
        """
        ...
