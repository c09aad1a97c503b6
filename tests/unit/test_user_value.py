"""w_user: by what a user was worth in the training part, and nothing else; none by default."""

import dataclasses

import numpy as np
import pytest

from tests.tiny_log import open_run, write_run
from training.data.user_value import BUCKETS, LARGEST, user_weights
from training.data.values import ValueBuckets
from training.loop.device import Device
from training.recipes.requests import LoggedRequests

USERS = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Preset and run folder of a tiny log with more users than buckets."""
    return write_run(tmp_path_factory.mktemp("log"), users=USERS)


def changed(dataset, change):
    """The log with other values: `change` gets a copy of them."""
    values = dataset.log.value.copy()
    change(values)
    return dataclasses.replace(dataset.log, value=values)


def worth_by_loops(log, parts):
    """What each user bought for in the training part."""
    worth = [0.0] * len(log.user_ids)
    for u in range(len(log.user_ids)):
        for e in range(log.user_ptr[u], log.user_ptr[u + 1]):
            if parts.event[e] == 0 and log.behavior[e] == 3:
                worth[u] += float(log.value[e])
    return np.array(worth)


def test_weights_are_clipped_means_of_buckets(run):
    """Against sorting users into tenths."""
    *_, dataset = open_run(run)
    worth = worth_by_loops(dataset.log, dataset.parts)
    order = np.argsort(worth)
    expected = np.empty(USERS)
    for tenth in np.array_split(order, BUCKETS):
        expected[tenth] = worth[tenth].mean()
    expected = np.clip(expected / expected.mean(), 1 / LARGEST, LARGEST)
    expected /= expected.mean()
    got = user_weights(dataset.log, dataset.parts, target_behaviors=("conversion",))
    assert got.dtype == np.float32
    assert got.mean() == pytest.approx(1, rel=1e-6)
    # Quantiles cut between two users where tenths do not come out even: one user may be in the next bucket.
    assert (np.abs(got - expected) < 0.05).mean() > 0.7
    assert (np.diff(got[order]) >= 0).all()
    assert len(np.unique(got)) == BUCKETS


def test_a_user_of_great_worth_moves_by_a_bucket_not_by_the_sum(run):
    *_, dataset = open_run(run)
    first = slice(dataset.log.user_ptr[0], dataset.log.user_ptr[1])

    def rich(values):
        values[first] *= 1e6

    got = user_weights(changed(dataset, rich), dataset.parts, target_behaviors=("conversion",))
    assert got.max() == got[0]
    assert got.max() <= LARGEST * LARGEST
    assert got.mean() == pytest.approx(1, rel=1e-6)


def test_other_parts_and_behaviors_are_not_looked_at(run):
    """Neither by the weights nor by the value buckets."""
    preset, spec, dataset = open_run(run)
    before = user_weights(dataset.log, dataset.parts, target_behaviors=("conversion",))

    def later(values):
        values[dataset.parts.event != 0] = 1e6
        values[dataset.log.behavior != 3] = 1e6

    log = changed(dataset, later)
    np.testing.assert_array_equal(user_weights(log, dataset.parts, target_behaviors=("conversion",)), before)
    train = (dataset.parts.event == 0) & (dataset.log.behavior == 3)
    again = ValueBuckets.fit(log.value[train], buckets=preset.model.value_buckets)
    np.testing.assert_array_equal(spec.value_buckets.edges, again.edges)
    np.testing.assert_array_equal(spec.value_buckets.means, again.means)


def test_nothing_of_value_is_weight_1(run):
    *_, dataset = open_run(run)

    def nothing(values):
        values[:] = 0

    def below(values):
        values[:] = -1

    for change in (nothing, below):
        got = user_weights(changed(dataset, change), dataset.parts, target_behaviors=("conversion",))
        np.testing.assert_array_equal(got, np.ones(USERS, np.float32))


def test_a_user_without_targets_in_the_training_part_is_in_the_lowest_bucket(run):
    *_, dataset = open_run(run)
    parts = dataclasses.replace(dataset.parts, event=dataset.parts.event.copy())
    parts.event[dataset.log.user_ptr[3] : dataset.log.user_ptr[4]] = 1
    got = user_weights(dataset.log, parts, target_behaviors=("conversion",))
    assert got[3] == got.min()
    assert np.delete(got, 3).mean() == pytest.approx(1, rel=1e-6)


def batch_of(run, *overrides):
    preset, spec, dataset = open_run(run, *overrides)
    source = LoggedRequests(dataset, spec, preset=preset, config=preset.training, device=Device())
    return source, source._batch(source.groups, np.arange(12) * 11, epoch=0)


def test_targets_weigh_by_user_and_behavior(run):
    _, plain = batch_of(run, "training.behavior_weights={conversion: 2.5}")
    source, weighted = batch_of(
        run, "training.behavior_weights={conversion: 2.5}", "training.user_weight=value"
    )
    dataset = source.dataset
    weights = user_weights(dataset.log, dataset.parts, target_behaviors=("conversion",))
    of_user = weights[source.groups.user_row[np.arange(12) * 11]]
    np.testing.assert_array_equal(weighted.weight, plain.weight * of_user[:, None])
    assert len(np.unique(of_user)) > 1
    np.testing.assert_array_equal(weighted.tokens, plain.tokens)


def test_by_default_a_target_weighs_what_its_behavior_does(run):
    """Exactly: what was trained before there were weights of users comes out the same."""
    _, batch = batch_of(run)
    assert set(np.unique(batch.weight).tolist()) == {0.0, 1.0}
