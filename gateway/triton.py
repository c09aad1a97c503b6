"""Calls to Triton over gRPC, and what their failures are over HTTP."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from web.errors import HttpError

_OPTIONS = [
    # Away for a restart: tried again soon and often, so that the service is back within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),  # which also is the time for a connection to come about
    ("grpc.max_reconnect_backoff_ms", 400),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", -1),  # bounded before
    ("grpc.enable_http_proxy", 0),
]
# As Triton's own HTTP server answers its errors.
_STATUS = {
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 500,
    grpc.StatusCode.PERMISSION_DENIED: 403,
}
_OVERLOAD = re.compile(r"overloaded|queue: |deadline|waited", re.IGNORECASE)


class TritonError(HttpError):
    """Triton refused or failed, or cannot be reached.

    Attributes:
        reached: Triton itself has answered.
        overloaded: it answered that it has no time.
    """

    def __init__(self, status: int, message: str, *, reached: bool) -> None:
        """With `Retry-After` where it may be better in a second."""
        headers = {"Retry-After": "1"} if status == 503 else {}
        reason = {503: "unavailable", 504: "late"}.get(status, "failed" if status >= 500 else "invalid")
        super().__init__(status, reason, message, headers=headers)
        self.reached = reached
        self.overloaded = reached and status == 503 and _OVERLOAD.search(message) is not None


class Triton:
    """The inference service at one address.

    Args:
        address: host:port of Triton's gRPC port.
        timeout_s: seconds for an inference.
    """

    def __init__(self, address: str, *, timeout_s: float) -> None:
        """Connect on the first call: a channel belongs to the event loop that it is made in."""
        self.address, self._timeout_s = address, timeout_s

    async def infer(
        self,
        request: pb.ModelInferRequest,
        *,
        timeout_s: float | None = None,
        started: Callable[[Any], None] = lambda call: None,
    ) -> pb.ModelInferResponse:
        """An inference.

        Args:
            request: checked.
            timeout_s: instead of the usual time.
            started: gets the call, which it may cancel.

        Raises:
            TritonError: it failed.
        """
        call = self._stub.ModelInfer(request, timeout=timeout_s or self._timeout_s)
        started(call)
        return await self._answer(call)

    async def server_metadata(self) -> pb.ServerMetadataResponse:
        """Name and version.

        Raises:
            TritonError: it failed.
        """
        return await self._answer(self._stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=5))

    async def model_metadata(self, model: str, version: str = "") -> pb.ModelMetadataResponse:
        """Inputs and outputs of a model.

        Raises:
            TritonError: it failed.
        """
        return await self._answer(
            self._stub.ModelMetadata(pb.ModelMetadataRequest(name=model, version=version), timeout=5)
        )

    async def model_ready(self, model: str, version: str = "") -> bool:
        """What Triton itself says of a model.

        Raises:
            TritonError: it failed.
        """
        request = pb.ModelReadyRequest(name=model, version=version)
        return (await self._answer(self._stub.ModelReady(request, timeout=5))).ready

    async def close(self) -> None:
        """Let go of the connection."""
        await self._channel.close()

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.address, options=_OPTIONS)

    @cached_property
    def _stub(self) -> Any:
        return GRPCInferenceServiceStub(self._channel)

    async def _answer(self, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details() or ""
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TritonError(504, "Triton did not answer in time", reached=False) from None
            ready = self._channel.get_state() is grpc.ChannelConnectivity.READY
            if code is grpc.StatusCode.UNAVAILABLE and not ready:
                message = f"Triton is away or restarting: {details[:200]}"
                raise TritonError(503, message, reached=False) from None
            raise TritonError(_STATUS.get(code, 400), details, reached=True) from None
