"""Whether a real request would be answered now: one is sent, through all models, whenever somebody asks.

Triton says "ready" while the process behind a model is dead, stands still, or has no version to answer with.
So a model with gr4ad's inputs gets the cheapest request that runs all its graphs: no history, one ad, one
beam a level, past the cache. At most one is sent a second, whoever asks.

Overload is not unreadiness: a server that turns requests away because it answers others must not be taken
out, its share would only fall on the next one. So when the probe itself is turned away, the model is ready
for as long as somebody is answered every few seconds; and when it waits too long, if somebody was answered
meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelMetadataResponse

from gateway.triton import Triton, TritonError

_INPUTS = {"history_ad_ids", "history_behaviors", "history_timestamps", "num_ads"}
_PROFILE = "profile"  # of models that have one
_OUTPUTS = {"ad_ids", "sids"}
_DTYPES = {"INT32": np.int32, "INT64": np.int64}


@dataclass(frozen=True)
class Health:
    """What was found.

    Attributes:
        ready: a request would be answered.
        reason: why, or why not.
        at: when, in seconds of the monotonic clock.
    """

    ready: bool
    reason: str
    at: float


class Probe:
    """Health of one model.

    Args:
        triton: where it is.
        model: name.
        every_s: no more than one probe in that time.
        timeout_s: a probe that takes longer finds it unready.
        overload_s: how long it stays ready on the word of other requests.
    """

    def __init__(
        self,
        triton: Triton,
        model: str,
        *,
        every_s: float = 1.0,
        timeout_s: float = 2.0,
        overload_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is known yet."""
        self._triton, self._model, self._clock = triton, model, clock
        self._every_s, self._timeout_s, self._overload_s = every_s, timeout_s, overload_s
        self._last: Health | None = None
        self._running: asyncio.Task[Health] | None = None
        self._request: ModelInferRequest | None = None
        self._answered = -float("inf")

    def answered(self) -> None:
        """Somebody's request was answered."""
        self._answered = self._clock()

    async def health(self) -> Health:
        """Of now, or of less than `every_s` ago."""
        if self._last is not None and self._clock() - self._last.at < self._every_s:
            return self._last
        if self._running is None:
            self._running = asyncio.create_task(self._probe())
            self._running.add_done_callback(self._done)
        return await asyncio.shield(self._running)

    def _done(self, task: asyncio.Task[Health]) -> None:
        self._running = None
        if not task.cancelled():
            self._last = task.result()

    async def _probe(self) -> Health:
        """Asks twice before it says no: the first may have met the one process of several that has died.

        Where that took long, others who were answered meanwhile are the second opinion.
        """
        began = self._clock()
        health = await self._probe_once()
        if health.ready:
            return health
        if self._clock() - began < self._timeout_s / 2:
            return await self._probe_once()
        return Health(*self._by_others(began, health.reason), self._clock())

    async def _probe_once(self) -> Health:
        began = self._clock()
        try:
            async with asyncio.timeout(self._timeout_s):
                ready, reason = await self._ask()
        except TimeoutError:
            ready, reason = self._by_others(began, f"no answer to a probe within {self._timeout_s:g} s")
        except TritonError as error:
            ready, reason = False, error.message
            if error.overloaded:
                ready, reason = self._by_others(self._clock() - self._overload_s, error.message)
            elif error.reason == "late":
                ready, reason = self._by_others(began, error.message)
            else:
                self._request = None  # the model may be another one by now
        else:
            self.answered()
            reason = f"{reason} in {1000 * (self._clock() - began):.0f} ms"
        return Health(ready, f"{self._model}: {reason}", self._clock())

    def _by_others(self, since: float, reason: str) -> tuple[bool, str]:
        """Whether it is ready because somebody else was answered since then."""
        if self._answered <= since:
            return False, reason
        return True, f"{reason}; answered another request {self._clock() - self._answered:.1f} s ago"

    async def _ask(self) -> tuple[bool, str]:
        if self._request is None:
            metadata = await self._triton.model_metadata(self._model)
            if not is_gr4ad(metadata):
                ready = await self._triton.model_ready(self._model)
                return ready, "Triton says that it is ready" if ready else "Triton says that it is not ready"
            self._request = cheapest_request(metadata)
        await self._triton.infer(self._request, timeout_s=self._timeout_s)
        return True, "answered a probe"


def is_gr4ad(metadata: ModelMetadataResponse) -> bool:
    """Whether a model takes histories and answers ads, by the names of its tensors."""
    inputs, outputs = {t.name for t in metadata.inputs}, {t.name for t in metadata.outputs}
    return inputs >= _INPUTS and outputs >= _OUTPUTS


def cheapest_request(metadata: ModelMetadataResponse) -> ModelInferRequest:
    """A request of one row for such a model: whatever its profile and its number of levels."""
    request = ModelInferRequest(model_name=metadata.name)
    for tensor in metadata.inputs:
        if tensor.name not in _INPUTS and tensor.name != _PROFILE:
            continue
        # The first dimension is the batch; of the others, what varies is the history, and it is empty.
        shape = [1, *(max(size, 0) for size in tensor.shape[1:])]
        values = np.full(shape, tensor.name == "num_ads", _DTYPES[tensor.datatype])
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
        request.raw_input_contents.append(values.tobytes())
    request.outputs.add(name="ad_ids")
    levels = next(tensor.shape[-1] for tensor in metadata.outputs if tensor.name == "sids")
    request.parameters["widths"].string_param = "-".join("1" * levels) + ":1"
    request.parameters["cache"].string_param = "bypass"
    request.parameters["served_log"].string_param = "off"  # nobody was shown anything
    return request
