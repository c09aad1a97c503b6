"""Bodies that come and go packed: gzip and deflate, unpacked within a bound."""

from __future__ import annotations

import zlib

from web.errors import HttpError

_WINDOW = {"gzip": 31, "deflate": 15}  # zlib's number of the format


def unpack(body: bytes, *, encoding: str, limit: int) -> bytes:
    """A body as it was before `Content-Encoding`; of one that grows too large no more than the limit is held.

    Raises:
        HttpError: 415 another encoding, 413 too long, 400 not of that encoding.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW:
        raise HttpError(
            415,
            "encoding",
            f"expected gzip, deflate or nothing as Content-Encoding, got {ascii(encoding[:60])}",
        )
    unpacker = zlib.decompressobj(_WINDOW[encoding])
    try:
        found = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise HttpError(400, "invalid", f"expected a body of {encoding}: {error}") from None
    if len(found) > limit:
        raise HttpError(413, "too_long", f"expected at most {limit:,} bytes once unpacked, got more")
    if not unpacker.eof or unpacker.unused_data:
        raise HttpError(400, "invalid", f"expected one whole body of {encoding}")
    return found


def accepted(header: str) -> str:
    """The encoding that `Accept-Encoding` asks for: gzip, deflate or nothing."""
    weights = {}
    for part in header.lower().split(","):
        name, _, parameter = part.partition(";")
        weight = parameter.strip().removeprefix("q=")
        weights[name.strip()] = 0.0 if weight in ("0", "0.0", "0.00", "0.000") else 1.0
    return next((name for name in _WINDOW if weights.get(name)), "")


def pack(body: bytes, *, encoding: str) -> bytes:
    """A body in an encoding of `accepted`."""
    packer = zlib.compressobj(level=1, wbits=_WINDOW[encoding])
    return packer.compress(body) + packer.flush()
