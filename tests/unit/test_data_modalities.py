"""Embeddings of several modalities become one, and tables that do not have them whole are refused."""

import polars as pl
import pytest

from training.data.columns import Named
from training.data.schema import Unchecked, check_ads, complete_ads

NAMED = Named(modalities={"image": 2, "video": 3})


def ads(**changes):
    columns = {
        "ad_id": [0, 1, 2],
        "account_id": ["a"] * 3,
        "conversion_type": ["c"] * 3,
        "created_at": [0] * 3,
        "image_0": [1.0, None, 5.0],
        "image_1": [2.0, None, 6.0],
        "video": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], None],
    }
    return pl.DataFrame({n: v for n, v in (columns | changes).items() if v is not None}, strict=False)


def faults(table, named=NAMED):
    return [str(fault) for fault in check_ads(Unchecked(table.lazy(), "ads"), named).faults]


def test_modalities_become_one_embedding_and_one_that_is_missing_zeros():
    table = ads()
    assert faults(table) == []
    made = complete_ads(table, NAMED)
    assert made["embedding"].to_list() == [[1, 2, 1, 2, 3], [0, 0, 4, 5, 6], [5, 6, 0, 0, 0]]
    assert not {"image_0", "video"} & set(made.columns)
    swapped = complete_ads(table, Named(modalities={"video": 3, "image": 2}))
    assert swapped["embedding"].to_list()[0] == [1, 2, 3, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_1": None}, "expected columns image_0 .. image_1 or a list image .* got no image_1"),
        ({"image_1": [2.0, 3.0, 6.0]}, "row 1, column 'image_0': expected all 2 numbers or none"),
        ({"image_0": [1.0, None, float("nan")]}, "row 2, column 'image_0': expected a finite number or null"),
        ({"video": [[1.0, 2.0], [1.0] * 3, None]}, "row 0, column 'video': expected a list of 3 numbers"),
        ({"video": [[1.0, 2.0, float("inf")], None, None]}, "row 0, column 'video': expected finite numbers"),
        ({"embedding_0": [1.0] * 3}, "expected either embedding_0 or data.embedding_columns image, video"),
    ],
)
def test_modalities_that_are_not_whole_are_refused(changes, message):
    found = faults(ads(**changes))
    assert len(found) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(found[0])


def test_columns_that_no_setting_names_are_no_modality():
    assert any("expected columns ['text']" in fault for fault in faults(ads(), Named()))
    assert "embedding" not in complete_ads(ads(text=["x"] * 3), Named()).columns
