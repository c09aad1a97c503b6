"""The scheduler with audiences and accounts, against the list of all ads: bans, caps, cached beams."""

import dataclasses

import numpy as np
import pytest

from serving.backend.resolve import find_ads
from serving.cache import LocalCache
from serving.cached_answers import CachedAnswers
from serving.index.eligible import Terms
from serving.index.snapshot import IndexSnapshot
from serving.load.pruning import Pruning
from serving.search.widths import WidthPlan
from tests.audiences import TEXTS, is_in, some_audiences
from tests.tiny import LEVEL_SIZES, tiny_catalogue
from tests.unit.test_scheduler import deployment, make, requests

__all__ = ["deployment"]
ALL = WidthPlan((6, 30, 210), 210)
OLD, YOUNG = Terms.of({"age": "old", "place": "search"}, 50), Terms.of({"age": "young", "place": "feed"}, 150)


class Always(Pruning):
    def pays(self, plan, asked, *, requests):
        return True


@pytest.fixture(params=["plain", "pruned"])
def deployed(deployment, request, monkeypatch):
    """A scheduler, and its index with audiences in which some SIDs are shared and accounts are few."""
    ads, sids, active = tiny_catalogue(ads=90)
    random = np.random.default_rng(1)
    snapshot = IndexSnapshot.build(
        ads,
        sids,
        active=active,
        level_sizes=LEVEL_SIZES,
        audiences=random.integers(0, len(TEXTS) + 1, len(ads)),
        accounts=random.integers(0, 7, len(ads)),
        table=some_audiences(),
    )
    scheduler = make(deployment)
    monkeypatch.setattr(scheduler._reader, "snapshot_of", lambda name: snapshot)
    scheduler._plan = scheduler._policy.plan = scheduler._max_plan = ALL
    if request.param == "pruned":
        scheduler._pruning = Always(levels=3)
    return scheduler, snapshot


def asked(scheduler, *terms, **changes):
    found = [
        dataclasses.replace(r, terms=t, plan=ALL, **changes)
        for r, t in zip(requests(len(terms)), terms, strict=True)
    ]
    answers = scheduler.search(found).answers
    assert not any(isinstance(a, Exception) for a in answers), answers
    return found, answers


def shown(snapshot, request, answer):
    ads = find_ads(
        snapshot,
        answer.sids,
        scores=answer.scores,
        expected_value=answer.expected_value,
        num_ads=request.num_ads,
        exclude=request.exclude,
        rank_by="value" if request.by_value else "probability",
        terms=request.terms,
        max_per_account=request.max_per_account,
    )
    return ads.ad_ids.tolist()


def every_ad(scheduler, snapshot, count):
    """All active ads of each of so many requests, best first: from a search that nothing is left out of."""
    without = dataclasses.replace(snapshot, audiences=None)
    scheduler._reader.snapshot_of, before = (lambda name: without), scheduler._reader.snapshot_of
    pruning, scheduler._pruning = scheduler._pruning, None
    found, answers = asked(scheduler, *[OLD] * count, num_ads=200)
    scheduler._reader.snapshot_of, scheduler._pruning = before, pruning
    return [shown(without, r, a) for r, a in zip(found, answers, strict=True)]


def expected(snapshot, ads, request):
    """In plain words."""
    audiences, accounts = (
        dict(zip(ads, column.tolist(), strict=True)) for column in snapshot.traits_of(np.array(ads))
    )
    taken, found = {}, []
    for ad in ads:
        account = accounts[ad]
        if not is_in(audiences[ad], request.terms) or ad in request.exclude.tolist():
            continue
        if account in request.terms.excluded_accounts:
            continue
        taken[account] = taken.get(account, 0) + 1
        if request.max_per_account and account and taken[account] > request.max_per_account:
            continue
        found.append(ad)
    return found[: request.num_ads]


