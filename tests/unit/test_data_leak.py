"""How often the answer is in the question, counted in a plain loop; parts whose outcomes come too late."""

import numpy as np
import pytest

from tests.unit.test_data_log import one_user, random_tables
from training.data import leak as module
from training.data.leak import Leak, measure_leak
from training.data.log import EventLog
from training.data.parts import Parts
from training.data.sanity import check_parts, targets_of_parts
from training.data.split import Split


def every_target(log: EventLog):
    split = Split(train_end=10**9, validation_end=10**9 + 1, end=10**9 + 2)
    return Parts.of(split, log).groups(log, 0, target_behaviors=["conversion"], min_history=0)


def plain_leak(log: EventLog, groups) -> Leak:
    user = np.repeat(log.user_ids, np.diff(log.user_ptr))
    shares = []
    for before in (0, 3600):
        hits = []
        for i, request in enumerate(groups.request):
            events = groups.target_events[groups.target_ptr[i] : groups.target_ptr[i + 1]]
            past = [
                e
                for e in range(len(user))
                if user[e] == log.user_ids[groups.user_row[i]] and log.timestamp[e] < groups.now[i] - before
            ][-10:]
            others = {int(log.ad_ids[e]) for e in past if log.exposures.request[e] != request}
            hits += [int(log.ad_ids[e]) in others for e in events]
        shares.append(np.mean(hits))
    return Leak(*map(float, shares))


@pytest.mark.parametrize("ids", [0, 30])
@pytest.mark.parametrize("window", [0, 900])
def test_shares_equal_the_loop(ids, window):
    for seed, span in ((0, 20_000), (1, 400_000)):
        log = EventLog.from_tables(random_tables(seed, span=span, ids=ids), attribution_window_s=window)
        groups = every_target(log)
        found = measure_leak(log, groups)
        assert found == plain_leak(log, groups)
        assert 0 < found.earlier < 1


def test_of_a_long_log_some_targets_are_looked_at(monkeypatch):
    log = EventLog.from_tables(random_tables(0, span=20_000), attribution_window_s=0)
    groups, whole = every_target(log), measure_leak(log, every_target(log))
    monkeypatch.setattr(module, "MOST_TARGETS", 30)
    some = measure_leak(log, groups)
    assert some != whole
    assert some.now == pytest.approx(whole.now, abs=0.25)
    late = Parts(np.ones(len(log.timestamp), np.int8), np.ones(len(log.times()), np.int8))
    none = late.groups(log, 0, target_behaviors=["conversion"], min_history=0)
    with pytest.raises(ValueError, match="at least one target to measure the leak on, got none"):
        measure_leak(log, none)


def test_a_part_whose_outcomes_all_come_later_is_empty():
    rows = [(7, 10, "impression", 0.0, "a"), (7, 500, "click", 1.0, "a")]
    rows += [(8, 250, "click", 1.0, "b"), (9, 350, "click", 1.0, "c")]
    log = EventLog.from_tables(one_user(*rows), attribution_window_s=0)
    parts = Parts.of(Split(train_end=200, validation_end=300, end=600), log)
    assert parts.request.tolist() == [0, 1, 2]
    with pytest.raises(
        ValueError, match=r"expected requests with click in each of .* got none in train; see"
    ):
        check_parts(targets_of_parts(log, parts, target_behaviors=["click"]), target_behaviors=["click"])
    behaviors = ["click", "impression"]
    check_parts(targets_of_parts(log, parts, target_behaviors=behaviors), target_behaviors=behaviors)
