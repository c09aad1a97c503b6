"""An advertiser's log on its whole way: tables, training, export, index, and the answers of a real server."""

import numpy as np
import polars as pl
import torch

from examples.client import send
from export.bundle import write_bundle
from export.render import render
from indexer.store.index_store import IndexStore
from launcher.triton_server import TritonServer
from serving.index.snapshot import IndexSnapshot
from serving.model.bundle import read_manifest
from serving.model.current import current_version
from serving.model.features import BEHAVIORS
from tests.funnel_log import USERS, config, impressions
from tests.pipeline import serving_config
from tests.serving.trained import best_ads
from tests.tiny_log import open_run, run_of
from training.loop.device import Device
from training.loop.retention import open_checkpoint
from training.recipes.pretrain import prepare_training


def test_impressions_and_clicks_with_request_ids(tmp_path, no_curves):
    """What the server makes of a client's raw events is what the model was trained on."""
    torch.set_num_threads(1)
    data = {"target_behaviors": ["click"], "split": {"by": "days"}}
    made, run = run_of(tmp_path, impressions(clicks=True), users=USERS, config=config(**data))
    preset, spec, dataset = open_run((made, run))
    prepare_training(preset, run, folder=run / "model", device=Device()).run()
    checkpoint = open_checkpoint(run / "model")
    write_bundle(checkpoint, run / "bundles", tokenizer=run / "tokenizer")
    manifest = read_manifest(run / "bundles" / str(current_version(run / "bundles")))
    assert manifest.features.attribution_window_s == 1800
    with IndexStore(run / "index") as store:
        store.build(
            spec.tokenizer_id,
            spec.level_sizes,
            ad_ids=dataset.ad_ids,
            sids=dataset.ad_sids,
            statuses=np.full(len(dataset.ad_ids), "active"),
        )
    repository = run / "model_repository"
    render(run / "bundles", repository, index=run / "index", config=serving_config())

    snapshot = IndexSnapshot.build(
        dataset.ad_ids, dataset.ad_sids, active=np.ones(60, bool), level_sizes=spec.level_sizes
    )
    code = pl.col("behavior").replace_strict(dict(BEHAVIORS), return_dtype=pl.Int32)
    events = pl.read_parquet(run / "data" / "events.parquet").with_columns(code)
    groups = dataset.groups("test", target_behaviors=("click",), min_history=1)
    rows = np.arange(0, len(groups), 9)
    slots, profile = dataset.context(groups, rows)
    with TritonServer(repository) as server:
        for i, row in enumerate(rows):
            user, now = int(dataset.log.user_ids[groups.user_row[row]]), int(groups.now[row])
            known = events.filter((pl.col("user_id") == user) & (pl.col("timestamp") < now))
            answer = send(
                server.grpc_url,
                {
                    "history_ad_ids": known["ad_id"].to_numpy()[None],
                    "history_behaviors": known["behavior"].to_numpy()[None],
                    "history_timestamps": known["timestamp"].to_numpy()[None],
                    "profile": profile[i : i + 1],
                    "num_ads": np.array([[5]], np.int32),
                    "timestamp": np.array([[now]], np.int64),
                },
                protocol="grpc",
            )
            best = best_ads(checkpoint, snapshot, slots=slots[i], profile=profile[i], num_ads=5)
            np.testing.assert_allclose(answer["scores"][0], best.scores, atol=1e-4)
            assert set(answer["ad_ids"][0]) == set(best.ad_ids)
    assert len(rows) > 5
