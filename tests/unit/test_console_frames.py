"""Frames: what the figures are, and what is said of sources that are gone, damaged or came back."""

import json

import numpy as np
import pytest

from console.frames import WINDOW_S, Frames
from console.reading import Reading
from console.versions import Versions
from tests.metrics_page import indexer_page, server_page


def look(at: float, *, server: str | None = None, indexer: str | None = None) -> Reading:
    pages = {name: page for name, page in (("server", server), ("indexer", indexer)) if page is not None}
    return Reading(at=at, pages=pages)


def test_rates_are_over_the_window_and_levels_are_of_now():
    frames = Frames()
    for second in range(12):
        within = {"0.01": 10 * second, "0.05": 40 * second, "+Inf": 40 * second}
        page = server_page(
            answered=40 * second, rejected=4 * second, queue=second, within=within, beams=(32, 64, 128, 32)
        )
        frame = frames.add(look(100.0 + second, server=page, indexer=indexer_page(applied=3 * second)))
    assert frame["t"] == 111
    figures = frame["figures"]
    assert figures["answered_total"] == 440
    assert figures["rejected_total"] == 44
    assert figures["answered_qps"] == pytest.approx(40)
    assert figures["offered_qps"] == pytest.approx(44)
    assert figures["rejects"] == {"queue": pytest.approx(4)}
    # A quarter below 10 ms, the rest on a line to 50: the half is a third of the way.
    assert figures["p50_ms"] == pytest.approx(10 + 40 / 3)
    assert figures["p99_ms"] == pytest.approx(10 + 40 * 0.74 / 0.75)
    assert figures["slo_ms"] == pytest.approx(100)
    assert figures["mean_ms"] == pytest.approx(30)
    assert figures["wait_ms"] == pytest.approx(5)
    assert figures["queue"] == 11
    assert figures["beams"] == {"1": 32, "2": 64, "3": 128, "value": 32}
    assert figures["rows"] == 32 + 64 + 32
    assert figures["rows_base"] == 256
    assert figures["models"] == {"beam_scheduler_0_0": 1}
    assert figures["events_qps"] == pytest.approx(3)
    assert (figures["sequence"], figures["index_version"], figures["dead_letters"]) == (11, 11, 2)
    assert all(state == {"ok": True, "age_s": 0, "problem": None} for state in frame["sources"].values())


def test_a_source_that_is_gone_takes_its_figures_with_it_and_grows_old():
    frames = Frames()
    for second in range(3):
        frames.add(look(second, server=server_page(answered=second), indexer=indexer_page()))
    missed = frames.add(Reading(at=3.5, problems={"server": "timed out"}))
    assert missed["sources"]["server"] == {"ok": True, "age_s": 1.5, "problem": None}
    frame = frames.add(Reading(at=7.5, pages={"indexer": indexer_page()}, problems={"server": "refused"}))
    assert frame["sources"]["server"] == {"ok": False, "age_s": 5.5, "problem": "refused"}
    assert "answered_total" not in frame["figures"]
    assert frame["figures"]["sequence"] == 11


def test_what_happened_in_a_gap_is_no_rate_of_now():
    frames = Frames()
    frames.add(look(0, server=server_page(answered=0)))
    frames.add(look(1, server=server_page(answered=10)))
    back = frames.add(look(1 + 3 * WINDOW_S, server=server_page(answered=10_000)))
    assert back["figures"]["answered_qps"] is None
    assert back["figures"]["answered_total"] == 10_000
    later = frames.add(look(2 + 3 * WINDOW_S, server=server_page(answered=10_020)))
    assert later["figures"]["answered_qps"] == pytest.approx(20)


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("gr4ad_gateway_ready 1\n", "lack nv_inference_request_success"),
        ("<html>not metrics</html>", "expected metrics in text form"),
        ("", "lack nv_inference_request_success"),
    ],
)
def test_a_page_that_is_not_the_servers(page, problem):
    frame = Frames().add(look(1, server=page))
    state = frame["sources"]["server"]
    assert (state["ok"], state["age_s"]) == (False, None)
    assert problem in state["problem"]
    assert frame["figures"] == {}


def test_a_frame_is_json_whatever_the_page_says():
    page = server_page(answered=1) + "gr4ad_arrival_rate NaN\n"
    page = page.replace("gr4ad_index_lag_seconds 0.25", "gr4ad_index_lag_seconds +Inf")
    frame = Frames().add(look(1, server=page))
    assert frame["figures"]["index_lag_s"] is None
    assert json.loads(json.dumps(frame, allow_nan=False)) == frame


@pytest.mark.parametrize("seed", range(40))
def test_no_page_whatever_is_on_it_ends_the_frames(seed):
    random = np.random.default_rng(seed)
    frames = Frames()
    for at in range(5):
        page = bytearray(server_page(answered=at, within={"0.01": at, "+Inf": at}).encode())
        for place in random.integers(0, len(page), random.integers(1, 9)):
            page[place] = random.integers(0, 256)
        text = page[: random.integers(len(page) // 2, len(page) + 1)].decode("utf-8", "replace")
        frame = frames.add(look(at, server=text))
        assert frame["sources"]["server"]["ok"] or frame["sources"]["server"]["problem"]
        json.dumps(frame, allow_nan=False)


def test_versions_are_shown_as_they_were_read():
    versions = Versions(current=2, made={1: 5.0, 2: 6.0}, named=[2, 1])
    frame = Frames().add(Reading(at=7, versions=versions))
    assert frame["versions"] == {
        "current": 2,
        "problem": None,
        "made": {1: 5.0, 2: 6.0},
        "named": [2, 1],
        "canary": None,
        "canary_share": None,
    }
    assert frame["sources"] == {"bundles": {"ok": True, "age_s": 0, "problem": None}}
