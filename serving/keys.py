"""Keys: string ids of ads and users, and the number that stands for each in tables, requests and the index.

The number is a hash of the key, so whoever has the key has the number: tables, sidecar and clients agree
without a table that all of them would have to share. The way back needs one, and two keys of one number are
refused where they meet, see `training.data.keys` and `indexer.store.registers`.
"""

from __future__ import annotations

from hashlib import blake2b

MAX_KEY = 256  # characters
_BITS = (1 << 63) - 1  # an id is never negative


def id_of(key: str) -> int:
    """Id of a key: the first 8 bytes, big-endian, of BLAKE2b of its UTF-8, without the top bit.

    Raises:
        ValueError: it is no key: see `check_key`.
    """
    return int.from_bytes(blake2b(check_key(key).encode()).digest()[:8], "big") & _BITS


def hash_of(text: str) -> int:
    """Number that stands for an account or a value of a column as `id_of` does for a key; 0 for "".

    The text may be of any length.
    """
    digest = blake2b(text.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") & _BITS if text else 0


def check_key(key: object) -> str:
    """The key, where it is a text of 1 to `MAX_KEY` characters that UTF-8 can write.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(key, str):
        raise ValueError(f"key: expected a text, got {type(key).__name__} {key!r:.80}")
    if not 0 < len(key) <= MAX_KEY:
        raise ValueError(f"key: expected 1 to {MAX_KEY} characters, got {len(key)}")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"key: expected text, got a lone surrogate at {error.start} of {key!a:.80}"
        ) from None
    return key
