"""The page in a real headless Chromium: it shows what the metrics say, and hostile text stays text."""

import json
import time

import pytest

from console.actions import Actions
from console.feeds import LiveFeed, Replay
from console.guard import Guard
from console.watch import Watch
from serving.model.canary import Canary, write_canary
from tests.browser import chromium, needs_chromium
from tests.console_server import TOKEN, running
from tests.indexing import write_manifest
from tests.learning import write_earned, write_learnt
from tests.metrics_page import indexer_page, server_page, showing
from tests.unit.test_console_feeds import FILM
from tests.unit.test_console_scrape import by_hand

pytestmark = [pytest.mark.slow, needs_chromium]

HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=2</script>&lt;b&gt; \'"`${1}'
ANSWER = {
    "user": HOSTILE,
    "events": 3,
    "ignored": 1,
    "history": [{"ad": "9", "behavior": "click", "time": 1_700_000_000, "text": HOSTILE}],
    "ads": [
        {
            "ad": HOSTILE,
            "sid": [1, 2, 3],
            "log_p": -2.5,
            "log_p_levels": [-1.0, -0.25, -0.75],
            "ecpm": 1.5,
            "seen": 2,
            "text": HOSTILE,
        }
    ],
    "levels_missing": None,
    "model_version": 1,
    "index_version": 11,
    "beam_widths": [4, 8, 16, 6],
    "degraded": False,
    "ms": 12.4,
    "problems": [HOSTILE],
}


class Asker:
    """Answers whatever is asked."""

    def ask(self, user: str, *, num_ads: int) -> dict:
        return ANSWER


@pytest.fixture(scope="module")
def browser():
    with chromium() as page:
        page.resize(1200, 900)
        yield page
        assert page.errors == []


@pytest.fixture
def page(browser):
    browser.errors.clear()
    browser.requested.clear()
    return browser


def texts(page) -> dict[str, str]:
    """What the page shows, by figure."""
    return page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('[data-figure]')]"
        ".map((e) => [e.dataset.figure, e.textContent]))"
    )


def expected(server: str, indexer: str) -> dict[str, str]:
    """What it should show, from the pages read by hand."""
    samples = by_hand(server + indexer)

    def total(name: str, **labels: str) -> str:
        return f"{sum(v for n, has, v in samples if n == name and labels.items() <= has.items()):,.0f}"

    return {
        **{
            f"{o}_total": total("gr4ad_requests_total", outcome=o) for o in ("answered", "rejected", "failed")
        },
        "queue": total("nv_inference_pending_request_count", model="beam_scheduler"),
        "rows": total("gr4ad_beam_rows"),
        "rows_base": total("gr4ad_beam_rows_base"),
        "max_queue": total("gr4ad_max_queue"),
        "index_version": total("gr4ad_index_version"),
        "sequence": total("gr4ad_indexer_sequence"),
        "ads_active": total("gr4ad_indexer_ads", status="active"),
        "dead_letters": total("gr4ad_indexer_dead_letters"),
        "index_lag_s": "0.3",
        "slo_ms": "100",
    }


def test_values_on_the_page_are_those_of_the_metrics(page, tmp_path):
    write_manifest(tmp_path, 1, "tok", current=False)
    write_manifest(tmp_path, 2, "tok")
    write_manifest(tmp_path, 3, "tok", current=False)
    write_canary(tmp_path, Canary(version=3, beside=2, share=0.2, began=0.0))
    server = server_page(answered=12_345, rejected=678, queue=9, beams=(20, 40, 80, 30), model=2)
    with showing(server) as triton, showing(indexer_page(sequence=17)) as sidecar:
        feed = LiveFeed({"server": triton.url, "indexer": sidecar.url}, bundles=tmp_path, hz=5)
        with running() as console, Watch(console.board, feed):
            page.open(console.url)
            wanted = expected(server, sidecar.page)
            page.wait_for(
                "document.querySelector('[data-figure=queue]')?.textContent === '9'", what="figures"
            )
            shown = texts(page)
            assert {name: shown[name] for name in wanted} == wanted
            beams = (
                "Object.fromEntries([...document.querySelectorAll('[data-beams]')]"
                ".map((e) => [e.dataset.beams, e.textContent]))"
            )
            assert page.evaluate(beams) == {"1": "20", "2": "40", "3": "80", "value": "30"}
            rows = page.evaluate("[...document.querySelectorAll('#versions li')].map((e) => e.innerText)")
            assert len(rows) == 3
            assert rows[0].startswith("3")
            assert "canary, 20.0 % of the requests" in rows[0]
            assert rows[1].startswith("2")
            assert "answers, CURRENT" in rows[1]
            assert rows[2].startswith("1")
            assert "answers" not in rows[2]

            triton.page = server_page(
                answered=12_845, rejected=678, queue=0, within={"0.1": 500, "+Inf": 500}
            )
            wanted = expected(triton.page, sidecar.page)
            page.wait_for(
                "document.querySelector('[data-figure=queue]').textContent === '0'", what="the next look"
            )
            shown = texts(page)
            assert {name: shown[name] for name in wanted} == wanted
            assert float(shown["answered_qps"].replace(",", "")) > 50
            assert shown["p50_ms"] == "50"
            assert page.evaluate("document.querySelectorAll('.chart canvas').length") == 8
            requested = page.requested[:]
    assert all(url.startswith((console.url, "data:")) for url in requested), requested
    assert not [error for error in page.errors if "ERR_" not in error]


