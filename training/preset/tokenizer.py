"""Settings of the tokenizer, checked when they are made."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Size = Annotated[int, Field(ge=2, le=2**20, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]


class TokenizerConfig(BaseModel):
    """One tokenizer: text embedding, residual k-means levels, hash level.

    The paper's UA-SID is (16384, 4096, 1024*), * = hash level (GR4AD, arXiv 2602.22732, section on UA-SID).
    The defaults keep that shape, a wide first level and a hash as the last one, for some 70,000 ads.

    Attributes:
        sids: `learnt` makes semantic IDs from what the ads are; `given` takes the columns sid_0, sid_1, .. of
            the ads as they are, and no other key but `given_sizes` counts.
        given_sizes: codes of each level of given SIDs, first level first; null takes what the data need.
        codebook_sizes: codes of each residual k-means level, first level first.
        hash_size: codes of the last level, a hash of (account, conversion type, ad).
        embedding: `tfidf_svd` embeds texts; `given` takes the columns `embedding` or embedding_0, .. of the
            ads, and `data.numeric_columns`.
        embedding_dim: width D of the embedding; shrinks, with a warning, when the texts have fewer features.
        ngram_max: longest word n-gram that counts as a feature.
        min_df: a feature must occur in this many distinct texts.
        kmeans_iterations: Lloyd iterations of each level.
        seed: seed of the SVD and of every k-means.
        align_to: folder of an older tokenizer whose codes a new one begins with and is paired with, so that
            `training.warm_start` takes the embeddings of its codes; null for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sids: Literal["learnt", "given"] = "learnt"
    given_sizes: Annotated[tuple[Size | None, ...], Field(min_length=1, max_length=8)] = (None, None, None)
    # At most four levels: keeps the fixed-point arithmetic of residual k-means far from 2^53.
    codebook_sizes: Annotated[tuple[Size, ...], Field(min_length=1, max_length=4)] = (512, 256)
    hash_size: Size = 1024
    embedding: Literal["tfidf_svd", "given"] = "tfidf_svd"
    embedding_dim: Annotated[int, Field(ge=2, le=4096, strict=True)] = 64
    ngram_max: Annotated[int, Field(ge=1, le=3, strict=True)] = 2
    min_df: Count = 2
    kmeans_iterations: Count = 20
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    align_to: str | None = None

    @property
    def levels(self) -> int:
        """Levels of a SID, T."""
        return len(self.given_sizes) if self.sids == "given" else len(self.codebook_sizes) + 1

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of every level of a SID, length T: the codebooks, then the hash; or those given.

        Raises:
            ValueError: sizes of given SIDs are left to the data.
        """
        if self.sids == "learnt":
            return (*self.codebook_sizes, self.hash_size)
        known = tuple(size for size in self.given_sizes if size is not None)
        if len(known) < self.levels:
            raise ValueError(
                f"tokenizer.given_sizes: expected a size of every level, got {list(self.given_sizes)}"
            )
        return known

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they are stored with a tokenizer; its id is made from them.

        One that learns leaves the keys of given SIDs out, so its id is what it was before there were any.
        Where an older tokenizer lay is no part of either kind.
        """
        left_out = {"align_to"} | ({"sids", "given_sizes"} if self.sids == "learnt" else set())
        return self.model_dump(mode="json", exclude=left_out)
