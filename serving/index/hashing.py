"""The last level of a SID: a hash of what the text does not say.

Multi-granularity of the paper's MGMR RQ-Kmeans: the last level is no vector code but a hash of non-semantic
features, item or account id and conversion type (GR4AD, arXiv 2602.22732, section on UA-SID). The hash
function is not published; ours is, with + for concatenation and len in characters,

    code = BLAKE2b-64(UTF-8(len(account) + ":" + account + conversion type + ":" + ad), salt) mod size

whose 8 bytes are read as a little-endian number (RFC 7693; salt: its bytes, up to 16, zeros behind them; the
ad id in decimal). It is equal in every process and on every machine, which Python's salted `hash` is not, and
never changes: a published SID would move. Test vectors are in docs/tokenizer.md.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np


def hash_level(
    account_ids: Sequence[str],
    conversion_types: Sequence[str],
    ad_ids: Sequence[int] | np.ndarray,
    *,
    size: int,
    salt: str = "",
) -> np.ndarray:
    """Return codes int32 [N] in 0..size-1 for N ads; with another salt other ads collide.

    Raises:
        ValueError: the columns differ in length, or the salt has more than 16 bytes.
    """
    # The account's length leads, so that no two (account, conversion type) pairs run together.
    seed = salt.encode()
    digests = b"".join(
        blake2b(f"{len(account)}:{account}{conversion}:{ad}".encode(), digest_size=8, salt=seed).digest()
        for account, conversion, ad in zip(account_ids, conversion_types, ad_ids, strict=True)
    )
    return (np.frombuffer(digests, dtype="<u8") % np.uint64(size)).astype(np.int32)
