"""Values of the tables `ads`, `content` and `keys`."""

from __future__ import annotations

import json
import struct

from indexer.events.content import GIVEN_FIELDS, Content
from indexer.events.event import CONTENT_FIELDS

_AD = struct.Struct("<BqqqIq")  # `layout.AD`, for one ad at a time
_AD_2 = struct.Struct("<Bqqq")
_quote = json.encoder.encode_basestring


def encode_ad(
    status: int, *, status_version: int, content_version: int, updated: int, audience: int, account: int
) -> bytes:
    """Value of `ads`, see `layout.AD`."""
    fields = (status, status_version, content_version, updated, audience, account)
    return _AD.pack(*fields)


def decode_ad(raw: bytes | memoryview) -> tuple[int, int, int, int, int, int]:
    """Inverse of `encode_ad`: status, status_version, content_version, updated, audience, account.

    The last two are 0 in a record of format 2.
    """
    return _AD.unpack(raw) if len(raw) == _AD.size else (*_AD_2.unpack(raw), 0, 0)


def encode_content(content: Content) -> bytes:
    """Value of `content`."""
    account, conversion, text = (_quote(content[name]) for name in CONTENT_FIELDS)
    # Put together by hand: a bulk load makes millions, and this takes a tenth of the time of `json.dumps`.
    given = {name: content[name] for name in GIVEN_FIELDS if name in content}
    more = f",{json.dumps(given)[1:-1]}" if given else ""
    return f'{{"account_id":{account},"conversion_type":{conversion},"text":{text}{more}}}'.encode()


def decode_content(raw: bytes | memoryview | None) -> Content | None:
    """Inverse of `encode_content`; None where nothing is kept."""
    return None if raw is None else json.loads(bytes(raw))


def decode_key(raw: bytes | memoryview | None) -> str | None:
    """A value of the table `keys`; None where the ad has none."""
    return None if raw is None else bytes(raw).decode()