@pytest.mark.parametrize("num_ads", [1, 5, 20, 100])
@pytest.mark.parametrize("cap", [0, 1, 2])
def test_answers_are_the_best_that_each_request_may_see(deployed, num_ads, cap):
    scheduler, snapshot = deployed
    every = every_ad(scheduler, snapshot, 4)
    without = dataclasses.replace(OLD, excluded_accounts=(2, 3))
    excluded = np.array(every[0][:9])
    found, answers = asked(
        scheduler, OLD, YOUNG, Terms(), without, num_ads=num_ads, max_per_account=cap, exclude=excluded
    )
    for ads, request, answer in zip(every, found, answers, strict=True):
        assert shown(snapshot, request, answer) == expected(snapshot, ads, request)
    assert len({len(expected(snapshot, a, r)) for a, r in zip(every, found, strict=True)}) > (num_ads > 20)


def test_a_narrow_search_fills_the_answer_all_the_same(deployed):
    scheduler, snapshot = deployed
    every = every_ad(scheduler, snapshot, 2)
    scheduler._max_plan = WidthPlan((1, 1, 1), 1)
    for cap in (0, 1, 2):
        found, answers = asked(scheduler, OLD, YOUNG, num_ads=12, max_per_account=cap)
        for ads, request, answer in zip(every, found, answers, strict=True):
            wanted = min(12, len(expected(snapshot, ads, dataclasses.replace(request, num_ads=200))))
            assert len(shown(snapshot, request, answer)) == wanted


def test_no_beam_is_spent_on_a_sid_of_which_only_an_excluded_ad_is_eligible(deployed):
    scheduler, snapshot = deployed
    rows, ads = snapshot.ads_of_leaves(np.arange(len(snapshot.leaf_ad_ptr) - 1))
    eligible = snapshot.shown(ads, OLD)
    of_leaf, eligible_of_leaf = np.bincount(rows), np.bincount(rows, eligible)
    excluded = ads[eligible & ((of_leaf > 1) & (eligible_of_leaf == 1))[rows]]
    assert len(excluded)
    scheduler._max_plan = WidthPlan((1, 1, 1), 1)
    everything = dataclasses.replace(requests(1)[0], terms=OLD, num_ads=200, exclude=excluded)
    wanted = len(expected(snapshot, every_ad(scheduler, snapshot, 1)[0], everything))
    for num_ads in range(1, wanted + 1):
        [found], [answer] = asked(scheduler, OLD, num_ads=num_ads, exclude=excluded)
        assert len(shown(snapshot, found, answer)) == num_ads


def test_beams_of_the_cache_are_of_the_same_audiences(deployed):
    scheduler, snapshot = deployed
    scheduler._cached = CachedAnswers(LocalCache(ttl_s=60.0, max_bytes=1 << 22), plan=ALL)

    def hits(terms, **changes):
        request = dataclasses.replace(requests(1)[0], terms=terms, num_ads=5, **changes)
        result = scheduler.search([request])
        assert not isinstance(result.answers[0], Exception)
        return result.report.hits

    assert hits(OLD) == 0
    assert hits(OLD) == 1
    assert hits(dataclasses.replace(OLD, now=51)) == 1  # no flight begins or ends between the two
    assert hits(dataclasses.replace(OLD, now=100)) == 0  # but here one does
    assert (
        hits(Terms.of({"age": "old", "place": "search", "weather": "rain"}, 50)) == 1
    )  # nobody asks for that
    assert hits(Terms.of({"age": "young", "place": "search"}, 50)) == 0
    assert hits(dataclasses.replace(OLD, excluded_accounts=(2,))) == 0
    assert hits(OLD, max_per_account=1) == 0
    assert hits(OLD, max_per_account=1) == 1


def test_an_entry_whose_ads_the_request_may_no_longer_see_is_searched_anew(deployed):
    """Its audiences are the same, but ads of it have another one meanwhile."""
    scheduler, snapshot = deployed
    scheduler._cached = CachedAnswers(LocalCache(ttl_s=60.0, max_bytes=1 << 22), plan=ALL)
    request = dataclasses.replace(requests(1)[0], terms=OLD, num_ads=5)
    scheduler.search([request])
    later = dataclasses.replace(
        snapshot, ad_audiences=np.full(len(snapshot.ad_ids), 2, np.int32), states=type(snapshot.states)()
    )
    later.ad_audiences[:6] = 0
    scheduler._reader.snapshot_of = lambda name: later
    result = scheduler.search([request])
    assert result.report.hits == 0
    assert set(shown(later, request, result.answers[0])) <= set(later.ad_ids[:6].tolist())
