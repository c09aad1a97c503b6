"""The last level of a SID: a hash of what the text does not say.

Multi-granularity of the paper's MGMR RQ-Kmeans: the last level is no vector code but a hash of non-semantic
features, item or account id and conversion type (GR4AD, arXiv 2602.22732, section on UA-SID). The hash
function is not published; ours is BLAKE2b with 8 bytes, equal in every process and on every machine, which
Python's salted `hash` is not.
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
) -> np.ndarray:
    """Return codes int32 [N] in 0..size-1 for N ads.

    Raises:
        ValueError: the columns differ in length.
    """
    # The account's length leads, so that no two (account, conversion type) pairs run together.
    digests = b"".join(
        blake2b(f"{len(account)}:{account}{conversion}:{ad}".encode(), digest_size=8).digest()
        for account, conversion, ad in zip(account_ids, conversion_types, ad_ids, strict=True)
    )
    return (np.frombuffer(digests, dtype="<u8") % np.uint64(size)).astype(np.int32)
