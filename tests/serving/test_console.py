"""The console, as users start it, in front of a real server: its page in Chromium against /metrics."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import polars as pl
import pytest

from examples.client import send
from tests.browser import chromium, needs_chromium
from tests.console_server import TOKEN, started
from tests.pipeline import Pipeline, small_ads
from tests.serving.ask import AD_IDS, LIVE, NOW, SIDS, request
from tests.tiny import VALUE_TABLE
from tests.unit.test_console_scrape import by_hand
from web.pages import read_page

pytestmark = pytest.mark.slow

HOSTILE = "<script>window.pwned=1</script><b>bread</b>"


@pytest.fixture(scope="module")
def run(pipeline: Pipeline, tmp_path_factory):
    """A run folder of the tiny deployment: tables of made-up users beside its bundles and index."""
    folder = tmp_path_factory.mktemp("run")
    for name in ("bundles", "index"):
        (folder / name).symlink_to(getattr(pipeline, name))
    random = np.random.default_rng(0)
    status = np.where(np.isin(AD_IDS, LIVE), "active", "paused")
    ads = small_ads(len(AD_IDS)).with_columns(
        pl.Series("ad_id", AD_IDS), pl.Series("status", status), pl.lit(HOSTILE).alias("text")
    )
    events = pl.DataFrame(
        {
            "user_id": np.repeat([1, 2], 8),
            "ad_id": random.choice(AD_IDS, 16),
            "timestamp": NOW - random.integers(1, 10_000_000, 16),
            "behavior": ["conversion"] * 16,
            "value": random.choice(VALUE_TABLE, 16),
        }
    )
    users = pl.DataFrame({"user_id": [1, 2], "age": ["old", "young"], "region": ["east", "west"]})
    sids = pl.DataFrame({"ad_id": AD_IDS} | {f"s{t + 1}": SIDS[:, t] for t in range(3)})
    (folder / "data").mkdir()
    (folder / "tokenizer").mkdir()
    for name, table in (("ads", ads), ("events", events), ("users", users)):
        table.write_parquet(folder / "data" / f"{name}.parquet")
    sids.write_parquet(folder / "tokenizer" / "sids.parquet")
    return folder


@pytest.fixture(scope="module")
def console(server, run):
    urls = ["--url", server.grpc_url, "--metrics-url", server.metrics_url]
    environment = os.environ | {"GR4AD_CONSOLE_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    with started(
        "--run", str(run), "--indexer", "none", "--hz", "5", *urls, environment=environment
    ) as console:
        yield console


def totals(server) -> dict[str, float]:
    """Figures of the server's metrics page, read by hand, once nothing moves any more."""
    url = server.metrics_url
    time.sleep(1.0)
    samples = by_hand(read_page(url, timeout_s=5).decode())

    def total(name: str, **labels: str) -> float:
        return sum(v for n, has, v in samples if n == name and labels.items() <= has.items())

    return {
        "answered_total": total("gr4ad_requests_total", outcome="answered"),
        "refused_total": total("gr4ad_requests_total", outcome="refused"),
        "index_version": total("gr4ad_index_version"),
        "queue": total("nv_inference_pending_request_count", model="beam_scheduler"),
        "within_inf": total("gr4ad_answered_within_total", le="+Inf"),
    }


@needs_chromium
def test_the_page_shows_what_the_metrics_of_a_real_server_say(server, console):
    for seed in range(12):
        send(server.grpc_url, request(seed=seed), parameters={"cache": "bypass"})
    with chromium() as page:
        page.open(console.url)
        expected = totals(server)  # the last count is told with the next batch: this one is of now
        wanted = f"{expected['answered_total']:,.0f}"
        figure = "document.querySelector('[data-figure={}]')?.textContent"
        page.wait_for(f"{figure.format('answered_total')} === '{wanted}'", what=f"{wanted} answers")
        for name in ("refused_total", "index_version", "queue"):
            assert page.evaluate(figure.format(name)) == f"{expected[name]:,.0f}", name
        assert expected["within_inf"] > 0
        beams = page.evaluate("[...document.querySelectorAll('[data-beams]')].map((e) => e.textContent)")
        assert beams == ["4", "8", "16", "6"]
        versions = page.evaluate("[...document.querySelectorAll('#versions li')].map((e) => e.innerText)")
        assert len(versions) == 1
        assert versions[0].startswith("1")
        assert versions[0].endswith("answers, CURRENT")
        assert page.evaluate("document.querySelectorAll('.stale').length") == 0
        page.evaluate("document.querySelector('#ask button').click()")
        page.wait_for("document.querySelectorAll('.ads li').length === 10", what="the answer")
        assert page.evaluate("document.querySelector('.ads .text').textContent") == HOSTILE
        assert page.evaluate("typeof window.pwned") == "undefined"
        assert page.errors == []


def test_one_request_is_that_of_the_client_and_its_levels_add_up_to_its_score(server, console, run):
    status, answer = console.post("/api/request", {"user": "2", "num_ads": 6}, token=None)
    assert status == 200, answer
    assert answer["problems"] == []
    assert answer["levels_missing"] is None
    assert len(answer["history"]) == answer["events"] == 8
    times = [event["time"] for event in answer["history"]]
    assert times == sorted(times, reverse=True)
    assert [len(ad["log_p_levels"]) for ad in answer["ads"]] == [3] * 6
    for ad in answer["ads"]:
        assert ad["log_p"] == pytest.approx(sum(ad["log_p_levels"]), abs=1e-4)
        assert all(level < 1e-5 for level in ad["log_p_levels"])
        assert ad["text"] == HOSTILE
        assert ad["sid"] == SIDS[int(ad["ad"]) == AD_IDS][0].tolist()
    shared = {tuple(ad["sid"][:1]): ad["log_p_levels"][0] for ad in answer["ads"]}
    assert all(ad["log_p_levels"][0] == shared[tuple(ad["sid"][:1])] for ad in answer["ads"])


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"user": "99"}, 422, "expected a user of the logs"),
        ({"user": "abc"}, 422, "invalid literal"),
        ({"num_ads": 51}, 422, "num_ads: "),
        ({"num_ads": 0}, 422, "num_ads: "),
        ({"more": 1}, 422, "more: "),
        ([], 422, "body: "),
    ],
)
def test_a_request_that_is_none(console, body, status, message):
    found, answer = console.post("/api/request", body, token=None)
    assert found == status
    assert message in answer["message"]


def test_a_server_that_is_away_is_said_to_be(run):
    with started(
        "--run", str(run), "--url", "127.0.0.1:1", "--metrics-url", "http://127.0.0.1:1/"
    ) as console:
        status, answer = console.post("/api/request", {}, token=None)
        assert (status, answer["reason"]) == (502, "server")
        _, _, about = console.ask("GET", "/api/about")
        assert json.loads(about) == {"can_ask": True, "actions": [], "replay": False}
