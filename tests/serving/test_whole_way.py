"""Tables of several kinds on their whole way, from the advertiser's logs to answers of a real server."""

import numpy as np
import polars as pl

from serving.model.bundle import read_manifest
from tests.whole_way import WholeWay, purchases, write_tables


def test_sequences_with_given_sids_and_no_profile(tmp_path, no_curves):
    random = np.random.default_rng(1)
    sids = {f"sid_{level}": random.integers(0, size, 50) for level, size in enumerate((6, 5, 7))}
    tables = write_tables(
        tmp_path / "tables",
        ads=pl.DataFrame({"ad_id": np.arange(50), **sids}),
        users=pl.DataFrame({"user_id": np.arange(10)}),
        events=purchases(users=10, ads=50),
    )
    way = WholeWay(
        tmp_path,
        tables=tables,
        data={"split": {"by": "last_events"}},
        tokenizer={"sids": "given", "given_sizes": [None, 8, None]},
    )
    way.to_index()
    manifest = read_manifest(way.run / "bundles" / "1")
    assert manifest.level_sizes == (6, 8, 7)
    assert manifest.profile_columns == {}
    assert [name for name, *_ in manifest.graphs["prefix"]["inputs"]] == ["slots"]
    with way.serve() as server:
        way.request(server, 3)
