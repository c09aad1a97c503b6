"""CANARY, the file that names a version which answers a share of the requests, beside that of CURRENT.

It holds for the version that CURRENT named when it was written: once CURRENT names another one, there is no
canary, whether or not the file is still there. So to promote it is to move CURRENT, and nothing of a canary
outlives a publish, a rollback or a kill between two writes.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.files import read_small, write_file
from serving.model.bundle import BundleError, is_complete, versions
from serving.model.current import CANARY, current_version

_Version = Annotated[int, Field(ge=1, lt=1 << 63)]


class Canary(BaseModel):
    """What the file says.

    Attributes:
        version: answers the share.
        beside: that CURRENT named when it began, and that answers the others.
        share: of the requests, in (0, 1).
        began: unix seconds.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    version: _Version
    beside: _Version
    share: Annotated[float, Field(gt=0, lt=1)]
    began: Annotated[float, Field(ge=0)]

    def takes(self, request_id: str | None) -> bool:
        """Whether a request is of the share: by a hash of its id, another one for each canary; never without.

        The hash is keyed: whoever else draws requests by their ids draws others.
        """
        if not request_id:
            return False
        key = b"canary %d" % self.version
        digest = blake2b(request_id.encode(errors="replace"), digest_size=8, key=key).digest()
        return int.from_bytes(digest, "big") < self.share * (1 << 64)


def read_canary(bundles: str | Path) -> Canary | None:
    """The canary there is; None where there is none.

    Raises:
        BundleError: the file is damaged, or names no complete version; or CURRENT does.
    """
    path = Path(bundles) / CANARY
    try:
        content = read_small(path, limit=1024)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: expected the version to try, got: {error}") from error
    try:
        canary = Canary.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise BundleError(f"{path}: {where}: {first['msg']}; remove the file to end the canary") from None
    current = current_version(bundles)
    if canary.beside != current or canary.version == current:
        return None
    if not is_complete(bundles, canary.version):
        raise BundleError(
            f"{path}: expected one of the complete versions {versions(bundles)}, got {canary.version}"
        )
    return canary


def write_canary(bundles: str | Path, canary: Canary | None) -> None:
    """Let a version answer its share from now on, in place of another one; None for no canary.

    Raises:
        OSError: the disk is full or not writable; it is as it was.
    """
    path = Path(bundles) / CANARY
    if canary is None:
        path.unlink(missing_ok=True)
    else:
        write_file(path, canary.model_dump_json() + "\n")
