"""Load control: ladder, cost estimate, arrivals, decisions, admission; no server and no clock."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.load.arrival_rate import ArrivalRate
from serving.load.arrivals import LoadView, QueueLength, Waiting
from serving.load.controller import LoadController
from serving.load.cost_model import BatchCost, CostModel
from serving.load.ladder import Ladder, plan_rows, searched_rows
from serving.load.lookahead import tail_seconds
from serving.load.policy import FixedPolicy
from serving.load.queue_depth import QueueReading
from serving.load.settings import ControlSettings
from serving.search.widths import WidthPlan

BASE = WidthPlan((128, 256, 512), 64)
LADDER = Ladder.around(BASE)


# Ladder


def test_rows_are_the_beams_that_the_tails_see():
    # Tail 2 sees the 128 of level 1, tail 3 the 256 of level 2, the value tail 64; nothing sees the 512.
    assert plan_rows(BASE) == 128 + 256 + 64
    assert searched_rows([100, 256, 512, 200]) == 100 + 256 + 200  # num_ads widened the value level


def test_around_the_base_plan():
    text = (
        "205-410-819:102,162-324-648:81,128-256-512:64,91-181-362:45,64-128-256:32,45-91-181:23,32-64-128:16"
    )
    assert str(LADDER) == text
    assert LADDER.plans[LADDER.base] == BASE
    assert Ladder.parse(text, base=BASE) == LADDER


@given(
    sid=st.lists(st.integers(1, 2000), min_size=1, max_size=4),
    value=st.integers(1, 500),
    up=st.floats(1.0, 3.0),
    floor=st.floats(0.05, 1.0),
    steps=st.integers(1, 12),
)
def test_any_base_has_a_ladder(sid, value, up, floor, steps):
    base = WidthPlan(tuple(sid), value)
    ladder = Ladder.around(base, up=up, floor=floor, steps=steps)
    assert ladder.plans[ladder.base] == base
    assert list(ladder.rows) == sorted(set(ladder.rows))
    for low, high in zip(ladder.plans, ladder.plans[1:], strict=False):
        assert not high.narrower(low)
    assert max(ladder.plans[-1].sid) <= round(max(sid) * up)
    assert ladder.plans[-1].value <= max(1, round(value * up))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("64-128-256:64,128-256-512:64", "widest first"),
        ("128-256-512:64,128-256-512:64", "twice"),
        ("205-410-819:64,64-128-256:64", "expected the configured plan"),
        ("128-256-512:64,64-300-256:64", "narrower than"),
        ("128-256-512:64,128-256-400:64", "equal cost"),
        ("128-256-512:64,64-128:64", "one a SID level"),
        ("128-256-512:64,", "width plan"),
    ],
)
def test_a_ladder_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Ladder.parse(text, base=BASE)


def test_factors_out_of_range_are_refused():
    for bad in (
        {"up": 0.9},
        {"floor": 0.0},
        {"floor": 1.1},
        {"steps": 0},
        {"up": math.nan},
        {"up": math.inf},
    ):
        with pytest.raises(ValueError, match="ladder: expected up"):
            Ladder.around(BASE, **bad)


def test_a_policy_cuts_the_ladder():
    most = WidthPlan((162, 350, 512), 64)
    cut = LADDER.within(most)
    assert [str(p) for p in cut.plans[cut.base + 1 :]] == ["162-324-512:64", "162-350-512:64"]
    assert cut.within(BASE).plans[-1] == BASE
    with pytest.raises(ValueError, match="at least the base plan"):
        LADDER.within(WidthPlan((64, 256, 512), 64))


# Cost

COSTS = {
    "product": (5e-3, 5e-4, 2.5e-6),
    "all once a batch": (20e-3, 0.0, 1e-6),
    "all by the row": (0.0, 0.0, 5e-6),
    "all by the request": (1e-4, 5e-3, 1e-6),
    "slow": (0.2, 0.1, 5e-4),
}


def true(cost, k, r):
    return cost[0] + k * (cost[1] + r * cost[2])


def feed(model, cost, *, rng, batches, noise=0.2, outliers=0.0):
    for _ in range(batches):
        k, r = int(rng.integers(1, 17)), LADDER.rows[rng.integers(len(LADDER))]
        seconds = true(cost, k, r) * max(1 + noise * rng.standard_normal(), 0.05)
        if rng.random() < outliers:
            seconds *= 20
        assert model.observe(BatchCost(k, r, seconds))


def errors(model, cost):
    """Relative, of every size of batch on every rung."""
    return np.array(
        [abs(model.seconds(k, r) / true(cost, k, r) - 1) for k in (1, 2, 4, 8, 16) for r in LADDER.rows]
    )


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_within_a_tenth_of_the_truth_after_200_batches_with_noise(cost):
    found = []
    for seed in range(20):
        model = CostModel(base_rows=448)
        feed(model, cost, rng=np.random.default_rng(seed), batches=200)
        found.append(errors(model, cost))
    means = np.mean(found, axis=1)
    assert max(means) < 0.1, "over the mix of batches, every seed"
    assert np.mean(np.array(found) < 0.1) > 0.9, "and nearly every single point"


def test_outliers_do_not_carry_it_away():
    cost = COSTS["product"]
    for seed in range(10):
        model = CostModel(base_rows=448)
        feed(model, cost, rng=np.random.default_rng(seed), batches=200, outliers=0.02)
        assert errors(model, cost).mean() < 0.15  # a plain mean would be 40 % off


@pytest.mark.parametrize("factor", [3.0, 0.3, 10.0])
def test_a_step_of_the_true_cost_is_followed_within_30_batches(factor):
    cost = COSTS["product"]
    after = tuple(factor * c for c in cost)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        model = CostModel(base_rows=448)
        feed(model, cost, rng=rng, batches=300)
        feed(model, after, rng=rng, batches=30)
        assert errors(model, after).mean() < 0.15
        feed(model, after, rng=rng, batches=170)
        assert errors(model, after).mean() < 0.1


def test_a_first_batch_that_loads_the_engine_is_forgotten():
    model, cost = CostModel(base_rows=448), COSTS["product"]
    model.observe(BatchCost(1, 448, 30.0))
    feed(model, cost, rng=np.random.default_rng(0), batches=30)
    assert errors(model, cost).mean() < 0.2


def test_one_size_of_batch_keeps_the_shape_sane():
    """Nothing tells fixed from variable cost here: the rest must neither be 0 nor run off."""
    model, rng = CostModel(base_rows=448), np.random.default_rng(3)
    for _ in range(3000):
        model.observe(BatchCost(16, 448, 0.03 * max(1 + 0.2 * rng.standard_normal(), 0.1)))
    assert model.seconds(16, 448) == pytest.approx(0.03, rel=0.05)
    assert 0.2 * 0.03 < model.seconds(16, LADDER.rows[0]) < 0.03
    assert 0.03 / 16 * 0.5 < model.seconds(1, 448) < 0.03


@pytest.mark.parametrize(
    "batch",
    [
        (1, 448, math.nan),
        (1, 448, math.inf),
        (1, 448, 0.0),
        (1, 448, -1.0),
        (1, 448, 1e9),
        (0, 448, 0.1),
        (-2, 448, 0.1),
        (math.nan, 448, 0.1),
        (1, 0, 0.1),
        (1, math.nan, 0.1),
        (math.inf, 448, 0.1),
    ],
)
def test_what_cannot_be_a_measurement_is_thrown_away(batch):
    model = CostModel(base_rows=448)
    feed(model, COSTS["product"], rng=np.random.default_rng(0), batches=50)
    before = model.coefficients
    assert not model.observe(BatchCost(*batch))
    assert model.coefficients == before
    assert model.discarded == 1


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=True, allow_infinity=True) | st.integers(1, 64),
            st.floats(allow_nan=True) | st.integers(1, 5000),
            st.floats(allow_nan=True, allow_infinity=True) | st.floats(1e-6, 60),
        ),
        max_size=60,
    )
)
def test_no_sequence_makes_a_cost_negative_or_endless(batches):
    model = CostModel(base_rows=448)
    for batch in batches:
        model.observe(BatchCost(*batch))
        assert all(0 <= c < math.inf for c in model.coefficients)
        times = [model.seconds(16, r) for r in LADDER.rows]
        assert times == sorted(times)


# Arrivals


def reading(pending=0, total=None, *, at=0.0):
    return QueueReading(pending, total, at)


def batch(count, *, arrived=None, pending=None, total=None, at=-math.inf):
    """A batch, and what the server says of the queue; `at` is the time of that (default: long ago)."""
    seen = None if pending is None and total is None else reading(pending or 0, total, at=at)
    return LoadView([Waiting(arrived)] * count, seen)


@pytest.mark.parametrize("source", ["own", "stamps", "counter"])
def test_arrival_rate_of_a_poisson_stream(source):
    """400 a second for 20 s, taken by one of two instances in turn; the counter sees all of them."""
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(1 / 400, 8000))
    rate = ArrivalRate(instances=2, shortest_s=1.0)
    seen = []
    for start in range(0, 8000 - 16, 16):  # every other batch of 8 is ours, 0.3 s late
        ours = times[start : start + 8]
        now = ours[-1] + 0.3
        said = reading(total=int(np.searchsorted(times, now)), at=now) if source == "counter" else None
        rate.update(now, LoadView([Waiting(t if source == "stamps" else None) for t in ours], said))
        seen.append(rate.value(now))
    assert np.mean(seen[100:]) == pytest.approx(400, rel=0.05)
    assert np.std(seen[100:]) < 60


def counted(rate, times, *, until, start=0.0):
    """One request at a time, and a counter that is read every tenth of a second."""
    for now in times[(times >= start) & (times < until)]:
        at = math.floor(now * 10) / 10
        rate.update(now, LoadView([Waiting(now)], reading(total=int(np.searchsorted(times, at)), at=at)))
    return rate.value(until)


@pytest.mark.parametrize("seed", range(5))
def test_a_steady_rate_is_known_to_a_tenth_and_a_step_at_once(seed):
    rng = np.random.default_rng(seed)
    steps = [rng.uniform(0, 20, 280), rng.uniform(20, 24, 840), rng.uniform(24, 40, 224)]  # 14, 210, 14 / s
    times = np.sort(np.concatenate(steps))
    rate = ArrivalRate(instances=1, shortest_s=1.0)
    assert counted(rate, times, until=20.0) == pytest.approx(14, rel=0.25)
    assert counted(rate, times, start=20.0, until=20.5) > 100
    assert counted(rate, times, start=20.5, until=24.0) == pytest.approx(210, rel=0.15)
    assert counted(rate, times, start=24.0, until=26.0) < 30, "the crowd is forgotten within 2 s"
    assert counted(rate, times, start=26.0, until=40.0) == pytest.approx(14, rel=0.25)


def test_bursts_are_told_from_poisson_counts():
    def burst(deviation):
        rng = np.random.default_rng(1)
        factors = rng.gamma(1 / deviation**2, deviation**2, 150) if deviation else np.ones(150)
        counts = rng.poisson(40 * 0.2 * factors)
        times = np.sort(np.concatenate([0.2 * (i + rng.uniform(size=n)) for i, n in enumerate(counts)]))
        rate = ArrivalRate(instances=1, shortest_s=1.0)
        counted(rate, times, until=30.0)
        return rate.burst

    assert burst(0.0) < 0.1
    assert burst(0.8) == pytest.approx(0.8, abs=0.3)


def test_the_rate_falls_when_nothing_comes_and_a_restarted_counter_does_no_harm():
    rate = ArrivalRate(instances=1, shortest_s=1.0)
    for i in range(100):
        rate.update(i / 10, batch(10, total=10 * i, at=i / 10))
    assert rate.value(9.9) == pytest.approx(100, rel=0.1)
    rate.update(10.0, batch(10, total=3, at=10.0))  # the server started again
    assert rate.value(10.0) == pytest.approx(100, rel=0.15)
    assert rate.value(100.0) < 15.0


def test_a_counter_that_comes_back_does_not_count_twice():
    rate = ArrivalRate(instances=1, shortest_s=1.0)
    for i in range(200):
        known = i < 50 or i >= 100
        rate.update(i / 10, batch(10, total=10 * i if known else None, at=i / 10))
        assert rate.value(i / 10) < 150
    assert rate.value(19.9) == pytest.approx(100, rel=0.1)


def test_queue_length_from_what_there_is():
    def length(load, *, batches=1):
        queue = QueueLength(max_batch=8, most=1000)
        for _ in range(batches - 1):
            queue.update(9.9, load, rate=100.0)
        return queue.update(10.0, load, rate=100.0)

    assert length(batch(8, pending=30)) == 30
    assert length(batch(8, arrived=9.5)) == pytest.approx(50), "100 a second since half a second"
    assert length(batch(8, arrived=9.5, pending=60)) == 60
    assert length(batch(8, arrived=9.5, pending=60, at=9.8)) == 52, "these eight were among the sixty"
    assert length(batch(7, arrived=9.5)) == 0, "a batch that is not full left nothing behind"
    assert length(batch(8)) == 0
    assert length(batch(8), batches=4) == 24, "the fourth full batch in a row"
    assert length(batch(8), batches=400) == 1000
    assert length(batch(8, pending=10**9)) == 1000
    assert length(batch(8, arrived=math.nan)) == 0
    assert length(batch(8, arrived=11.0)) == 0, "a stamp of the future"


# Decisions

COST = (3e-3, 5e-4, (30e-3 - 3e-3 - 16 * 5e-4) / (16 * 448))  # a full base batch takes 30 ms


def controller(*, cost=COST, ladder=LADDER, **changes):
    """A controller that knows the true cost."""
    made = LoadController(ladder, settings=ControlSettings(**{"instances": 1, "max_queue": 500, **changes}))
    rng = np.random.default_rng(0)
    for _ in range(200):
        k, r = int(rng.integers(1, 17)), ladder.rows[rng.integers(len(ladder))]
        made.observe(0.0, BatchCost(k, r, true(cost, k, r)))
    return made


def calm(made, *, since=0.0, seconds=10.0, every=0.05):
    """Batches of one, 20 a second."""
    now = since
    while now < since + seconds:
        now += every
        decision = made.decide(now, batch(1, arrived=now, pending=0))
    return now, decision


def test_before_any_cost_is_known_it_is_the_base_plan_and_everybody_comes_in():
    made = LoadController(LADDER)
    decision = made.decide(0.0, batch(16, arrived=-50.0, pending=10_000))
    assert (decision.plan, decision.above_base, decision.admit, decision.reason) == (BASE, 0, 16, "unknown")
    assert decision.outlook is None


def test_widths_rise_to_the_widest_when_that_costs_nobody():
    made = controller()
    rungs, now = [], 0.0
    for _ in range(40):
        now += 0.05
        rungs.append(made.decide(now, batch(1, arrived=now, pending=0)).above_base)
    assert rungs[0] == 0, "not before there is a rate"
    assert set(rungs[10:]) == {2}


def test_a_crowded_batch_is_narrowed_alone():
    made = controller()
    now, _ = calm(made)
    crowded = made.decide(now + 0.01, batch(16, arrived=now, pending=96))
    assert (crowded.above_base, crowded.reason) == (-4, "queue")
    assert made.above_base == 2
    assert made.decide(now + 0.06, batch(1, arrived=now + 0.06, pending=0)).above_base == 2


def test_widths_fall_at_once_and_as_far_as_needed():
    made = controller()
    now, decision = calm(made)
    assert decision.above_base == 2
    decision = made.decide(now + 0.01, batch(16, arrived=now, pending=96))
    # By hand: this batch, 80 more than one batch ahead of the newest, its own batch; 75 % of 100 ms.
    fits = [
        r for r in LADDER.rows if true(COST, 16, r) + 80 / 16 * true(COST, 16, r) + true(COST, 16, r) <= 0.075
    ]
    assert fits == []
    assert decision.above_base == -4, "not even the floor: the floor"
    made = controller()
    now, _ = calm(made)
    decision = made.decide(now + 0.01, batch(16, arrived=now, pending=26))
    fits = [r for r in LADDER.rows if true(COST, 16, r) * (2 + 10 / 16) <= 0.075]
    assert plan_rows(decision.plan) == max(fits)
    assert decision.degraded == (decision.above_base < 0)


def test_arrivals_beyond_a_rung_s_capacity_narrow_it_before_a_queue_is_there():
    made = controller()
    at_base = 16 / true(COST, 16, 448)
    wanted = 1.2 * at_base
    now = 0.0
    for _ in range(1000):
        now += 0.01
        decision = made.decide(now, batch(4, arrived=now, pending=0, total=int(now * wanted), at=now))
    keeps_up = [r for r in LADDER.rows if 16 / true(COST, 16, r) >= wanted]
    assert plan_rows(decision.plan) in keeps_up
    assert plan_rows(decision.plan) >= keeps_up[-3], "no narrower than the tail asks for"
    assert decision.reason == "load"


def stream(made, *, rate, since, until):
    """Requests one by one at even distances."""
    decision = None
    for i in range(int(rate * (until - since))):
        now = since + (i + 1) / rate
        decision = made.decide(now, batch(1, arrived=now, pending=0, total=int(rate * now), at=now))
        made.observe(now, BatchCost(1, plan_rows(decision.plan), true(COST, 1, plan_rows(decision.plan))))
    return decision


def test_the_rung_is_the_widest_whose_predicted_tail_is_inside_the_margin():
    """Against the tail that `tail_seconds` gives for the true costs, at five loads."""
    for load in (0.2, 0.4, 0.6, 0.8, 1.0):
        made = controller()
        rate = load * 16 / true(COST, 16, 448)
        stream(made, rate=rate, since=0.0, until=6.0)
        s = made.settings

        def tail(rung, rate=rate, made=made):
            rows = LADDER.rows[rung]
            return tail_seconds(
                lambda k: true(COST, k, rows), rate=rate, instances=1, max_batch=16, factors=made.cost.factors
            )

        chosen = LADDER.base + made.above_base
        bound = s.wide_margin if made.above_base > 0 else s.margin
        assert tail(chosen) <= 1.02 * bound * s.slo_s, load
        if chosen + 1 < len(LADDER):
            bound = s.wide_margin if made.above_base >= 0 else s.margin
            assert tail(chosen + 1) > 0.98 * s.aim * bound * s.slo_s, load


def test_a_slow_machine_at_a_fifth_of_its_capacity_does_not_fill_the_slo_with_width():
    """The fault: a lone search takes a sixth of the SLO. By utilisation alone the widest rung was right."""
    slow = tuple(0.1 / 6 / true(COST, 1, 448) * c for c in COST)
    made = controller(cost=slow, max_batch=1)
    rate = 0.2 / true(slow, 1, 448)
    rng = np.random.default_rng(0)
    now, free, times = 0.0, 0.0, []
    for _ in range(1500):
        now += rng.exponential(1 / rate)
        start = max(now, free)
        decision = made.decide(start, batch(1, arrived=now, pending=0))
        seconds = true(slow, 1, plan_rows(decision.plan)) * max(1 + 0.1 * rng.standard_normal(), 0.1)
        free = start + seconds
        made.observe(free, BatchCost(1, plan_rows(decision.plan), seconds))
        assert decision.rejected == ()
        times.append(free - now)
    assert np.quantile(times[100:], 0.99) <= 0.7 * 0.1


def test_a_steady_load_keeps_its_rung_while_the_estimate_scatters():
    """Rate off by 15 % either way, once it has held for `settle_s`."""
    made = controller(cost=tuple(3 * c for c in COST))
    rate, now, total = 40.0, 0.0, 0.0
    rng = np.random.default_rng(0)
    rungs = []
    while now < 60.0:
        now += 1 / rate
        total += rng.uniform(0.85, 1.15)
        made.decide(now, batch(1, arrived=now, pending=0, total=int(total), at=now))
        rungs.append(made.above_base)
    assert len(set(rungs[int(6 * rate) :])) == 1


def test_a_deadline_narrows_its_batch_only():
    made = controller()
    now, decision = calm(made)
    wide = decision.plan
    tight = LoadView([Waiting(now, now + 0.006), Waiting(now)], reading())
    decision = made.decide(now, tight)
    assert decision.reason == "deadline"
    assert decision.admit == 2
    assert true(COST, 2, plan_rows(decision.plan)) <= 0.006
    assert made.decide(now, batch(1, arrived=now, pending=0)).plan == wide


def test_a_deadline_that_not_even_the_floor_meets_is_refused_and_the_others_are_not():
    made = controller()
    now, _ = calm(made)
    made.observe(now, BatchCost(1, 448, true(COST, 1, 448)))
    load = LoadView(
        [Waiting(now), Waiting(now, now + 0.001), Waiting(now), Waiting(now, now - 5.0)], reading()
    )
    decision = made.decide(now, load)
    assert decision.admit == 2
    assert [i for i, _ in decision.rejected] == [1, 3]
    messages = dict(decision.rejected)
    assert "leaves 1 ms, the narrowest search takes" in messages[1]
    assert "passed 5000 ms ago" in messages[3]


def test_late_requests_are_refused_and_those_still_in_time_are_searched():
    made = controller()
    now, _ = calm(made)
    made.observe(now, BatchCost(1, 448, true(COST, 1, 448)))
    decision = made.decide(
        now, LoadView([Waiting(now - 0.099)] * 8 + [Waiting(now - 0.02)] * 8, reading(100))
    )
    assert [i for i, _ in decision.rejected] == list(range(8))
    assert "overloaded" in decision.rejected[0][1]


def test_a_wrong_cost_does_not_lock_everybody_out():
    """One absurd belief (an hour-long stall, a slow first minute) must be found out by searching again."""
    made = LoadController(LADDER)
    made.observe(0.0, BatchCost(1, 448, 5.0))
    served, now = 0, 0.0
    for _ in range(100):
        now += 0.1
        decision = made.decide(now, batch(4, arrived=now, pending=0))
        if decision.admit:
            served += decision.admit
            made.observe(now, BatchCost(decision.admit, plan_rows(decision.plan), 0.002 * decision.admit))
    assert served > 300


def test_without_overload_a_late_request_is_answered_late():
    """A stall of 300 ms at a fifth of the load: four requests wait, and there is time for all of them."""
    made = controller()
    now, _ = calm(made)
    decision = made.decide(now + 0.3, LoadView([Waiting(now + 0.05 * i) for i in range(4)], reading()))
    assert decision.admit == 4
    assert decision.rejected == ()


def test_the_entry_is_told_what_the_floor_takes_and_when_the_search_ends():
    made = controller()
    now, _ = calm(made)
    now += 0.01
    wide = made.decide(now, batch(1, arrived=now - 0.001, pending=0)).outlook
    assert not wide.overloaded
    assert wide.taken == now - 0.001
    assert (wide.slo_s, wide.max_batch, wide.began) == (0.1, 16, now)
    assert wide.search_s == pytest.approx(true(COST, 1, LADDER.rows[-1]), rel=0.05)
    floor = made.decide(now, batch(16, arrived=now, pending=400)).outlook
    assert floor.overloaded
    assert floor.batch_s + 16 * floor.request_s == pytest.approx(true(COST, 16, LADDER.rows[0]), rel=0.05)
    assert floor.search_s == pytest.approx(true(COST, 16, LADDER.rows[0]), rel=0.05)


def test_a_machine_too_slow_for_the_slo_still_answers():
    """Who has not waited is not turned away, and a batch may wait; what waited for half the SLO is late."""
    slow = controller(cost=tuple(40 * c for c in COST))
    decision = slow.decide(1.0, batch(1, arrived=1.0, pending=0))
    assert decision.rejected == ()
    assert decision.plan == LADDER.plans[0]
    waited = slow.decide(2.0, batch(2, arrived=2.0 - 0.06, pending=16))
    assert len(waited.rejected) == 1  # the other one is searched, so that a wrong prediction is found out


def test_times_that_jump_do_no_harm():
    made = controller()
    now, decision = calm(made)
    for odd in (now - 1000.0, math.nan, math.inf, -math.inf):
        found = made.decide(odd, batch(1, arrived=now, pending=0))
        assert found.plan == decision.plan
        assert found.admit == 1
    far = now + 1e7
    assert made.decide(far, batch(1, arrived=far, pending=0)).admit == 1
    made.observe(math.nan, BatchCost(1, 448, 0.005))
    # Back again: what a frozen "latest time" would take for 1e7 s late is served.
    assert made.decide(now, batch(1, arrived=now, pending=0)).admit == 1
    now, decision = calm(made, since=now)
    assert decision.above_base == 2
    assert made.arrivals_qps == pytest.approx(20, rel=0.2)


ODD = st.floats(allow_nan=True, allow_infinity=True)
TIME = st.floats(0, 100) | ODD
STEP = st.tuples(
    TIME,
    st.lists(st.builds(Waiting, st.none() | TIME, st.none() | TIME), max_size=20),
    st.none() | st.builds(QueueReading, st.integers(0, 2000), st.none() | st.integers(0, 10**6), TIME),
    st.tuples(ODD | st.integers(1, 16), ODD | st.sampled_from(LADDER.rows), ODD | st.floats(1e-3, 1.0)),
)


@given(st.lists(STEP, max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_sequence_gives_valid_decisions(steps):
    made = LoadController(LADDER)
    for now, requests, seen, cost in steps:
        decision = made.decide(now, LoadView(requests, seen))
        assert decision.plan == LADDER.plans[LADDER.base + decision.above_base]
        refused = [i for i, _ in decision.rejected]
        assert refused == sorted(set(refused))
        assert all(0 <= i < len(requests) for i in refused)
        assert decision.admit == len(requests) - len(refused)
        assert decision.outlook is None or decision.outlook.usable()
        made.observe(now, BatchCost(*cost))


@given(
    history=st.lists(
        st.tuples(st.floats(0.001, 0.5), st.integers(1, 16), st.integers(0, 200), st.floats(0, 0.1)),
        max_size=40,
    ),
    taken=st.integers(1, 16),
    less=st.integers(0, 600),
    more=st.integers(0, 600),
    total=st.none() | st.integers(0, 100_000),
)
@settings(max_examples=200, deadline=None)
def test_a_longer_queue_never_gives_a_wider_plan(history, taken, less, more, total):
    less, more = sorted((less, more))
    rungs = []
    for pending in (less, more):
        made, now = controller(), 0.0
        for gap, count, waiting, age in history:
            now += gap
            made.decide(now, batch(count, arrived=now - age, pending=waiting))
        decision = made.decide(
            now + 0.7, batch(taken, arrived=now + 0.69, pending=pending, total=total, at=now)
        )
        rungs.append(decision.above_base)
    assert rungs[0] >= rungs[1]


def test_settings_that_contradict_each_other_are_refused():
    for bad in (
        {"slo_s": 0.0},
        {"slo_s": math.nan},
        {"instances": 0},
        {"max_batch": 0},
        {"margin": 0.5, "wide_margin": 0.6},
        {"margin": 1.1},
        {"rise": 0.9, "aim": 0.8},
        {"aim": 1.1},
    ):
        with pytest.raises(ValueError, match="load control: expected"):
            ControlSettings(**bad)


def test_fixed_policy_refuses_only_deadlines_that_have_passed():
    fixed = FixedPolicy(BASE)
    decision = fixed.decide(
        10.0, LoadView([Waiting(0.0), Waiting(9.0, 9.5), Waiting(9.0, 10.5)], reading(10_000))
    )
    assert (decision.plan, decision.admit, decision.outlook) == (BASE, 2, None)
    assert [i for i, _ in decision.rejected] == [1]
    fixed.observe(10.0, BatchCost(1, 448, 100.0))
    assert not decision.degraded


def test_the_plan_of_one_request():
    made = controller()
    own = WidthPlan((200, 200, 200), 200)
    now, decision = calm(made)
    assert decision.plan_for() == decision.plan
    assert decision.plan_for(own) == own, "above the base nobody is cut"
    assert decision.plan_for(width_cap=40) == WidthPlan((40, 40, 40), 40)
    decision = made.decide(now, batch(16, arrived=now, pending=400))
    assert decision.degraded
    assert decision.plan_for(own) == own.within(decision.plan)
    assert decision.plan_for(own, width_cap=20) == WidthPlan((20, 20, 20), 16)
