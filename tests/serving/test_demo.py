"""`make demo PRESET=...` on a log and a preset that are not the demo's."""

import pytest

from examples.demo import NEW_ADS, run_demo
from tests.tiny_log import write_run

SETTINGS = (
    *("tokenizer.codebook_sizes=[6,5]", "tokenizer.hash_size=16", "tokenizer.embedding_dim=8"),
    *("training.steps=4", "training.validate_every=4", "serving.widths=4-8-16:6", "serving.threads=1"),
)


@pytest.mark.slow
def test_the_demo_runs_on_any_preset(tmp_path, no_curves):
    """It used to ask for 200 new ads and 10 others, whatever `serving.max_num_ads` said, and die."""
    preset, run = write_run(tmp_path, users=6)
    report = run_demo(
        str(preset),
        run,
        overrides=(*SETTINGS, "serving.max_num_ads=7"),
        quick=False,
        repository=tmp_path / "model_repository",
    )
    assert (report["users"], report["ads"], report["requests"]) == (6, 60, 6)
    assert report["recall_vs_personal"].keys() == report["recall"]["model"].keys()
    assert {"recall50_vs_popularity", "value_recall50_vs_personal", "new_to_user_recall50"} < report.keys()
    assert len(report["new_ad_ranks"]) == NEW_ADS
    assert all(rank is None or 1 <= rank <= 7 for rank in report["new_ad_ranks"])
