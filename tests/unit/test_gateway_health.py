"""Readiness by a probe: what is sent, how often, and what counts as an answer."""

import asyncio

import numpy as np
import pytest
from tritonclient.grpc.service_pb2 import ModelInferResponse, ModelMetadataResponse

from gateway.health import Probe, cheapest_request, is_gr4ad
from gateway.triton import TritonError

OVERLOADED = TritonError(503, "overloaded: 9 requests wait, 3 can be answered in time", reached=True)
GONE = TritonError(503, "Request for unknown model: 'gr4ad' has no available versions", reached=True)


def metadata(*, profile: int = 4, levels: int = 3) -> ModelMetadataResponse:
    made = ModelMetadataResponse(name="gr4ad")
    for name, datatype, shape in (
        ("history_ad_ids", "INT64", (-1, -1)),
        ("history_behaviors", "INT32", (-1, -1)),
        ("history_timestamps", "INT64", (-1, -1)),
        ("profile", "INT32", (-1, profile)),
        ("num_ads", "INT32", (-1, 1)),
        ("timestamp", "INT64", (-1, 1)),
    ):
        made.inputs.add(name=name, datatype=datatype, shape=shape)
    made.outputs.add(name="ad_ids", datatype="INT64", shape=(-1, -1))
    made.outputs.add(name="sids", datatype="INT32", shape=(-1, -1, levels))
    return made


class FakeTriton:
    """Answers, or raises, as a test says."""

    def __init__(self, *, known: ModelMetadataResponse | None = None) -> None:
        self.known = metadata() if known is None else known
        self.error: TritonError | None = None
        self.seconds, self.ready, self.probes = 0.0, True, []

    async def model_metadata(self, model, version=""):
        if self.error is not None and not self.error.reached:
            raise self.error
        return self.known

    async def model_ready(self, model, version=""):
        return self.ready

    async def infer(self, request, *, timeout_s):
        self.probes.append(request)
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return ModelInferResponse()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_cheapest_request_fits_any_deployment():
    for profile, levels in ((4, 3), (1, 5)):
        request = cheapest_request(metadata(profile=profile, levels=levels))
        found = {
            tensor.name: np.frombuffer(raw, "<i4" if tensor.datatype == "INT32" else "<i8").reshape(
                tensor.shape
            )
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        assert {name: values.shape for name, values in found.items()} == {
            "history_ad_ids": (1, 0),
            "history_behaviors": (1, 0),
            "history_timestamps": (1, 0),
            "profile": (1, profile),
            "num_ads": (1, 1),
        }
        assert found["num_ads"].item() == 1
        assert not found["profile"].any()
        assert request.parameters["widths"].string_param == {3: "1-1-1:1", 5: "1-1-1-1-1:1"}[levels]
        assert request.parameters["cache"].string_param == "bypass"


def test_many_who_ask_are_one_probe_a_second():
    async def scenario():
        triton, clock = FakeTriton(), Clock()
        triton.seconds = 0.01
        probe = Probe(triton, "gr4ad", clock=clock)
        found = await asyncio.gather(*(probe.health() for _ in range(200)))
        assert all(health.ready for health in found)
        assert len(triton.probes) == 1
        clock.now += 0.9
        await probe.health()
        assert len(triton.probes) == 1
        clock.now += 0.2
        await probe.health()
        assert len(triton.probes) == 2

    asyncio.run(scenario())


def test_who_gives_up_asking_does_not_take_the_answer_from_others():
    async def scenario():
        triton = FakeTriton()
        triton.seconds = 0.05
        probe = Probe(triton, "gr4ad")
        first = asyncio.create_task(probe.health())
        await asyncio.sleep(0.01)
        second = asyncio.create_task(probe.health())
        await asyncio.sleep(0.01)
        first.cancel()
        assert (await second).ready

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "error",
    [
        GONE,
        TritonError(500, "Stub process 'gr4ad_0_0' is not healthy.", reached=True),
        TritonError(503, "Triton is away or restarting: connection refused", reached=False),
        TritonError(504, "Triton did not answer in time", reached=False),
    ],
    ids=["no version", "dead stub", "away", "late"],
)
def test_a_failed_probe_is_not_ready_and_says_why(error):
    async def scenario():
        triton, clock = FakeTriton(), Clock()
        probe = Probe(triton, "gr4ad", clock=clock)
        assert (await probe.health()).ready
        triton.error = error
        probe.answered()  # the answer of another request a moment ago does not help
        clock.now += 1.1
        health = await probe.health()
        assert not health.ready
        assert health.reason == f"gr4ad: {error.message}"
        triton.error = None
        clock.now += 1.1
        assert (await probe.health()).ready

    asyncio.run(scenario())


