"""The hash level: stable across processes, uniform, sensitive to each part, fast."""

import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from serving.index.hashing import hash_level

PAGE = Path(__file__).parents[2] / "docs" / "tokenizer.md"
FROZEN = [326, 345, 575]
PROGRAM = """
from serving.index.hashing import hash_level
print(hash_level(['a', 'ü'], ['x', 'y'], [1, 2], size=977).tolist())
"""


def test_equals_the_written_definition():
    digest = hashlib.blake2b(b"4:acmeclick:42", digest_size=8).digest()
    code = int.from_bytes(digest, "little") % 1000
    assert hash_level(["acme"], ["click"], [42], size=1000).tolist() == [code]


def documented():
    """Rows of the table of test vectors: account, conversion type, ad, size, salt, code."""
    cells = r"^\| \"(.*?)\" \| \"(.*?)\" \| (\d+) \| (\d+) \| \"(.*?)\" \| (\d+) \|$"
    rows = re.findall(cells, PAGE.read_text(), re.M)
    return [(a, c, int(ad), int(size), salt, int(code)) for a, c, ad, size, salt, code in rows]


def test_documented_vectors_hold():
    """They never change: a published SID would move."""
    assert len(documented()) == 6
    for account, conversion, ad, size, salt, code in documented():
        assert hash_level([account], [conversion], [ad], size=size, salt=salt).tolist() == [code]
    frozen = hash_level(["acme", "größe", ""], ["click", "", "buy"], [42, 0, 2**62], size=1024)
    assert frozen.tolist() == FROZEN


def test_does_not_depend_on_the_process():
    here = hash_level(["a", "ü"], ["x", "y"], [1, 2], size=977).tolist()
    for salt in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", PROGRAM]
        answer = subprocess.run(command, env=environment, capture_output=True, check=True)
        assert answer.stdout.decode().strip() == str(here)


def test_every_part_counts_and_parts_do_not_run_together():
    size = 2**20
    rows = [("a", "b", 1), ("A", "b", 1), ("a", "c", 1), ("a", "b", 2), ("ab", "", 1), ("", "ab", 1)]
    codes = hash_level(*zip(*rows, strict=True), size=size)
    assert len(set(codes.tolist())) == len(rows)


def test_spreads_evenly_and_hashes_100_000_ads_within_a_second():
    count, size = 100_000, 1024
    accounts, kinds = [str(i % 5000) for i in range(count)], ["plain", "coupon"] * (count // 2)
    start = time.process_time()
    codes = hash_level(accounts, kinds, range(count), size=size)
    assert time.process_time() - start < 1
    assert codes.dtype == np.int32
    expected = count / size
    chi_squared = float(((np.bincount(codes, minlength=size) - expected) ** 2 / expected).sum())
    # Mean size - 1, standard deviation sqrt(2 (size - 1)) = 45: five of them.
    assert abs(chi_squared - (size - 1)) < 5 * 45


def test_no_ads_give_no_codes():
    assert hash_level([], [], [], size=8).shape == (0,)


def test_a_salt_is_blake2bs_own_and_none_is_as_before():
    digest = hashlib.blake2b(b"4:acmeclick:42", digest_size=8, salt=b"spring").digest()
    code = int.from_bytes(digest, "little") % 1000
    assert hash_level(["acme"], ["click"], [42], size=1000, salt="spring").tolist() == [code]
    assert hash_level(["acme"], ["click"], [42], size=1000, salt="") == hash_level(
        ["acme"], ["click"], [42], size=1000
    )


def test_another_salt_lets_other_ads_collide():
    ads, size = 2000, 64
    columns = (["a"] * ads, ["b"] * ads, range(ads))
    one, two = (hash_level(*columns, size=size, salt=salt) for salt in ("", "2"))
    together = one == one[0]
    assert together.sum() > 10
    assert 0 < (two[together] == two[0]).sum() < together.sum() / 2
