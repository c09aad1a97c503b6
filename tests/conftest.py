"""Fixtures of all tests."""

import pytest

from tests.pipeline import Pipeline, build


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> Pipeline:
    """A tiny deployment that no test may change."""
    return build(tmp_path_factory.mktemp("tiny"))
