"""The item level in a run: taught with the generator, resumed, evaluated, from the training part alone."""

import math

import numpy as np
import polars as pl
import pytest
import torch

from serving.search.widths import WidthPlan
from tests.tiny_log import CONFIG, run_of, write_run
from training.data.values import ValueBuckets
from training.evaluation.competing import Competing
from training.evaluation.metrics import ranking_metrics
from training.evaluation.ranking import evaluate, rank_by_model
from training.evaluation.requests import draw_requests
from training.loop.device import Device
from training.loop.retention import open_checkpoint
from training.model.item_graph import item_tables
from training.preset.preset import Preset
from training.recipes.pretrain import prepare_training
from training.rollout.executor import TorchExecutor
from training.run import RunData

ITEM = "model.item={width: 8, heads: 2, dropout: 0.1}"


def trained(run, folder, *overrides, steps=40):
    preset = Preset.load(run[0], [ITEM, f"training.steps={steps}", *overrides])
    trainer = prepare_training(preset, run[1], folder=folder, device=Device())
    trainer.run()
    return preset, trainer


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("items")
    run = write_run(folder)
    torch.set_num_threads(1)
    preset, trainer = trained(run, folder / "model")
    return run, folder / "model", preset, trainer


def test_the_item_level_learns_beside_the_generator(learnt):
    _, folder, _, trainer = learnt
    losses = [record["validation_item"] for record in trainer.history]
    assert losses[-1] < losses[0] < 1.1 * math.log(60)
    assert losses[-1] < 0.9 * math.log(60)
    found = open_checkpoint(folder)
    assert found.spec.items == found.model.item.sizes == (60, 8)


def test_a_run_that_goes_on_keeps_what_it_knows(learnt, tmp_path):
    run, _, _, _ = learnt
    trained(run, tmp_path / "half", steps=20)
    _, whole = trained(run, tmp_path / "half", steps=40)
    _, alone = trained(run, tmp_path / "apart", "training.steps=40", steps=40)
    assert whole.step == alone.step == 40
    np.testing.assert_array_equal(whole.model.item.ad_ids.numpy(), alone.model.item.ad_ids.numpy())
    assert item_tables(whole.model).vectors.any()


def orders(model, dataset, requests, pools):
    """Ads of each pool by log p(a | X) of the model, best first."""
    found = []
    for row, pool in zip(requests.rows, pools, strict=True):
        [sample] = dataset.samples(
            requests.groups,
            np.array([row]),
            config=Preset().training,
            buckets=ValueBuckets(np.zeros(0, np.float32), np.ones(1, np.float32)),
            epoch=0,
        )
        tokens = dataset.ad_sids[np.searchsorted(dataset.ad_ids, pool)].astype(np.int64)
        given = (sample.slots, sample.profile, tokens, sample.slot_ads, pool)
        with torch.no_grad():
            said = model(*(torch.from_numpy(array)[None] for array in given)).item_log_p[0].numpy()
        found.append(pool[np.argsort(-said, kind="stable")])
    return found


def test_the_evaluation_ranks_the_beams_and_all_ads_by_it(learnt):
    run, folder, preset, _ = learnt
    checkpoint, data = open_checkpoint(folder), RunData.load(run[1])
    model, dataset, ads = checkpoint.model.eval(), data.dataset(checkpoint.spec), data.prepared.tables.ads
    changes = {"requests": 12, "item_pool": 9, "widths": "6-30-60:1"}
    config = preset.evaluation.model_copy(update=changes)
    of_model = {
        "level_sizes": checkpoint.spec.level_sizes,
        "value_table": checkpoint.spec.value_buckets.means,
    }
    drawing = {"target_behaviors": ("conversion",), "min_history": 3}
    executor, arguments = TorchExecutor(model), {"ads": ads, "config": config} | of_model | drawing
    report = evaluate(executor, dataset, model=model, **arguments)
    without = evaluate(executor, dataset, **arguments)
    assert report["recall"]["model"] == without["recall"]["model"]
    assert set(report["recall"]) - set(without["recall"]) == {"item_level", "item_level_all"}
    competing = Competing.of(dataset, ads, exclude_seen=False)
    requests, _ = competing.answerable(draw_requests(dataset, count=12, seed=0, **drawing))
    beams = rank_by_model(
        executor,
        requests,
        competing=competing,
        plan=WidthPlan((6, 30, 60), 1),
        limit=9,
        batch_size=3,
        progress=False,
        **of_model,
    ).ranked
    every = [dataset.ad_ids[competing.allowed(requests, i)] for i in range(len(requests.rows))]
    for name, pools in (("item_level", beams), ("item_level_all", every)):
        expected = ranking_metrics(
            orders(model, dataset, requests, pools),
            requests.targets,
            values=requests.values,
            cutoffs=config.cutoffs,
        )
        assert {metric: report[metric][name] for metric in expected} == expected


def test_nothing_of_validation_and_test_is_in_it(learnt, tmp_path):
    run, *_ = learnt
    events = pl.read_parquet(run[1] / "data" / "events.parquet").drop("request_id", "position", strict=False)
    end = RunData.load(run[1]).prepared.split.train_end
    late = events.filter(pl.col("timestamp") >= end)
    shift = (pl.col("ad_id") + 17) % 60  # of one user and time they stay distinct
    other = late.with_columns(ad_id=shift, value=pl.col("value").shuffle(seed=4))
    assert (late["ad_id"] != other["ad_id"]).sum() > 20
    columns = ["user_id", "ad_id", "timestamp", "behavior", "value", "provenance"]
    found = []
    for name, rows in (("one", late), ("other", other)):
        log = pl.concat([events.filter(pl.col("timestamp") < end), rows]).select(columns)
        made = run_of(tmp_path / name, log, users=12, config=CONFIG)
        _, trainer = trained(made, tmp_path / name / "model", steps=10)
        found.append(trainer.model.state_dict())
    for name, weight in found[0].items():
        assert torch.equal(weight, found[1][name]), name
