"""Settings of the tokenizer, checked when they are made."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Size = Annotated[int, Field(ge=2, le=2**20, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Part = Literal["words", "minilm", "given"]
_PARTS: dict[str, tuple[Part, ...]] = {
    "bag": ("words",),
    "tfidf_svd": ("words",),
    "minilm": ("minilm",),
    "given": ("given",),
}


def _in_order(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The parts of a sum, which knows no order, in one order."""
    if len(set(parts)) != len(parts):
        raise ValueError(f"expected each part once, got {list(parts)}")
    return tuple(sorted(parts, key=("words", "minilm", "given").index))


Parts = Annotated[tuple[Part, ...], Field(min_length=1), AfterValidator(_in_order)]
# What tokenizers did before there were these keys.
_BEFORE = {"quantizer": "rq_kmeans", "hash_salt": "", "instructions": None}


class CooccurrenceConfig(BaseModel):
    """What an embedder learns from ads that are bought together (`embedding: bag`).

    Strength is Swing's: two ads are close when pairs of baskets that share little else share both.

    Attributes:
        basket: what is bought together: `request`, the events of one request (without request ids, those of
            one user and time), or `user`, all of a user's, for logs of one ad a request.
        baskets_per_ad: baskets of an ad that are counted; of more a sample.
        popularity_power: strength is divided by the neighbour's number of baskets to this power.
        neighbours: strongest neighbours of an ad that count as positives; weaker ones of the 200 strongest
            are no negatives.
        held_out: share of the baskets, the last ones, that say when to stop.
        steps: of learning, at most.
        check_every: steps between two looks at the held-out baskets; the best of them is kept.
        anchors: ads of a batch.
        positives: drawn for each anchor.
        negatives: drawn from all ads of the baskets for all anchors of a batch, besides what was drawn as
            positives.
        temperature: tau of the loss.
        learning_rate: of Adam.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    basket: Literal["request", "user"] = "request"
    baskets_per_ad: Annotated[int, Field(ge=2, le=10_000, strict=True)] = 200
    popularity_power: Annotated[float, Field(ge=0, le=2)] = 0.75
    neighbours: Count = 20
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    steps: Annotated[int, Field(ge=0, strict=True)] = 300
    check_every: Count = 25
    anchors: Annotated[int, Field(ge=2, strict=True)] = 512
    positives: Count = 2
    negatives: Annotated[int, Field(ge=0, strict=True)] = 2048
    temperature: Annotated[float, Field(gt=0)] = 0.07
    learning_rate: Annotated[float, Field(gt=0)] = 5e-3


class TokenizerConfig(BaseModel):
    """One tokenizer: embedding, quantizer, hash level.

    The paper's UA-SID is MGMR RQ-Kmeans (16384, 4096, 1024*), * = hash level (GR4AD, arXiv 2602.22732,
    section on UA-SID): levels of different size, the first the widest, each balanced, and a hash of what is
    not semantic. The defaults are that, for some 70,000 ads.

    Attributes:
        sids: `learnt` makes semantic IDs from what the ads are; `given` takes the columns sid_0, sid_1, .. of
            the ads as they are, and no other key but `given_sizes` counts.
        given_sizes: codes of each level of given SIDs, first level first; null takes what the data need.
        codebook_sizes: codes of each level of the quantizer, first level first.
        quantizer: `balanced`, residual k-means whose codes have equal shares of the ads; `rq_kmeans`, the
            plain one; `rq_kmeans_plus`, trained further from there; `fsq`, rounding on principal axes.
        hash_size: codes of the last level, a hash of (account, conversion type, ad).
        hash_salt: up to 16 letters, digits, `_`, `.` or `-`; with another salt other ads collide.
        embedding: `bag` embeds texts and learns which are bought together; `tfidf_svd` embeds texts as their
            words say; `minilm` embeds them with a sentence model (`make minilm-setup`); `given` takes the
            columns `embedding` or embedding_0, .. of the ads, or `data.embedding_columns`, and
            `data.numeric_columns`. A list of words, minilm and given is the sum of a projection of each,
            which learns what is bought together as `bag` does.
        instructions: file of templates that word an ad for `minilm` by its form, such as
            training/tokenizer/instructions.yaml; null gives it the text alone.
        embedding_dim: width D of the embedding; shrinks, with a warning, when the texts have fewer features.
        ngram_max: longest word n-gram that counts as a feature.
        min_df: a feature must occur in this many distinct texts.
        cooccurrence: how `bag` learns.
        kmeans_iterations: of Lloyd's algorithm in each level.
        seed: seed of the SVD, of what is drawn while `bag` learns, and of every k-means.
        align_to: folder of an older tokenizer whose codes a new one begins with and is paired with, so that
            `training.warm_start` takes the embeddings of its codes; null for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sids: Literal["learnt", "given"] = "learnt"
    given_sizes: Annotated[tuple[Size | None, ...], Field(min_length=1, max_length=8)] = (None, None, None)
    # At most four levels: keeps the fixed-point arithmetic of residual k-means far from 2^53.
    codebook_sizes: Annotated[tuple[Size, ...], Field(min_length=1, max_length=4)] = (512, 256)
    quantizer: Literal["balanced", "rq_kmeans", "rq_kmeans_plus", "fsq"] = "balanced"
    hash_size: Size = 1024
    hash_salt: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{0,16}$")] = ""
    embedding: Literal["bag", "tfidf_svd", "minilm", "given"] | Parts = "bag"
    instructions: str | None = None
    embedding_dim: Annotated[int, Field(ge=2, le=4096, strict=True)] = 64
    ngram_max: Annotated[int, Field(ge=1, le=3, strict=True)] = 2
    min_df: Count = 2
    cooccurrence: CooccurrenceConfig = CooccurrenceConfig()
    kmeans_iterations: Count = 20
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    align_to: str | None = None

    @property
    def levels(self) -> int:
        """Levels of a SID, T."""
        return len(self.given_sizes) if self.sids == "given" else len(self.codebook_sizes) + 1

    @model_validator(mode="after")
    def _check_instructions(self) -> Self:
        if self.instructions is not None and "minilm" not in self.parts:
            raise ValueError(
                f"instructions: expected embedding: minilm, or a list with it, got {self.embedding}"
            )
        return self

    @property
    def parts(self) -> tuple[Part, ...]:
        """What of an ad the embedding reads."""
        return _PARTS[self.embedding] if isinstance(self.embedding, str) else self.embedding

    @property
    def reads_texts(self) -> bool:
        """Whether the embedding reads texts."""
        return self.parts != ("given",)

    @property
    def reads_given(self) -> bool:
        """Whether the embedding reads what ads come with: vectors and numbers."""
        return self.sids == "learnt" and "given" in self.parts

    @property
    def learns_from_baskets(self) -> bool:
        """Whether its embedder reads events besides ads."""
        return self.sids == "learnt" and (self.embedding == "bag" or not isinstance(self.embedding, str))

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

        A key that plays no part is left out, so that the id is what it was before there was such a key;
        where an older tokenizer lay plays none.
        """
        if self.sids == "given":
            return self.model_dump(mode="json", include={"sids", "given_sizes"})
        left_out = {"align_to", "sids", "given_sizes"}
        if not self.learns_from_baskets:
            left_out.add("cooccurrence")
        left_out |= {key for key, before in _BEFORE.items() if getattr(self, key) == before}
        return self.model_dump(mode="json", exclude=left_out)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Settings that were stored with a tokenizer; a key of later times has the value it stands for.

        Raises:
            pydantic.ValidationError: an unknown key, or a value that does not fit.
        """
        return cls.model_validate(_BEFORE | values)
