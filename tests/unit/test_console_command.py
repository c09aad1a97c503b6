"""The command: options that are wrong, and a console that starts without anything to look at."""

import json
import os

import pytest

from console.__main__ import main, parser
from tests.console_server import TOKEN, started
from tests.unit.test_console_feeds import FILM
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--hz", "9"], "--hz: expected 2 to 5, got 9"),
        (["--hz", "nan"], "--hz: expected 2 to 5, got nan"),
        (["--speed", "0"], "--speed: expected more than 0, got 0"),
        (["--token-file", "{folder}/short"], "expected a token of at least 8"),
    ],
)
def test_wrong_options(tmp_path, capsys, options, error):
    (tmp_path / "short").write_text("abc")
    with pytest.raises(SystemExit) as ended:
        main([option.format(folder=tmp_path) for option in options])
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--replay", "{folder}/none"], "No such file"),
        (["--replay", "{folder}/text"], "expected a recording of the console"),
        (["--record", "{folder}/none/film.xz"], "No such file"),
        (["--token-file", "{folder}/none"], "No such file"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ],
)
def test_what_cannot_be_had(tmp_path, capsys, options, error):
    (tmp_path / "text").write_text("no film")
    assert main(["--port", "0", *(option.format(folder=tmp_path) for option in options)]) == 1
    assert error in capsys.readouterr().err


def test_the_help_names_the_tokens():
    text = parser().format_help()
    assert "GR4AD_CONSOLE_TOKEN" in text
    assert "GR4AD_INDEXER_TOKEN" in text


def test_a_console_without_server_or_run_answers_and_records_why(tmp_path):
    film = tmp_path / "film.xz"
    options = ("--run", str(tmp_path / "none"), "--metrics-url", "http://127.0.0.1:1/", "--record", str(film))
    with started(*options, environment=os.environ | {"GR4AD_CONSOLE_TOKEN": TOKEN}) as console:
        about = json.loads(console.ask("GET", "/api/about")[2])
        assert (about["can_ask"], about["replay"]) == (False, False)
        assert [action["name"] for action in about["actions"]] == ["new_ad", "pause_ad", "resume_ad"]
        wait_until(lambda: b'"server":{"ok":false' in console.ask("GET", "/api/frames")[2], what="a frame")
    with started("--replay", str(film), "--speed", "100") as console:
        wait_until(lambda: b"127.0.0.1:1" in console.ask("GET", "/api/frames")[2], what="the recording")


def test_the_recording_of_the_repository_plays():
    with started("--replay", str(FILM), "--speed", "1000") as console:
        wait_until(lambda: b'"model' in console.ask("GET", "/api/frames")[2], what="a frame")
        assert json.loads(console.ask("GET", "/api/about")[2])["replay"]
