"""Shape of the model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ItemConfig(BaseModel):
    """The item level, which ends on ads (`training.model.item_head`).

    Attributes:
        width: of the vectors of ads, and of the state that they are multiplied with.
        heads: attention heads; divides `width`.
        dropout: of slots, attention and feed-forward part; training only.
        negatives: ads drawn for a batch that the softmax of a target is over, besides the target; 0 takes all
            ads, which is best, and too slow on a CPU where there are a hundred thousand.
        ids_dropped: share of the ads that are without a vector of their own for a step, so that text and
            codes learn to stand for an ad alone, as they must for one that comes later.
        mix: weight of log p of an ad's semantic ID beside its score where ads are ordered. It moves no
            weight: find it by validation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(64, ge=2)
    heads: int = Field(2, ge=1)
    dropout: float = Field(0.4, ge=0.0, lt=1.0)
    negatives: int = Field(0, ge=0)
    ids_dropped: float = Field(0.0, ge=0.0, lt=1.0)
    mix: float = Field(0.0, ge=0.0)

    @model_validator(mode="after")
    def _consistent(self) -> ItemConfig:
        if self.width % self.heads:
            raise ValueError(
                f"expected width divisible by heads, got width {self.width} and heads {self.heads}"
            )
        return self


class ModelConfig(BaseModel):
    """Sizes of the generator; what depends on the catalogue (codebooks, profile) comes with the data.

    Attributes:
        decoder: lazyar, or mtp, the baseline of `training.model.mtp`: its first `shared_layers` layers are an
            ordinary decoder that stops at the first SID level, the others the extra one behind it.
        layers: decoder layers L.
        shared_layers: K, the first layers, which see no token. 0 is plain autoregression.
        width: d, of the vectors between layers.
        heads: attention heads; divides `width`.
        ffn_multiple: hidden width of the feed-forward part, in units of d.
        value_buckets: equal-frequency eCPM buckets asked for (ties in the data can make fewer).
        share_context_kv: one projection of the context to keys and values for all layers, instead of one a
            layer.
        tie_embeddings: heads of SID levels share the code embeddings of the context.
        dropout: of each residual branch; training only.
        copy_path: SIDs of the history get a learned part of the probability for themselves
            (`training.model.copy_path`).
        item: the item level, which orders ads (`serving.rerank: item`); null for a model without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decoder: Literal["lazyar", "mtp"] = "lazyar"
    layers: int = Field(6, ge=1)
    shared_layers: int = Field(4, ge=0)
    width: int = Field(160, ge=8)
    heads: int = Field(4, ge=1)
    ffn_multiple: int = Field(4, ge=1)
    value_buckets: int = Field(32, ge=2)
    share_context_kv: bool = True
    tie_embeddings: bool = True
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    copy_path: bool = False
    item: ItemConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.width % self.heads:
            raise ValueError(
                f"expected width divisible by heads, got width {self.width} and heads {self.heads}"
            )
        if self.shared_layers >= self.layers:
            raise ValueError(
                f"expected shared_layers < layers (at least one layer must see the token), "
                f"got {self.shared_layers} of {self.layers}"
            )
        if self.decoder == "mtp" and not self.shared_layers:
            raise ValueError(
                "expected shared_layers >= 1 with decoder mtp (its ordinary decoder has that many), got 0"
            )
        for name in ("copy_path", "item"):
            if self.decoder == "mtp" and getattr(self, name):
                raise ValueError(
                    f"expected decoder lazyar with {name}, got mtp, which is a baseline without it"
                )
        return self
