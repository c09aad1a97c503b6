"""One real tritonserver, and a gateway in front of it, for the tests of this folder."""

import pytest

from launcher.triton_server import TritonServer
from tests.gateway_process import running_gateway


@pytest.fixture(scope="package")
def server(pipeline):
    """Server of the tiny deployment; it must still be alive when the tests are over."""
    with TritonServer(pipeline.repository) as running:
        yield running
        assert running.poll() is None, f"the server died: {running.log_tail(30)}"


@pytest.fixture(scope="package")
def gateway(server):
    """Gateway of that server; it must still be alive when the tests are over."""
    with running_gateway(server.grpc_url, "--triton-metrics", server.metrics_url) as running:
        yield running
        assert running.process.poll() is None, "the gateway died"
