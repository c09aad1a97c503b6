"""Settings of the tokenizer, checked when they are made."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Size = Annotated[int, Field(ge=2, le=2**20, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]


class TokenizerConfig(BaseModel):
    """One tokenizer: text embedding, residual k-means levels, hash level.

    The paper's UA-SID is (16384, 4096, 1024*), * = hash level (GR4AD, arXiv 2602.22732, section on UA-SID).
    The defaults keep that shape, a wide first level and a hash as the last one, for some 70,000 ads.

    Attributes:
        codebook_sizes: codes of each residual k-means level, first level first.
        hash_size: codes of the last level, a hash of (account, conversion type, ad).
        embedding: which text embedder; `tfidf_svd` is the only one so far.
        embedding_dim: width D of the embedding; shrinks, with a warning, when the texts have fewer features.
        ngram_max: longest word n-gram that counts as a feature.
        min_df: a feature must occur in this many distinct texts.
        kmeans_iterations: Lloyd iterations of each level.
        seed: seed of the SVD and of every k-means.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # At most four levels: keeps the fixed-point arithmetic of residual k-means far from 2^53.
    codebook_sizes: Annotated[tuple[Size, ...], Field(min_length=1, max_length=4)] = (512, 256)
    hash_size: Size = 1024
    embedding: Literal["tfidf_svd"] = "tfidf_svd"
    embedding_dim: Annotated[int, Field(ge=2, le=4096, strict=True)] = 64
    ngram_max: Annotated[int, Field(ge=1, le=3, strict=True)] = 2
    min_df: Count = 2
    kmeans_iterations: Count = 20
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of every level of a SID, length T: the codebooks, then the hash."""
        return (*self.codebook_sizes, self.hash_size)
