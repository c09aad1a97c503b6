"""The entry: who is let in, by what schedulers say of themselves; no server and no clock."""

import math

import pytest

from serving.load.admission import DEVIATIONS, LOST_S, MARGIN, SILENT_S, Admission
from serving.load.outlook import Outlook, OutlookFile

# On the floor a search takes 10 ms and 10 ms a request; nine tenths of the SLO are 94.5.
IDLE = Outlook(
    taken=0.0,
    began=0.0,
    search_s=0.0,
    batch_s=0.01,
    request_s=0.01,
    spread=0.0,
    slo_s=0.105,
    max_batch=4,
    overloaded=True,
)


def busy(began, search_s, **changes):
    return IDLE._replace(**{"taken": began - 1e-3, "began": began, "search_s": search_s, **changes})


def entry(max_queue=20_000):
    return Admission(max_queue=max_queue)


def let_in(admission, outlooks, *, now, tries=50):
    """How many of a crowd come in at once."""
    return sum(admission.admit(now, outlooks) is None for _ in range(tries))


def test_as_many_come_in_as_the_next_batch_answers_in_time():
    # 30 ms until the search in hand ends, then 10 + 10 k ms: k = 4 makes 80, and is a whole batch.
    assert let_in(entry(), [busy(1.0, 0.03)], now=1.0) == 4
    # 50 ms: 50 + 10 + 10 k <= 94.5.
    assert let_in(entry(), [busy(1.0, 0.05)], now=1.0) == 3
    assert let_in(entry(), [busy(1.0, 0.08)], now=1.0) == 0


def test_a_second_batch_counts_what_the_first_one_takes():
    # The first four: 50 ms. Then 50 + 10 + 10 k <= 94.5: three more.
    assert let_in(entry(), [busy(1.0, 1e-9)], now=1.0) == 4 + 3
    # Two schedulers share the batches ahead: 25 + 10 + 10 k <= 94.5, four more; 50 + 10 + 10 k: three.
    assert let_in(entry(), [busy(1.0, 1e-9)] * 2, now=1.0) == 4 + 4 + 3


def test_who_has_waited_is_not_made_late_by_who_comes_later():
    admission = entry()
    outlook = busy(1.0, 0.05)
    assert let_in(admission, [outlook], now=1.0, tries=1) == 1
    # 40 ms later a newcomer alone had time for a batch of 4, the first one has not: 50 + 10 + 10 k <= 94.5.
    assert let_in(admission, [outlook], now=1.04) == 2


def test_noise_leaves_room():
    """Both searches are off independently of each other."""
    spread, count = 0.2, 0

    def takes(requests):
        own = 0.01 + 0.01 * requests
        return 0.05 + own + DEVIATIONS * spread * math.hypot(0.05, own)

    while takes(count + 1) <= MARGIN * 0.105:
        count += 1
    assert let_in(entry(), [busy(1.0, 0.05, spread=spread)], now=1.0) == count == 1


def test_nobody_is_turned_away_for_width_that_was_spent_on_another():
    wide = busy(1.0, 0.2, overloaded=False)
    assert let_in(entry(), [wide], now=1.0, tries=12) == 12
    assert let_in(entry(), [wide, busy(1.0, 0.2)], now=1.0, tries=12) == 12, "one of two has width to give up"


def test_a_flood_is_one_before_the_schedulers_know_it():
    """Four take the floor 50 ms, so 16.8 of them take twice the SLO."""
    wide, admission = busy(1.0, 0.2, overloaded=False), entry()
    assert let_in(admission, [wide], now=1.0) == 17
    assert "overloaded: 17 requests wait, which takes at least 21" in admission.admit(1.0, [wide])
    assert let_in(entry(), [wide] * 2, now=1.0) == 34
    assert let_in(entry(), [wide._replace(batch_s=1.0)], now=1.0) == 5, "a batch may wait, whatever it takes"


def test_who_need_not_wait_comes_in_whatever_the_prediction():
    slow = IDLE._replace(batch_s=1.0)
    admission = entry()
    assert admission.admit(5.0, [slow]) is None
    # Too slow for the SLO, whatever waits: a batch may, so that the machine works at its best.
    assert let_in(admission, [slow._replace(began=5.0, search_s=1.0, taken=5.0)], now=5.01) == 4


