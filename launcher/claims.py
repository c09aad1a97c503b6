"""Which prefixes of shared memory have an owner: what a launcher left that was killed, the next removes."""

from __future__ import annotations

import contextlib
import fcntl
import os

from launcher.stubs import SHM, remove_leftovers

_NAME = "gr4ad-launcher-"


class Claim:
    """Says that a prefix has an owner: a lock that is gone with its process, however that ends."""

    def __init__(self, shm_prefix: str) -> None:
        """Claims it."""
        self._path = SHM / f"{_NAME}{shm_prefix}"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def release(self) -> None:
        """Gives it back."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)


def remove_what_the_dead_left() -> None:
    """Removes regions and stubs of every prefix whose owner is gone. Other users' are theirs to remove."""
    for path in SHM.glob(f"{_NAME}*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_leftovers(path.name.removeprefix(_NAME))
                path.unlink()
            finally:
                os.close(file)
