"""Fixtures of all tests. What they need is imported when a test asks for them: torch alone takes seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.once import made_once

if TYPE_CHECKING:
    from tests.pipeline import Pipeline


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> Pipeline:
    """A tiny deployment that no test may change."""
    from tests.pipeline import Pipeline, build

    return Pipeline.at(made_once(tmp_path_factory, "tiny", build))


@pytest.fixture(scope="session")
def other_graphs(tmp_path_factory) -> Path:
    """Graphs of `tiny_model(seed=5)`, to publish a version that answers otherwise."""
    from export.graphs import export_graphs
    from tests.tiny import tiny_model

    return made_once(tmp_path_factory, "other", lambda folder: export_graphs(tiny_model(seed=5), folder))


@pytest.fixture(scope="session")
def copying_graphs(tmp_path_factory) -> Path:
    """Graphs of `copying_model()`."""
    from export.graphs import export_graphs
    from tests.tiny import copying_model

    return made_once(tmp_path_factory, "copying", lambda folder: export_graphs(copying_model(), folder))


@pytest.fixture(scope="session")
def plain_graphs(tmp_path_factory) -> Path:
    """Graphs of `plain_model()`."""
    from export.graphs import export_graphs
    from tests.tiny import plain_model

    return made_once(tmp_path_factory, "plain", lambda folder: export_graphs(plain_model(), folder))


@pytest.fixture(scope="module")
def no_curves():
    """Training runs of this module draw no pictures: each takes longer than the run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.plots.plot_history", lambda *_: None)
        yield


@pytest.fixture(autouse=True)
def same_priority(monkeypatch):
    """Adapters that are loaded into the process of the tests do not lower its priority."""
    monkeypatch.setattr("serving.backend.priority.SEARCH_NICE", os.getpriority(os.PRIO_PROCESS, 0))