def test_one_dead_process_of_two_is_no_reason_to_say_no():
    async def scenario():
        triton = FakeTriton()
        answer, failed = triton.infer, []

        async def infer(request, *, timeout_s):
            if not failed:
                failed.append(request)
                raise GONE
            return await answer(request, timeout_s=timeout_s)

        triton.infer = infer
        assert (await Probe(triton, "gr4ad", clock=Clock()).health()).ready
        assert failed

    asyncio.run(scenario())


@pytest.mark.parametrize("others", [True, False])
def test_a_probe_that_fails_late_is_judged_by_who_was_answered_meanwhile(others):
    """It stood in the queue of a process that was killed for standing still."""

    async def scenario():
        triton, clock = FakeTriton(), Clock()
        triton.error, triton.seconds = GONE, 0.02
        probe = Probe(triton, "gr4ad", clock=clock)
        asked = asyncio.create_task(probe.health())
        await asyncio.sleep(0.005)
        clock.now += 1.5
        if others:
            probe.answered()
        assert (await asked).ready == others
        assert len(triton.probes) == 1

    asyncio.run(scenario())


def test_a_probe_that_hangs_is_not_ready():
    async def scenario():
        triton = FakeTriton()
        triton.seconds = 60
        health = await Probe(triton, "gr4ad", timeout_s=0.05).health()
        assert not health.ready
        assert "within 0.05 s" in health.reason

    asyncio.run(scenario())


@pytest.mark.parametrize("late", [None, TritonError(504, "Triton did not answer in time", reached=True)])
def test_a_probe_that_waits_long_is_ready_if_somebody_was_answered_meanwhile(late):
    """The queue is long, the server works."""

    async def scenario(*, others: bool):
        triton, clock = FakeTriton(), Clock()
        triton.seconds = 60 if late is None else 0.03
        triton.error = late
        probe = Probe(triton, "gr4ad", timeout_s=0.06, clock=clock)
        probe.answered()
        asked = asyncio.create_task(probe.health())
        await asyncio.sleep(0.01)
        clock.now += 0.5
        if others:
            probe.answered()
        health = await asked
        assert health.ready == others
        assert ("answered another request" in health.reason) == others

    asyncio.run(scenario(others=True))
    asyncio.run(scenario(others=False))


def test_overload_is_ready_for_as_long_as_others_are_answered():
    async def scenario():
        triton, clock = FakeTriton(), Clock()
        triton.error = OVERLOADED
        probe = Probe(triton, "gr4ad", clock=clock, overload_s=5)
        assert not (await probe.health()).ready  # nobody was ever answered
        probe.answered()
        clock.now += 2
        health = await probe.health()
        assert health.ready
        assert "answered another request 2.0 s ago" in health.reason
        clock.now += 4
        assert not (await probe.health()).ready

    asyncio.run(scenario())


def test_of_another_model_triton_is_believed():
    async def scenario():
        other = ModelMetadataResponse(name="other")
        other.inputs.add(name="x", datatype="FP32", shape=(-1, 3))
        assert not is_gr4ad(other)
        triton, clock = FakeTriton(known=other), Clock()
        probe = Probe(triton, "other", clock=clock)
        assert (await probe.health()).ready
        triton.ready = False
        clock.now += 1.1
        assert not (await probe.health()).ready
        assert not triton.probes

    asyncio.run(scenario())


def test_a_deployment_that_changed_gets_another_probe():
    async def scenario():
        triton, clock = FakeTriton(), Clock()
        probe = Probe(triton, "gr4ad", clock=clock)
        await probe.health()
        triton.known, triton.error = (
            metadata(profile=9),
            TritonError(400, "profile: wrong shape", reached=True),
        )
        clock.now += 1.1
        assert not (await probe.health()).ready
        triton.error = None
        clock.now += 1.1
        assert (await probe.health()).ready
        assert [len(r.raw_input_contents[3]) // 4 for r in triton.probes] == [4, 4, 9, 9]

    asyncio.run(scenario())
