"""Figures of metrics pages against an independent reading of the same text, and against brute force."""

import math
import re

import numpy as np
import pytest

from console.scrape import Scrape, increase, increase_by, quantile
from gateway.metrics import Metrics
from tests.metrics_page import server_page

LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


def by_hand(page: str) -> list[tuple[str, dict[str, str], float]]:
    """Every sample of a page, by a regular expression."""
    found = []
    for line in page.splitlines():
        if line and not line.startswith("#"):
            name, labels, value = LINE.match(line).groups()
            found.append((name, dict(re.findall(r'(\w+)="([^"]*)"', labels or "")), float(value)))
    return found


def test_every_sample_is_read_under_its_own_name():
    gateway = Metrics()
    gateway.answered(0.03)
    gateway.refused("origin")
    page = gateway.render().decode() + server_page(answered=7, rejected=2)
    scrape = Scrape.parse(page, at=5.0)
    samples = by_hand(page)
    assert {name for name, *_ in samples} >= {"nv_inference_request_success", "gr4ad_requests_total"}
    assert sum(len(series) for series in scrape.samples.values()) == len(samples)
    for name, labels, value in samples:
        assert scrape.samples[name][frozenset(labels.items())] == value
    for name in {name for name, *_ in samples}:
        assert scrape.total(name) == pytest.approx(sum(value for n, _, value in samples if n == name))


def test_series_are_chosen_by_labels_and_what_is_no_number_is_left_out():
    scrape = Scrape.parse('a{x="1",y="2"} 3\na{x="1",y="3"} 4\na{x="2",y="2"} NaN\nb +Inf\n', at=0)
    assert scrape.total("a") == 7
    assert scrape.total("a", y="2") == 3
    assert scrape.total("a", x="2") is None
    assert scrape.total("c") is None
    assert scrape.by("a", "y") == {"2": 3, "3": 4}
    assert scrape.highest("b") == math.inf
    assert scrape.highest("c") is None


@pytest.mark.parametrize("page", ["a b c d", "a{x=1} 2", 'a{x="1" 2'])
def test_a_page_that_is_none(page):
    with pytest.raises(ValueError):  # noqa: PT011 - the parser's own words
        Scrape.parse(page, at=0)


def test_counters_grow_through_restarts():
    """Against the sum of steps of each series, one of which begins anew and one of which is new."""
    random = np.random.default_rng(0)
    steps = random.integers(0, 9, (20, 3))
    counts = np.cumsum(steps, axis=0)
    counts[12:, 1] -= counts[11, 1]  # its process came back before the 12th look

    def scrape(i: int) -> Scrape:
        rows = [f'n_total{{of="{"ab"[s == 2]}",s="{s}"}} {counts[i, s]}' for s in range(3) if i > 5 or s < 2]
        return Scrape.parse("\n".join(rows) + "\n", at=i)

    grown = sum(increase(scrape(i - 1), scrape(i), "n_total") for i in range(1, 20))
    assert grown == steps[1:, :2].sum() + counts[19, 2]
    assert increase_by(scrape(3), scrape(9), "n_total", "of") == {
        "a": counts[9, :2].sum() - counts[3, :2].sum(),
        "b": counts[9, 2],
    }
    assert increase(scrape(3), scrape(9), "other_total") is None


BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.5)


@pytest.mark.parametrize("q", [0.01, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("seed", range(5))
def test_quantiles_lie_in_the_bucket_of_the_true_one(q, seed):
    """Within a bucket they are where a straight line from its lower to its upper bound has the rank."""
    random = np.random.default_rng(seed)
    values = np.sort(random.exponential(0.05, 400))
    counts = {str(b): float((values <= b).sum()) for b in BOUNDS} | {"+Inf": 400.0}
    found = quantile(q, counts)
    true = values[math.ceil(q * 400) - 1]
    if true > BOUNDS[-1]:
        assert found == BOUNDS[-1]
        return
    at = int(np.searchsorted(BOUNDS, true))
    low, high = (0.0, *BOUNDS)[at], BOUNDS[at]
    inside = (values > low) & (values <= high)
    below = (values <= low).sum()
    assert found == pytest.approx(low + (high - low) * (q * 400 - below) / inside.sum())


@pytest.mark.parametrize("counts", [{}, {"+Inf": 0.0, "1": 0.0}, {"1": 3.0}, {"+Inf": 3.0}])
def test_no_quantile_of_nothing(counts):
    assert quantile(0.5, counts) is None
