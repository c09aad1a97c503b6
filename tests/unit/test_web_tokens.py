"""Tokens of services: where they come from, which are none, and who has one."""

import pytest

from web.errors import HttpError
from web.tokens import check_bearer, read_token

VARIABLE = "GR4AD_TEST_TOKEN"


def test_a_token_is_that_of_the_file_or_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_token(None, variable=VARIABLE) is None
    monkeypatch.setenv(VARIABLE, "of the environment")
    assert read_token(None, variable=VARIABLE) == "of the environment"
    file = tmp_path / "token"
    file.write_text("of the file\n")
    assert read_token(file, variable=VARIABLE) == "of the file"
    with pytest.raises(OSError, match="none"):
        read_token(tmp_path / "none", variable=VARIABLE)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "got nothing"),
        (" \n", "got nothing"),
        ("seven c", "got 7"),
        ("tab\tinside", "got 10"),
        ("ümlauts!", "got 8"),
    ],
)
def test_what_is_no_token(tmp_path, text, error):
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(ValueError, match=error):
        read_token(file, variable=VARIABLE)


@pytest.mark.parametrize("sent", ["Bearer open sesame", "bearer open sesame", "Bearer  open sesame "])
def test_who_has_it(sent):
    check_bearer(sent, "open sesame")


@pytest.mark.parametrize("sent", ["", "Bearer", "open sesame", "Bearer open sesame!", "Basic open sesame"])
def test_who_has_not(sent):
    with pytest.raises(HttpError) as error:
        check_bearer(sent, "open sesame")
    assert error.value.status == 401
    assert "open sesame" not in error.value.message
