"""Model versions that a folder of bundles has, and which of them CURRENT and CANARY name."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from serving.model.bundle import MANIFEST, BundleError, versions
from serving.model.canary import read_canary
from serving.model.current import current_version, named_versions

_MOST = 16  # of the newest


class Versions(BaseModel):
    """The folder as it is.

    Attributes:
        current: version that CURRENT names; None where it names none that is whole.
        problem: why it names none; or why there is no canary.
        made: when each version was written, unix seconds, the newest 16.
        named: versions that CURRENT names or named, newest first.
        canary: version that answers a share of the requests; None where there is none.
        canary_share: of the requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    current: int | None = None
    problem: str | None = None
    made: dict[int, float] = {}
    named: list[int] = []
    canary: int | None = None
    canary_share: float | None = None


def read_versions(bundles: Path) -> Versions:
    """Look at the folder; nothing of a bundle but its manifest's time is read.

    Raises:
        OSError: there is no such folder, or it cannot be read.
    """
    if not bundles.is_dir():
        raise FileNotFoundError(f"{bundles}: expected the folder of bundles, found none")
    made = {
        version: (bundles / str(version) / MANIFEST).stat().st_mtime for version in versions(bundles)[-_MOST:]
    }
    try:
        found = Versions(current=current_version(bundles), made=made, named=named_versions(bundles))
    except BundleError as error:
        return Versions(problem=str(error), made=made)
    try:
        canary = read_canary(bundles)
    except BundleError as error:
        return found.model_copy(update={"problem": str(error)})
    if canary is None:
        return found
    return found.model_copy(update={"canary": canary.version, "canary_share": canary.share})