def test_a_source_that_is_gone_is_said_to_be_stale_and_comes_back(page):
    with showing(indexer_page()) as sidecar, running() as console:
        with showing(server_page(answered=5)) as triton:
            port = triton.server_port
            feed = LiveFeed({"server": triton.url, "indexer": sidecar.url}, bundles=None, hz=5)
            watch = Watch(console.board, feed)
            watch.__enter__()
            page.open(console.url)
            page.wait_for(
                "document.querySelector('[data-figure=answered_total]')?.textContent === '5'", what="5"
            )
            assert page.evaluate("document.querySelectorAll('.stale').length") == 0
        page.wait_for("document.querySelector('section.stale > .note')", what="a stale panel")
        note = page.evaluate("document.querySelector('section.stale > .note').textContent")
        assert note.startswith("Stale for ")
        assert f"http://127.0.0.1:{port}/metrics" in note
        assert page.evaluate("document.querySelector('[data-name=server]').className") == "gone"
        assert page.evaluate("document.querySelector('[data-name=indexer]').className") == ""
        assert texts(page)["answered_total"] == "5"  # the last one that was seen
        watch.__exit__(None, None, None)
        page.wait_for("!document.getElementById('silence').hidden", what="word of the silence")
        assert "silent for" in page.evaluate("document.getElementById('silence').textContent")
    page.errors.clear()  # the browser's own lines of connections that were refused


def test_a_console_without_any_server_says_so(page):
    feed = LiveFeed({"server": "http://127.0.0.1:1/metrics"}, bundles=None, hz=5)
    with running() as console, Watch(console.board, feed):
        page.open(console.url)
        page.wait_for("document.querySelector('section.stale > .note')", what="a stale panel")
        note = page.evaluate("document.querySelector('section.stale > .note').textContent")
        assert note.startswith("Nothing yet: http://127.0.0.1:1/metrics")
        assert set(texts(page).values()) == {"–"}
        assert page.evaluate(
            "document.getElementById('request').hidden && document.getElementById('actions').hidden"
        )


def test_loss_and_revenue_are_shown_where_there_are_any_and_grow_stale(page, tmp_path):
    shown = "[...document.querySelectorAll('#learning, #revenue')].map((e) => !e.hidden)"
    with running() as console, Watch(console.board, LiveFeed({}, bundles=None, hz=5, run=tmp_path)):
        page.open(console.url)
        page.wait_for("document.getElementById('clock')?.textContent", what="a frame")
        assert page.evaluate(shown) == [False, False]
        write_learnt(tmp_path, step=1_208, probe_loss=3.21, train_total=2.87)
        write_earned(tmp_path, revenue_online=1_311.0, revenue_frozen=1_200.0)
        page.wait_for(
            "document.querySelector('[data-figure=revenue_ratio]')?.textContent === '1.093'", what="both"
        )
        assert page.evaluate(shown) == [True, True]
        found = texts(page)
        wanted = {
            "online_loss": "2.870",
            "probe_loss": "3.210",
            "online_step": "1,208",
            "online_lag_s": "4.5",
        }
        wanted |= {"revenue_online": "1,311", "revenue_frozen": "1,200", "loop_day": "12.5"}
        assert {name: found[name] for name in wanted} == wanted
        width = "document.querySelector('#chart-revenue canvas').clientWidth"
        page.wait_for(f"{width} > 100", what="a chart that was hidden until now")
        write_earned(tmp_path, at=time.time() - 60)
        page.wait_for("document.querySelector('#revenue.stale > .note')", what="a stale panel")
        note = page.evaluate("document.querySelector('#revenue > .note').textContent")
        assert "its last record is 6" in note
        assert not page.evaluate("document.querySelector('#learning').classList.contains('stale')")


