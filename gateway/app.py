"""The gateway's endpoints: inference, metadata and health of KServe v2, and on another port metrics.

A plain ASGI application: a framework would take longer than all that is done here.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway.answer import Answer, json_answer, model_answer, server_answer
from gateway.errors import error_body
from gateway.health import Probe
from gateway.inference import Headers, Inference
from gateway.metrics import Metrics
from gateway.scrape import Scrape
from gateway.triton import Triton
from web.errors import HttpError
from web.hosts import check_own_host
from web.protocol import WHEN_LEFT

logger = logging.getLogger(__name__)

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
        probes: of the models that may be asked for.
        inference: answers theirs.
        metrics: of this gateway.
        scrape: Triton's metrics, None where they are not to be had.
        metrics_port: port on which there are metrics and nothing but metrics and health.
        own_host: take only addresses and localhost in Host.
        stopping: whether the service is about to end.
    """

    def __init__(
        self,
        triton: Triton,
        probes: Mapping[str, Probe],
        *,
        inference: Inference,
        metrics: Metrics,
        scrape: Scrape | None,
        metrics_port: int,
        own_host: bool,
        stopping: Callable[[], bool],
    ) -> None:
        """Keep all; nothing is asked before the first request."""
        self._triton, self._probes, self._inference = triton, probes, inference
        self._metrics, self._scrape, self._metrics_port = metrics, scrape, metrics_port
        self._own_host, self._stopping = own_host, stopping

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = Headers(scope["headers"])
        try:
            self._check(headers)
            if scope["server"][1] == self._metrics_port:
                status, (body, own) = await self._page(scope)
            else:
                status, (body, own) = await self._route(scope, headers, receive=receive)
            own = [(b"content-length", str(len(body)).encode()), *own]
        except HttpError as error:
            status, body = error.status, error_body(error)
            own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            own += [(name.encode(), value.encode()) for name, value in error.headers.items()]
        except Exception:
            logger.exception("a request failed")
            status, body = 500, error_body(HttpError(500, "failed", "the gateway failed; its log says why"))
            own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": own})
        await send({"type": "http.response.body", "body": body})

    def _check(self, headers: Headers) -> None:
        """Refuse what a page of another site makes a browser send here.

        Raises:
            HttpError: 403 or 421.
        """
        try:
            if self._own_host:
                check_own_host(headers.get(b"host") or "")
            # A browser names the page that sends: on every POST, and on a GET that could read the answer.
            site = headers.get(b"sec-fetch-site")
            if headers.get(b"origin") is not None or site not in (None, "none", "same-origin"):
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

    async def _route(self, scope: Any, headers: Headers, *, receive: Receive) -> tuple[int, Answer]:
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
            if model not in self._probes:
                raise HttpError(404, "not_found", f"Request for unknown model: '{model[:200]}' is not found")
            if what == "/infer":
                left = scope[WHEN_LEFT]
                return 200, await self._inference.answer(
                    model, version, headers=headers, receive=receive, when_left=left
                )
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
            ready, reason = False, "the server is stopping"
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


def _allow(scope: Any, method: str) -> None:
    if scope["method"] not in (method, "HEAD" if method == "GET" else method):
        raise HttpError(405, "method", "Method Not Allowed", headers={"Allow": method})


def _readiness(ready: bool, reason: str) -> tuple[int, Answer]:
    if ready:
        return 200, json_answer({"ready": True, "reason": reason})
    return 503, json_answer({"ready": False, "error": reason})
