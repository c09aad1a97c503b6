"""What takes long is made once a test run, though pytest-xdist runs it in several processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of this test run that no test may change; the first process that asks for it makes it.

    Args:
        factory: of this process.
        name: of the folder.
        make: fills the folder, which is there and empty.
    """
    run = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent  # each process has a folder of its own in that of the run
    folder, done = run / name, run / f"{name}.done"
    with FileLock(run / f"{name}.lock"):
        if not done.exists():
            folder.mkdir()  # fails where the first one failed
            make(folder)
            done.touch()
    return folder
