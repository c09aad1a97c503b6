"""Fixtures of all tests."""

import pytest

from tests.pipeline import Pipeline, build


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> Pipeline:
    """A tiny deployment that no test may change."""
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def no_curves():
    """Training runs of this module draw no pictures: each takes longer than the run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.plots.plot_history", lambda *_: None)
        yield
