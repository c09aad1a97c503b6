"""Requests to Triton over gRPC or HTTP that greenlets can wait for.

With gRPC three traps. In a process that gevent patched, a plain gRPC call blocks the whole process until the
answer is there, one request after the other; `init_gevent` makes the calls of greenlets wait side by side,
and has to come after the patch and before anything of gRPC is made. Then every waiting call takes a thread of
gevent's pool, which has ten: with more requests outstanding, an answer is seen when one of the ten before it
is there. So calls here are asynchronous. And a channel closed by a destructor can hold the process for ever
at its end (`_GrpcClient`). `tests/unit/test_loadtest_open_loop.py` holds it to all three.
"""

from __future__ import annotations

from typing import Any

import gevent.monkey
import numpy as np
import tritonclient.grpc
import tritonclient.http
from gevent.event import AsyncResult
from grpc.experimental import gevent as grpc_gevent

from examples.client import OUTPUTS, infer_inputs, requested_outputs
from loadtest.outcomes import SERVER_ERROR, LoadError

MODEL = "gr4ad"
_ready = False

Tensors = dict[str, np.ndarray]


class Client:
    """One connection (gRPC) or pool of connections (HTTP) to a server."""

    def __init__(self, url: str, *, protocol: str, deadline_s: float, connections: int) -> None:
        """Prepare; the first request connects.

        Args:
            url: host:port.
            protocol: grpc or http.
            deadline_s: of a request. Over HTTP, of connecting and of each read: Triton sends an answer in one
                piece, so that is the same unless a connection stalls within it.
            connections: most connections of HTTP, as many as requests may be outstanding; gRPC needs one.

        Raises:
            RuntimeError: gevent has not patched this process.
        """
        self._deadline_s, self._grpc = deadline_s, protocol == "grpc"
        if self._grpc:
            _init_grpc()
            self._client = _GrpcClient(url)
        else:
            self._client = tritonclient.http.InferenceServerClient(
                url, concurrency=connections, connection_timeout=deadline_s, network_timeout=deadline_s
            )

    def infer(self, tensors: Tensors, parameters: dict[str, Any] | None) -> tuple[Tensors, int]:
        """Outputs by name and the answer's bytes.

        Raises:
            InferenceServerException, OSError, LoadError: see `outcomes.classify`.
        """
        protocol = "grpc" if self._grpc else "http"
        inputs = infer_inputs(tensors, protocol=protocol)
        outputs = requested_outputs(OUTPUTS, protocol=protocol)
        if self._grpc:
            result = self._infer_grpc(inputs, outputs, parameters=parameters)
        else:
            result = self._client.infer(MODEL, inputs, outputs=outputs, parameters=parameters)
        answer = {name: result.as_numpy(name) for name in OUTPUTS}
        missing = [name for name, values in answer.items() if values is None]
        if missing:
            raise LoadError(SERVER_ERROR, f"outputs are missing: {', '.join(missing)}")
        if self._grpc:
            return answer, result.get_response().ByteSize()
        return answer, sum(v.nbytes for v in answer.values())

    def _infer_grpc(self, inputs: list[Any], outputs: list[Any], *, parameters: dict[str, Any] | None) -> Any:
        """One call; the greenlet waits, and no thread does."""
        done: AsyncResult = AsyncResult()

        def ended(result: Any, error: Exception | None) -> None:
            done.set(result) if error is None else done.set_exception(error)

        call = self._client.async_infer(
            MODEL,
            inputs,
            ended,
            outputs=outputs,
            parameters=parameters,
            client_timeout=self._deadline_s,
        )
        try:
            return done.get()
        except BaseException:  # the test is over, usually: a call that is left would hold the process
            call.cancel()
            raise

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()


class _GrpcClient(tritonclient.grpc.InferenceServerClient):
    """Is closed by who made it, and not (again) by a destructor.

    Under gevent a close counts gRPC's open channels down, with the lock of the thread that waits for
    callbacks. When the interpreter ends, that thread may end with the lock in its hand; a destructor that
    comes after it waits for ever, whatever the signal.
    """

    def __del__(self) -> None:
        pass


def _init_grpc() -> None:
    global _ready
    if not gevent.monkey.is_module_patched("socket"):
        raise RuntimeError(
            "expected a process patched by gevent (`import locust` does it) before gRPC is used"
        )
    if not _ready:
        grpc_gevent.init_gevent()
        _ready = True
