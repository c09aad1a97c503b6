"""One real tritonserver, and a gateway in front of it, for the tests of this folder."""

import pytest

from launcher.triton_server import TritonServer


@pytest.fixture(scope="package")
def server(pipeline):
    """Server of the tiny deployment; it must still be alive when the tests are over."""
    with TritonServer(pipeline.repository) as running:
        yield running
        assert running.poll() is None, f"the server died: {running.log_tail(30)}"