def test_hostile_texts_stay_text(page):
    with running(asker=Asker()) as console:
        console.board.publish(
            {
                "t": time.time(),
                "sources": {HOSTILE: {"ok": True, "age_s": 0, "problem": None}}
                | {"server": {"ok": False, "age_s": None, "problem": HOSTILE}},
                "figures": {"rejects": {HOSTILE: 1.0}, "beams": {HOSTILE: 3}},
                "versions": {"current": None, "problem": HOSTILE, "made": {}, "named": []},
            }
        )
        page.open(console.url)
        page.wait_for(
            "document.querySelector('#request') && !document.querySelector('#request').hidden",
            what="the form",
        )
        page.evaluate("document.querySelector('#ask button').click()")
        page.wait_for("document.querySelectorAll('.ads li').length === 1", what="the answer")
        page.evaluate("document.querySelector('details').open = true")
        assert page.evaluate("document.querySelector('.ads .text').textContent") == HOSTILE
        assert page.evaluate("document.querySelector('.events .text').textContent") == HOSTILE
        assert page.evaluate("document.querySelector('#versions .note').textContent") == HOSTILE
        path = page.evaluate("[...document.querySelectorAll('.path span')].map((e) => e.textContent)")
        assert path == ["1log p -1.00", "2log p -0.25", "3log p -0.75"]
        facts = page.evaluate("document.querySelector('.ads .facts').innerText")
        assert "log p -2.500" in facts
        assert "serving adds -0.500" in facts
        assert "eCPM 1.50" in facts
        time.sleep(0.3)  # time for an image that cannot be loaded
        assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
        assert page.evaluate("typeof window.pwned") == "undefined"
        # Even where markup got in, the policy lets nothing run.
        page.evaluate(f"document.getElementById('answer').innerHTML = {json.dumps(HOSTILE)}")
        time.sleep(0.3)
        assert page.evaluate("typeof window.pwned") == "undefined"
        page.errors.clear()  # of that last try


def test_an_action_takes_the_token_that_is_typed(page, tmp_path):
    (tmp_path / "CURRENT").write_text("1\n")
    with running(guard=Guard("127.0.0.1", token=TOKEN), actions=Actions(bundles=tmp_path)) as console:
        page.open(console.url)
        page.wait_for("document.querySelector('form[data-action=rollback]')", what="the form")
        status = "document.getElementById('action-status').textContent"
        press = (
            "document.getElementById('token').value = '{}';"
            "document.querySelector('form[data-action] input').value = '3';"
            "document.querySelector('form[data-action] button').click()"
        )
        page.evaluate(press.format("wrong token"))
        page.wait_for(f"{status}.startsWith('401 expected')", what="a refusal")
        page.evaluate(press.format(TOKEN))
        page.wait_for(f"{status}.startsWith('409 ')", what="an answer of the action")
        assert "3: expected manifest.json, found none" in page.evaluate(status)
        page.errors.clear()  # the browser's own lines of answers that are not 2xx


@pytest.mark.parametrize("width", [360, 1200])
def test_a_recording_fits_the_window_and_moves_nothing_where_that_is_wanted(page, width):
    page.resize(width, 800)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    with running(replay=True, asker=Asker()) as console, Watch(console.board, Replay(FILM, speed=1e6)):
        page.open(console.url)
        page.wait_for("document.querySelectorAll('#versions li').length === 2", what="the recording")
        page.evaluate("document.querySelector('#ask button').click()")
        page.wait_for("document.querySelectorAll('.ads li').length === 1", what="the answer")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        bars = "[...document.querySelectorAll('.track > i')]"
        assert page.evaluate(f"{bars}.length") == 4
        assert set(page.evaluate(f"{bars}.map((e) => getComputedStyle(e).transitionDuration)")) == {"0s"}
        page.call("Emulation.setEmulatedMedia", features=[])
        assert set(page.evaluate(f"{bars}.map((e) => getComputedStyle(e).transitionDuration)")) == {"0.45s"}
        page.wait_for(
            "document.getElementById('silence').textContent === 'The recording has ended.'", what="the end"
        )
