"""String ids: what is a key, and the number that stands for it."""

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.keys import MAX_KEY, id_of

KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(KEYS)
def test_an_id_is_the_first_63_bits_of_a_hash(key):
    digest = hashlib.blake2b(key.encode("utf-8")).hexdigest()[:16]
    assert id_of(key) == int(digest, 16) % 2**63


def test_ids_stay_what_they_are_on_every_machine():
    """They lie in tables and indexes: a change of the function is another catalogue."""
    assert id_of("shoes-17") == 7_547_497_183_270_538_909
    assert id_of("обувь 👟") != id_of("обувь")
    assert id_of("17") != 17
    assert id_of("1") != id_of("01") != id_of("1.0")
    assert id_of("\u00e9") != id_of("e\u0301")  # not normalised: what looks alike is not the same key


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", f"expected 1 to {MAX_KEY} characters, got 0"),
        ("k" * 257, f"expected 1 to {MAX_KEY} characters, got 257"),
        ("a\ud800", "got a lone surrogate at 1"),
        (17, "expected a text, got int 17"),
        (None, "expected a text, got NoneType None"),
        (b"17", "expected a text, got bytes"),
    ],
)
def test_what_is_no_key(key, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        id_of(key)


def test_the_longest_key():
    assert 0 <= id_of("\U0001f45f" * 256) < 1 << 63
