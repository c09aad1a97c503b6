"""One inference: a body within bounds, a call that ends when its client leaves, an answer as asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from gateway.answer import Answer, infer_answer
from gateway.compression import accepted, pack, unpack
from gateway.health import Probe
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.request import read_request
from gateway.triton import Triton
from web.body import BodyBudget, read_body
from web.errors import HttpError


class Headers:
    """Headers of a request by name in lower case; of several of one name the last."""

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Of the ASGI scope; decoded where one is asked for."""
        self._values = dict(pairs)

    def get(self, name: bytes) -> str | None:
        """Its value, None without it."""
        value = self._values.get(name)
        return None if value is None else value.decode("latin-1")


class Inference:
    """What `POST .../infer` does.

    Args:
        triton: where it goes.
        probes: of the models that may be asked for; told of answers.
        limits: of requests.
        metrics: of this gateway.
    """

    def __init__(
        self, triton: Triton, probes: Mapping[str, Probe], *, limits: Limits, metrics: Metrics
    ) -> None:
        """Nothing is held yet."""
        self._triton, self._probes, self._limits, self._metrics = triton, probes, limits, metrics
        self._budget = BodyBudget(limits.pending_bytes)

    async def answer(
        self,
        model: str,
        version: str,
        *,
        headers: Headers,
        receive: Callable[[], Awaitable[Any]],
        when_left: Callable[[Callable[[], object]], None],
    ) -> Answer:
        """The answer.

        Args:
            model: name, one of the probes'.
            version: digits, or nothing.
            headers: of the request.
            receive: of ASGI.
            when_left: see `web.protocol.WHEN_LEFT`.

        Raises:
            HttpError: whatever is wrong.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            self._budget.take(size)
            held += size

        try:
            body = await read_body(
                receive,
                length=headers.get(b"content-length") or "",
                limit=self._limits.body_bytes,
                timeout_s=None,
                taken=hold,
            )
            return await self._ask(model, version, headers=headers, body=body, when_left=when_left)
        except HttpError as error:
            counted = error.status >= 500 or error.reason == "gone"
            self._metrics.outcome(error.reason if counted else "invalid")
            raise
        finally:
            self._budget.give_back(held)

    async def _ask(
        self,
        model: str,
        version: str,
        *,
        headers: Headers,
        body: bytes,
        when_left: Callable[[Callable[[], object]], None],
    ) -> Answer:
        began = time.monotonic()
        encoding = (headers.get(b"content-encoding") or "").strip().lower()
        request, wanted = read_request(
            unpack(body, encoding=encoding, limit=self._limits.body_bytes),
            json_length=headers.get(b"inference-header-content-length"),
            model=model,
            version=version,
            limits=self._limits,
        )
        left = False

        def cancel_when_left(call: Any) -> None:
            def leave() -> None:
                nonlocal left
                left = True
                call.cancel()

            when_left(leave)

        try:
            response = await self._triton.infer(request, started=cancel_when_left)
        except asyncio.CancelledError:
            if left:
                raise HttpError(499, "gone", "the client left before its answer") from None
            raise
        self._probes[model].answered()
        made, own = infer_answer(response, wanted)
        if packed := accepted(headers.get(b"accept-encoding") or ""):
            made = pack(made, encoding=packed)
            own.append((b"content-encoding", packed.encode()))
        self._metrics.answered(time.monotonic() - began)
        return made, own
