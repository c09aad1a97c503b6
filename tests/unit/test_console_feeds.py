"""Where looks come from: services that come and go, the folder of versions, recordings whole and damaged."""

import lzma
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from console.feeds import LiveFeed, Recorded, Replay
from console.frames import Frames
from console.reading import Reading, line_of, recorded
from console.versions import read_versions
from serving.model.current import point_current
from tests.indexing import write_manifest
from tests.metrics_page import indexer_page, server_page, showing
from tests.unit.test_console_scrape import by_hand

FILM = Path(__file__).resolve().parents[2] / "console" / "films" / "spike.jsonl.xz"


def looks(feed, count: int) -> list[Reading]:
    """The first of a feed."""
    stop, found = threading.Event(), []
    for reading in feed.readings(stop):
        found.append(reading)
        if len(found) == count:
            stop.set()
    return found


def test_a_look_has_every_page_and_says_why_one_is_missing(tmp_path):
    write_manifest(tmp_path, 3, "tok")
    with showing(server_page(answered=5)) as server:
        urls = {"server": server.url, "indexer": "http://127.0.0.1:1/metrics"}
        first, second = looks(LiveFeed(urls, bundles=tmp_path, hz=5), 2)
    assert first.pages == {"server": server_page(answered=5)}
    assert list(first.problems) == ["indexer"]
    assert "http://127.0.0.1:1/metrics: " in first.problems["indexer"]
    assert first.versions.current == 3
    assert 0.1 < second.at - first.at < 2


def test_a_source_that_hangs_holds_the_others_up_for_a_second_at_most():
    with showing(server_page()) as server, socket.create_server(("127.0.0.1", 0)) as deaf:
        urls = {"indexer": f"http://127.0.0.1:{deaf.getsockname()[1]}/metrics", "server": server.url}
        began = time.monotonic()
        (look,) = looks(LiveFeed(urls, bundles=None, hz=2), 1)
        assert time.monotonic() - began < 5
    assert "timed out" in look.problems["indexer"]
    assert "server" in look.pages


def test_versions_of_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of bundles"):
        read_versions(tmp_path / "none")
    assert "expected the version to serve" in read_versions(tmp_path).problem
    for version in range(1, 21):
        write_manifest(tmp_path, version, "tok", current=False)
        os.utime(tmp_path / str(version) / "manifest.json", (version, version))
    point_current(tmp_path, 19)
    point_current(tmp_path, 20)
    point_current(tmp_path, 18)
    found = read_versions(tmp_path)
    assert (found.current, found.problem) == (18, None)
    assert found.made == {version: float(version) for version in range(5, 21)}
    assert found.named == [18, 20, 19]


def test_a_recording_shows_the_same_frames(tmp_path):
    pages = [(server_page(answered=9 * i), indexer_page(applied=i)) for i in range(8)]
    taken = [Reading(at=100 + i / 2, pages={"server": a, "indexer": b}) for i, (a, b) in enumerate(pages)]
    taken.append(Reading(at=104, problems={"server": "gone"}, versions=read_versions(tmp_path)))

    class Feed:
        def readings(self, stop):
            yield from taken

    file = tmp_path / "film.jsonl.xz"
    assert looks(Recorded(Feed(), file), 99) == taken
    began = time.monotonic()
    played = looks(Replay(file, speed=40), 99)
    assert 0.09 < time.monotonic() - began < 5
    live, replayed = Frames(), Frames()
    for one, other in zip(taken, played, strict=True):
        assert live.add(one) == replayed.add(other)


def test_what_is_kept_of_a_page_is_what_figures_need():
    page = server_page(answered=3) + "process_cpu_seconds_total 5\nnv_cpu_utilization 0.5\n"
    kept = Reading.model_validate_json(line_of(Reading(at=1, pages={"server": page}))).pages["server"]
    assert by_hand(kept) == by_hand(server_page(answered=3))


def test_a_recording_that_was_cut_off_ends_there(tmp_path):
    lines = "".join(line_of(Reading(at=i, problems={"server": os.urandom(400).hex()})) for i in range(50))
    whole, cut = tmp_path / "whole.xz", tmp_path / "cut.xz"
    whole.write_bytes(lzma.compress(lines.encode()))
    cut.write_bytes(whole.read_bytes()[:-400])
    found = list(recorded(cut))
    assert 0 < len(found) < 50
    assert found == list(recorded(whole))[: len(found)]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"no xz", "expected a recording of the console"),
        (lzma.compress(b"{}\n"), r":1: expected a look, got at Field required"),
        (lzma.compress(b'{"at": 1}\n{"at": 2, "pages": 3}\n'), r":2: expected a look, got pages"),
        (lzma.compress(b'{"at": 1, "more": 1}\n'), r":1: expected a look, got more"),
        (lzma.compress(b"\xff\xfe\n"), "expected a recording of the console"),
    ],
)
def test_a_file_that_is_no_recording(tmp_path, content, error):
    file = tmp_path / "film.xz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=error):
        list(recorded(file))
    if b"more" not in content and b"pages" not in content:
        with pytest.raises(ValueError, match="film.xz"):
            Replay(file, speed=1)
