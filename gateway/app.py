"""The gateway's endpoints: inference, metadata and health of KServe v2, and on another port metrics.

A plain ASGI application: what stands between a client and its ads is this module.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gateway.answer import Answer, infer_answer, json_answer, model_answer, server_answer
from gateway.compression import accepted, pack, unpack
from gateway.errors import error_body
from gateway.health import Probe
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.request import read_request
from gateway.scrape import Scrape
from gateway.triton import Triton
from web.body import BodyBudget, read_body
from web.errors import HttpError
from web.hosts import check_own_host
from web.protocol import WHEN_LEFT

LIVE, READY, METRICS = "/v2/health/live", "/v2/health/ready", "/metrics"
HEALTH = frozenset({LIVE, READY, METRICS})  # answered also when all connections are taken
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([0-9]{1,18}))?(/ready|/infer|)")
# Of Triton's HTTP server, and not here: they change the server, or read what is not the client's.
_CLOSED = re.compile(
    r"/v2/(repository|systemsharedmemory|cudasharedmemory|trace|logging)(/.*)?"
    r"|/v2/models/stats|/v2/models/[^/]+(/versions/[^/]+)?/(config|stats|trace/setting|generate|generate_stream)"
)

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Gateway:
    """The ASGI application.

    Args:
        triton: where inferences go.
        models: names that may be asked for.
        limits: of requests.
        metrics: of this gateway.
        scrape: Triton's metrics, None where they are not to be had.
        metrics_port: port on which there are metrics and nothing but metrics and health.
        own_host: take only addresses and localhost in Host.
        stopping: whether the service is about to end.
    """

    def __init__(
        self,
        triton: Triton,
        models: Sequence[str],
        *,
        limits: Limits,
        metrics: Metrics,
        scrape: Scrape | None,
        metrics_port: int,
        own_host: bool,
        stopping: Callable[[], bool],
    ) -> None:
        """Keep all; nothing is asked before the first request."""
        self._triton, self._limits, self._metrics, self._scrape = triton, limits, metrics, scrape
        self._metrics_port, self._own_host = metrics_port, own_host
        self._stopping = stopping
        self._probes = {model: Probe(triton, model) for model in models}
        self._budget = BodyBudget(limits.pending_bytes)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check(headers)
            if scope["server"][1] == self._metrics_port:
                status, (body, own) = await self._page(scope)
            elif scope["method"] == "POST" and scope["path"].endswith("/infer"):
                status, (body, own) = 200, await self._infer(scope, headers, receive)
            else:
                status, (body, own) = await self._read(scope)
            own = [(b"content-length", str(len(body)).encode()), *own]
        except HttpError as error:
            status, body = error.status, error_body(error)
            own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            own += [(name.encode(), value.encode()) for name, value in error.headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": own})
        await send({"type": "http.response.body", "body": body})

    def _check(self, headers: dict[str, str]) -> None:
        """Refuse what a page of another site makes a browser send here.

        Raises:
            HttpError: 403 or 421.
        """
        try:
            if self._own_host:
                check_own_host(headers.get("host", ""))
            # A browser names the page that sends: on every POST, and on a GET that could read the answer.
            if "origin" in headers or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
                raise HttpError(403, "origin", "expected no request out of a web page")
        except HttpError as error:
            self._metrics.refused(error.reason)
            raise

    async def _page(self, scope: Any) -> tuple[int, Answer]:
        if scope["path"] != METRICS:
            return await self._health(scope["path"])
        _allow(scope, "GET")
        page = self._metrics.render()
        if self._scrape is not None:
            page += await self._scrape.page()
        return 200, (page, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")])

    async def _read(self, scope: Any) -> tuple[int, Answer]:
        path = scope["path"]
        if _CLOSED.fullmatch(path):
            self._metrics.refused("closed")
            raise HttpError(403, "closed", f"expected inference, metadata or health, got {ascii(path[:100])}")
        if path == "/v2":
            _allow(scope, "GET")
            return 200, server_answer(await self._triton.server_metadata())
        if match := _MODEL.fullmatch(path):
            model, version, what = match[1], match[2] or "", match[3]
            _allow(scope, "POST" if what == "/infer" else "GET")
            self._check_model(model)
            if what == "/ready":
                return await self._model_ready(model, version)
            return 200, model_answer(await self._triton.model_metadata(model, version))
        if path in HEALTH:
            _allow(scope, "GET")
        return await self._health(path)

    async def _health(self, path: str) -> tuple[int, Answer]:
        if path == LIVE:
            return 200, json_answer({"live": True})
        if path != READY:
            raise HttpError(404, "not_found", "Not Found")
        if self._stopping():
            ready, reason = False, "the gateway is stopping"
        else:
            found = await asyncio.gather(*(probe.health() for probe in self._probes.values()))
            ready = all(health.ready for health in found)
            reason = "; ".join(health.reason for health in found if health.ready == ready)
        self._metrics.ready(ready)
        return _readiness(ready, reason)

    async def _model_ready(self, model: str, version: str) -> tuple[int, Answer]:
        if version and not await self._triton.model_ready(model, version):
            return _readiness(False, f"{model}: version {version} is not ready")
        health = await self._probes[model].health()
        return _readiness(health.ready, health.reason)

    async def _infer(self, scope: Any, headers: dict[str, str], receive: Receive) -> Answer:
        match, when_left = _MODEL.fullmatch(scope["path"]), scope[WHEN_LEFT]
        if match is None:
            raise HttpError(404, "not_found", "Not Found")
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            self._budget.take(size)
            held += size

        try:
            self._check_model(match[1])
            body = await read_body(
                receive,
                length=headers.get("content-length", ""),
                limit=self._limits.body_bytes,
                timeout_s=None,
                taken=hold,
            )
            return await self._answer(match[1], match[2] or "", headers, body=body, when_left=when_left)
        except HttpError as error:
            self._metrics.outcome(
                error.reason if error.status >= 500 or error.reason == "gone" else "invalid"
            )
            raise
        finally:
            self._budget.give_back(held)

    async def _answer(
        self,
        model: str,
        version: str,
        headers: dict[str, str],
        *,
        body: bytes,
        when_left: Callable[[Callable[[], object]], None],
    ) -> Answer:
        began = time.monotonic()
        encoding = headers.get("content-encoding", "").strip().lower()
        request, wanted = read_request(
            unpack(body, encoding=encoding, limit=self._limits.body_bytes),
            json_length=headers.get("inference-header-content-length"),
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
        if "accept-encoding" in headers and (packed := accepted(headers["accept-encoding"])):
            made = pack(made, encoding=packed)
            own.append((b"content-encoding", packed.encode()))
        self._metrics.answered(time.monotonic() - began)
        return made, own

    def _check_model(self, model: str) -> None:
        if model not in self._probes:
            raise HttpError(404, "not_found", f"Request for unknown model: '{model[:200]}' is not found")


def _allow(scope: Any, method: str) -> None:
    if scope["method"] not in (method, "HEAD" if method == "GET" else method):
        raise HttpError(405, "method", "Method Not Allowed", headers={"Allow": method})


def _readiness(ready: bool, reason: str) -> tuple[int, Answer]:
    if ready:
        return 200, json_answer({"ready": True, "reason": reason})
    return 503, json_answer({"ready": False, "error": reason})
