"""1,000 malformed requests from a seeded generator: no crash, no hang, an error or a right answer to each."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
from tritonclient.utils import InferenceServerException

from examples.client import send
from launcher.triton_server import TritonServer
from tests.malformed import generate
from tests.malformed_run import run
from tests.malformed_sender import Outcome, Sender
from tests.malformed_tensors import Case, Tensor, overflows
from tests.serving.ask import LIVE, Reference, assert_same, request
from tests.tiny import LEVEL_SIZES
from tests.waiting import wait_until

COUNT, TIMEOUT_S = 1_000, 10.0
OUTPUTS = {
    "ad_ids",
    "ad_keys",
    "scores",
    "expected_value",
    "sids",
    "model_version",
    "index_version",
    "beam_widths",
    "degraded",
    "ignored_history",
}


def _good(seed: int) -> dict[str, np.ndarray]:
    return request(history=seed % 20, exclude=LIVE[: seed % 5].tolist(), num_ads=1 + seed % 40, seed=seed)


def _stubs(server) -> set[int]:
    return {child.pid for child in psutil.Process(server.pid).children(recursive=True)}


def _all_models_ready(server) -> bool:
    return all(version.state == "READY" for version in server.admin.versions())


def _assert_fits_the_contract(case: Case, outcome: Outcome) -> None:
    """A fault need not make a request invalid (an unknown ad): then the answer must be right."""
    if case.model != "gr4ad" or not outcome.outputs:
        return  # inner models have no contract with clients; GET /v2 answers with a text
    found = outcome.outputs
    assert set(found) <= OUTPUTS, case.fault
    if set(found) < OUTPUTS:
        return  # only some were asked for
    asked = next(np.frombuffer(t.data, "<i4") for t in case.tensors if t.name == "num_ads")
    excluded = next(
        (
            np.frombuffer(t.data, "<i8").reshape(len(asked), -1)
            for t in case.tensors
            if t.name == "exclude_ad_ids"
        ),
        np.zeros((len(asked), 0), np.int64),
    )
    assert (
        found["ad_ids"].shape
        == found["scores"].shape
        == found["expected_value"].shape
        == (len(asked), asked.max())
    )
    assert found["ad_keys"].shape == found["ad_ids"].shape
    assert set(found["ad_keys"].ravel()) == {b""}  # the ads of this deployment are numbers
    assert found["sids"].shape == (len(asked), asked.max(), len(LEVEL_SIZES))
    for row, num_ads in enumerate(asked):
        allowed = np.setdiff1d(LIVE, excluded[row])
        ads = found["ad_ids"][row]
        count = min(num_ads, len(allowed))
        assert np.isin(ads[:count], allowed).all(), case.fault
        assert len(np.unique(ads[:count])) == count
        assert (ads[count:] == -1).all()
        assert (np.diff(found["scores"][row][:count]) <= 0).all()
    assert np.isfinite(found["scores"]).all()
    assert np.isfinite(found["expected_value"]).all()


@pytest.mark.parametrize("seed", [0])
def test_malformed_requests_do_no_harm(server, pipeline, seed):
    reference, tensors = (
        Reference.of(pipeline),
        request(history=9, num_ads=11, exclude=LIVE[:3].tolist(), seed=99),
    )
    expected = reference.answer(tensors)
    stubs = _stubs(server)
    assert stubs, "no stub processes found: the check below would be empty"
    sender = Sender(grpc_url=server.grpc_url, http_url=server.http_url, timeout_s=TIMEOUT_S)
    host, port = server.http_url.split(":")

    def check_good() -> None:
        assert_same(send(server.grpc_url, tensors), expected)
        assert_same(send(server.http_url, tensors, protocol="http"), expected)

    began = time.monotonic()
    found = run(
        generate(seed, COUNT, good=_good),
        sender,
        processes=lambda: (server.poll(), server.pid, server.gateway.poll()),
        check=_assert_fits_the_contract,
        check_good=check_good,
        slow_to=(host, int(port)),
    )
    sender.close()
    print(f"\n{COUNT} malformed requests in {time.monotonic() - began:.0f} s: {found}")
    assert not found.deaths, server.log_tail(10)
    assert not found.hangs
    assert not found.wrong
    assert found.requests == COUNT
    assert found.kinds["error"] > COUNT / 2
    assert found.kinds["valid"] > 10  # otherwise the check of valid answers shows nothing
    assert _stubs(server) == stubs, "a stub process died and was restarted"
    assert _all_models_ready(server)
    assert_same(send(server.grpc_url, tensors), expected)


@pytest.fixture(scope="module")
def expendable(pipeline):
    """A server whose processes die and come back."""
    with TritonServer(pipeline.repository) as running:
        yield running


def test_a_shape_that_overflows_harms_for_seconds_only(expendable):
    """Triton 24.10 checks sizes in 64 bits that overflow, and its stub dies; the launcher brings it back."""
    tensors = [Tensor.of(n, v) for n, v in request(history=0).items()]
    case = Case("overflow", "grpc", tuple(replace(t, shape=(1, 2**62)) if not t.data else t for t in tensors))
    assert any(map(overflows, case.tensors))
    sender = Sender(grpc_url=expendable.grpc_url, http_url=expendable.http_url, timeout_s=TIMEOUT_S)
    stubs = _stubs(expendable)
    sender.send(case)
    sender.close()

    def recovered() -> bool:
        return _stubs(expendable) != stubs and _all_models_ready(expendable) and _answers(expendable)

    wait_until(recovered, timeout_s=30, every_s=0.1, what="other processes that answer")


def _answers(server) -> bool:
    try:
        return bool((send(server.grpc_url, request())["ad_ids"] >= 0).all())
    except InferenceServerException:
        return False


def test_the_generator_is_seeded():
    cases = [list(generate(seed, 50, good=_good)) for seed in (3, 3, 4)]
    assert cases[0] == cases[1]
    assert cases[0] != cases[2]
    assert len({case.fault for case in cases[0]}) > 15
