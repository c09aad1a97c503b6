"""Bad settings are refused with a message that helps."""

import pytest
from pydantic import ValidationError

from training.tokenizer.config import TokenizerConfig


def test_level_sizes_are_codebooks_then_hash():
    config = TokenizerConfig(codebook_sizes=(8, 4), hash_size=16)
    assert config.level_sizes == (8, 4, 16)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("codebook_sizes", ()),
        ("codebook_sizes", (512, 1)),
        ("codebook_sizes", (8, 8, 8, 8, 8)),
        ("codebook_sizes", (512, 25.5)),
        ("hash_size", 0),
        ("hash_size", "many"),
        ("embedding", "bert"),
        ("embedding_dim", -3),
        ("ngram_max", 0),
        ("min_df", 0),
        ("kmeans_iterations", 0),
        ("seed", -1),
        ("seed", None),
    ],
)
def test_bad_value_is_refused_and_named(key, value):
    with pytest.raises(ValidationError, match=key):
        TokenizerConfig.model_validate({key: value})


def test_config_cannot_be_changed():
    config = TokenizerConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3