def test_those_that_were_taken_do_not_wait_any_more():
    admission = entry()
    assert let_in(admission, [busy(1.0, 0.05)], now=1.0) == 3
    assert "overloaded: 3 requests wait" in admission.admit(1.001, [busy(1.0, 0.05)])
    assert let_in(admission, [busy(1.05, 0.03, taken=1.0)], now=1.05) == 4


def test_a_request_of_several_rows_counts_as_so_many():
    admission = entry()
    assert admission.admit(1.0, [busy(1.0, 0.05)], rows=2) is None
    assert admission.admit(1.0, [busy(1.0, 0.05)], rows=2) is not None
    assert admission.admit(1.0, [busy(1.0, 0.05)], rows=1) is None


def test_requests_that_get_lost_do_not_shut_the_door():
    """Their clients left before a scheduler took them; it has nothing to do and says nothing new."""
    admission = entry()
    idle = IDLE._replace(taken=1.0, began=1.0)
    assert let_in(admission, [idle], now=1.01, tries=20) < 20
    assert admission.admit(1.05, [idle]) is not None
    busy_too = busy(1.0, 5.0)
    assert admission.admit(1.05 + LOST_S, [busy_too]) is not None, "it may still be taken"
    assert let_in(admission, [idle], now=1.05 + LOST_S, tries=3) == 3


def test_no_more_wait_than_may_whatever_the_prediction():
    admission, quiet = entry(max_queue=5), busy(1.0, 0.03, overloaded=False, request_s=1e-3)
    assert let_in(admission, [quiet], now=1.0) == 5
    assert "queue: it is full, 5 requests wait and at most 5 may" in admission.admit(1.0, [quiet])
    taken = quiet._replace(taken=1.0)
    assert admission.admit(1.1, [taken], rows=3) is None
    assert admission.admit(1.1, [taken], rows=3) is not None
    assert admission.admit(1.1, [taken], rows=2) is None
    assert entry(max_queue=5).admit(1.0, [quiet], rows=9) is None, "it would never come in"


def test_the_bound_holds_without_schedulers_and_does_not_shut_the_door():
    """None has said anything for seconds: what came in then was lost, or comes out of it late."""
    admission = entry(max_queue=5)
    assert let_in(admission, [], now=1.0) == 5
    assert let_in(admission, [], now=1.1) == 0
    assert let_in(admission, [], now=1.0 + SILENT_S) == 5


def test_a_search_that_takes_longer_than_predicted_goes_on_for_about_the_spread():
    late = busy(1.0, 0.05, spread=0.2)
    assert late.free_in(1.04) == pytest.approx(0.01)
    assert late.free_in(1.2) == pytest.approx(0.2 * 0.05 * math.sqrt(2 / math.pi), rel=0.01)
    assert IDLE.free_in(5.0) == 0


def test_an_entry_that_cannot_know_lets_everybody_in():
    assert let_in(entry(), [], now=1.0, tries=10_000) == 10_000


# Between processes


def test_outlooks_travel_between_processes(tmp_path):
    first, second, reader = (OutlookFile(tmp_path / "outlook") for _ in range(3))
    assert reader.read(0.0) == [], "nobody has written"
    second.write(100.0, IDLE._replace(taken=99.0), slot=1)
    assert reader.read(100.1) == [IDLE._replace(taken=99.0)], "the other one has not"
    first.write(100.0, IDLE, slot=0)
    assert reader.read(100.1) == [IDLE, IDLE._replace(taken=99.0)]
    assert reader.read(106.0) == [], "too old"
    assert reader.read(50.0) == [], "of the future: the host was started again"
    data = bytearray((tmp_path / "outlook").read_bytes())
    data[3] ^= 1
    (tmp_path / "outlook").write_bytes(data)
    assert reader.read(100.1) == [IDLE._replace(taken=99.0)], "the first one is torn"
    for file in (first, second, reader):
        file.close()


@pytest.mark.parametrize(
    "change", [{"spread": math.nan}, {"batch_s": -1.0}, {"slo_s": math.inf}, {"max_batch": 0}]
)
def test_an_outlook_that_cannot_be_true_is_nobody_s(tmp_path, change):
    file = OutlookFile(tmp_path / "outlook")
    file.write(1.0, IDLE._replace(**change), slot=0)
    assert file.read(1.0) == []
    file.close()
