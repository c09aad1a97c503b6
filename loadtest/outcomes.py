"""What can become of a request, and how an error of a client is told apart."""

from __future__ import annotations

OK = "ok"
WRONG = "wrong_answer"  # answered, but the answer does not hold together
REJECTED = "rejected"  # the server would not take it: UNAVAILABLE, RESOURCE_EXHAUSTED, HTTP 503 or 429
DEADLINE = "deadline"  # no answer within the deadline
CONNECTION = "connection"  # no connection, or it broke
REFUSED = "refused"  # INVALID_ARGUMENT, HTTP 400: the request is at fault
SERVER_ERROR = "server_error"  # any other error the server gave
SATURATED = "client_saturated"  # not sent: as many requests as the client's bound were outstanding
UNANSWERED = "unanswered"  # still outstanding when the test ended
CLIENT_ERROR = "client_error"  # an exception in the load test itself

OUTCOMES = (
    OK,
    REJECTED,
    DEADLINE,
    SATURATED,
    UNANSWERED,
    CONNECTION,
    WRONG,
    REFUSED,
    SERVER_ERROR,
    CLIENT_ERROR,
)
WAITED = (OK, WRONG, DEADLINE, UNANSWERED)
"""Outcomes whose time counts in percentiles: somebody waited that long. A rejection is no answer, and a quick
one must not make the percentiles look better."""

_BROKEN = (  # texts of gRPC's own UNAVAILABLE; a server's has the server's words
    "failed to connect",
    "connection refused",
    "connection reset",
    "connection timed out",
    "connection aborted",
    "socket closed",
    "broken pipe",
    "goaway",
    "transport is closing",
    "endpoint closing",
    "dns resolution",
    "name resolution",
    "recvmsg",
    "sendmsg",
    "handshake",
    "keepalive",
)
_STATUS = {
    "UNAVAILABLE": REJECTED,
    "RESOURCE_EXHAUSTED": REJECTED,
    "503": REJECTED,
    "429": REJECTED,
    "DEADLINE_EXCEEDED": DEADLINE,
    "504": DEADLINE,
    "INVALID_ARGUMENT": REFUSED,
    "400": REFUSED,
}


class LoadError(Exception):
    """A failure that the load test itself found; `outcome` is its class."""

    def __init__(self, outcome: str, text: str) -> None:
        """Keep both."""
        super().__init__(text)
        self.outcome = outcome


def classify(error: BaseException) -> str:
    """Class of a failure: an `InferenceServerException`, an error of a socket, or a `LoadError`."""
    if isinstance(error, LoadError):
        return error.outcome
    if isinstance(error, TimeoutError):
        return DEADLINE
    if isinstance(error, OSError) or type(error).__name__ in (
        "HTTPConnectionClosed",
        "HTTPProtocolViolationError",
    ):
        return CONNECTION
    status = getattr(error, "status", None)
    if not callable(status):
        return CLIENT_ERROR
    found = str(status() or "").removeprefix("StatusCode.")
    if found == "UNAVAILABLE" and any(text in str(error).lower() for text in _BROKEN):
        return CONNECTION
    return _STATUS.get(found, SERVER_ERROR)
