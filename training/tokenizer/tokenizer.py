"""Ads -> UA-SIDs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from pydantic import ValidationError
from threadpoolctl import threadpool_limits

from serving.index.hashing import hash_level
from training.preset.tokenizer import TokenizerConfig
from training.tokenizer.contents import contents_of
from training.tokenizer.cooccurrence.positives import Cooccurrence
from training.tokenizer.embedders import embedder_of
from training.tokenizer.embedders.base import Embedder
from training.tokenizer.quality import Vectors
from training.tokenizer.quantizers import QUANTIZERS
from training.tokenizer.quantizers.base import Quantizer
from training.tokenizer.storage import TokenizerError, content_id, read_folder, write_folder

logger = logging.getLogger(__name__)

EMBEDDER = "embedder."  # prefix of the embedder's arrays in the common file


class Tokenizer:
    """Embedder, quantizer and hash level behind one `encode` (GR4AD, arXiv 2602.22732, UA-SID).

    A frame of ads needs the columns ad_id (integer), account_id and conversion_type (string or integer), and
    what the embedder reads: text (string), or embeddings and numbers; others are ignored.
    Letters: N ads, T levels = those of the quantizer + the hash level.

    Attributes:
        vector_file: where vectors that take long are kept between runs; None keeps none.
    """

    vector_file: Path | None = None

    def __init__(
        self,
        config: TokenizerConfig,
        embedder: Embedder,
        *,
        quantizer: Quantizer,
        stored: dict[str, Any] | None = None,
    ) -> None:
        """Put fitted parts together; `fit` and `load` are the usual ways in.

        Args:
            config: its settings.
            embedder: fitted.
            quantizer: fitted.
            stored: the settings as they lie in its folder; of an earlier release they lack the keys that came
                since, and the id is made from what is there.

        Raises:
            ValueError: the quantizer's levels do not have the sizes of the config.
        """
        if quantizer.level_sizes != config.codebook_sizes:
            raise ValueError(f"expected levels of {config.codebook_sizes} codes, got {quantizer.level_sizes}")
        self.config, self._embedder, self._quantizer = config, embedder, quantizer
        self._stored = config.to_json() if stored is None else stored
        self._id = content_id(self._stored, self._metadata(), arrays=self._arrays())

    @classmethod
    def fit(
        cls,
        ads: pl.DataFrame,
        config: TokenizerConfig,
        *,
        numeric_columns: Sequence[str] = (),
        widths: Sequence[int] = (),
        cooccurrence: Cooccurrence | None = None,
        vector_file: Path | None = None,
        older: Tokenizer | None = None,
    ) -> Self:
        """Learn from the ads' texts, or from what they come with; the order of the rows does not matter.

        `cooccurrence`, the baskets that ads were bought in, is for embedders that learn from it; the others
        are those of `contents_of`.

        The embedder reads each distinct text once; the quantizer weighs it by its ads, because SIDs collide
        where many ads share a cell (completejourney, rq_kmeans, (512, 256), seeds 0 to 2: collision 7.3 to
        7.4 %; with equal weights, seeds 0 and 1: 10.5 to 10.9 %). With an older tokenizer it begins with its
        codes.

        Raises:
            ValueError: a column is missing, of the wrong type or null, or the texts are too few or too alike.
        """
        # One thread: other thread counts add in another order and would give another tokenizer id.
        with threadpool_limits(limits=1):
            return cls._fit(
                ads,
                config,
                numeric_columns=numeric_columns,
                widths=widths,
                cooccurrence=cooccurrence,
                vector_file=vector_file,
                older=older,
            )

    @classmethod
    def _fit(
        cls,
        ads: pl.DataFrame,
        config: TokenizerConfig,
        *,
        numeric_columns: Sequence[str],
        widths: Sequence[int],
        cooccurrence: Cooccurrence | None,
        vector_file: Path | None,
        older: Tokenizer | None,
    ) -> Self:
        if not ads.height:
            raise ValueError("expected at least one ad to fit the tokenizer on, got an empty table")
        if "given" in config.parts or older is not None:
            # Means are sums, and sums know an order; of ads of one content the last one's older codes count.
            ads = ads.sort("ad_id")
        content, inverse = contents_of(
            ads, config, numeric_columns=numeric_columns, widths=widths, vector_file=vector_file
        )
        copies = np.bincount(inverse)
        logger.info("%d ads have %d distinct contents; fitting %s", ads.height, len(copies), config.embedding)
        positives = None
        if cooccurrence is not None and config.learns_from_baskets:
            positives = cooccurrence.positives(
                ads["ad_id"].to_numpy(), inverse, count=len(copies), settings=config.cooccurrence
            )
        embedder = embedder_of(config).fit(content, config, positives=positives)
        vectors = embedder.embed(content)
        how = (config.quantizer, config.codebook_sizes)
        logger.info("embedded as %d x %d; fitting %s %s", *vectors.shape, *how)
        start = None
        if older is not None:
            start = np.empty((len(copies), older.config.levels - 1), np.int32)
            start[inverse] = older.encode(ads)[:, :-1]
        quantizer = QUANTIZERS[config.quantizer].fit(vectors, config, weights=copies, start=start)
        tokenizer = cls(config, embedder, quantizer=quantizer)
        tokenizer.vector_file = vector_file
        return tokenizer

    @property
    def numeric_columns(self) -> tuple[str, ...]:
        """Numbers of the ads that it reads."""
        return getattr(self._embedder, "columns", ())

    @property
    def widths(self) -> tuple[int, ...]:
        """Dimensions of each modality of the embeddings that it reads; empty for a single one."""
        widths = getattr(self._embedder, "widths", ())
        return widths if len(widths) > 1 else ()

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of each level, length T: the quantizer's, then the hash's."""
        return self.config.level_sizes

    @property
    def tokenizer_id(self) -> str:
        """16 hex digits of the sha256 over config and learnt content; equal ids give equal SIDs."""
        return self._id

    @property
    def embedder(self) -> Embedder:
        """The fitted embedder, for export."""
        return self._embedder

    @property
    def quantizer(self) -> Quantizer:
        """The fitted quantizer of the levels before the hash, for export."""
        return self._quantizer

    def encode(self, ads: pl.DataFrame) -> np.ndarray:
        """Return SIDs int32 [N, T]; a row depends on that ad alone, not on its neighbours in the call.

        Raises:
            ValueError: a column is missing, of the wrong type or null.
        """
        content, inverse = self.contents(ads)
        codes = self._quantizer.encode(self._embedder.embed(content))  # [distinct, T - 1]
        hashed = hash_level(
            ads["account_id"].cast(pl.String).to_list(),
            ads["conversion_type"].cast(pl.String).to_list(),
            ads["ad_id"].to_list(),
            size=self.config.hash_size,
            salt=self.config.hash_salt,
        )
        return np.concatenate([codes[inverse], hashed[:, None]], axis=1)  # [N, T - 1] + [N, 1]

    def vectors(self, ads: pl.DataFrame) -> np.ndarray:
        """Return float32 [N, D], what the quantizer reads of each ad.

        Raises:
            ValueError: a column is missing, of the wrong type or null.
        """
        content, inverse = self.contents(ads)
        return self._embedder.embed(content)[inverse]

    def contents(self, ads: pl.DataFrame) -> tuple[Any, np.ndarray]:
        """What the embedder reads of N ads, and which of it each ad has, int64 [N]; see `contents_of`.

        Raises:
            ValueError: a column is missing, of the wrong type or null.
        """
        return contents_of(
            ads,
            self.config,
            numeric_columns=self.numeric_columns,
            widths=self.widths,
            vector_file=self.vector_file,
        )

    def reconstruct(self, sids: np.ndarray) -> np.ndarray:
        """Return float32 [N, D], what the codes before the hash say of the vectors; sids int [N, T]."""
        return self._quantizer.decode(np.asarray(sids)[:, :-1])

    def vectors_behind(self, ads: pl.DataFrame, sids: np.ndarray) -> Vectors:
        """What the quality of SIDs, int [N, T] of N ads, is measured by.

        Raises:
            ValueError: a column is missing, of the wrong type or null.
        """
        content, inverse = self.contents(ads)
        vectors = self._embedder.embed(content)
        if "given" in self.config.parts:
            # What ads come with is numbered ad by ad; those of equal vectors cannot be told apart.
            vectors, number = np.unique(vectors, axis=0, return_inverse=True)
            inverse = number.ravel()[inverse]
        return Vectors(inverse, vectors[inverse], self.reconstruct(sids))

    def save(self, folder: Path) -> None:
        """Write the tokenizer to `folder`, replacing an older tokenizer there in one step.

        Raises:
            TokenizerError: `folder` holds something that is not a tokenizer.
        """
        write_folder(Path(folder), self._stored, embedder=self._metadata(), arrays=self._arrays())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a saved tokenizer and check it.

        Raises:
            TokenizerError: a file is missing or corrupted, or was written by a newer version.
        """
        folder = Path(folder)
        stated_id, config_dict, metadata, arrays = read_folder(folder)
        try:
            config = TokenizerConfig.from_json(config_dict)
            learnt = {k.removeprefix(EMBEDDER): v for k, v in arrays.items() if k.startswith(EMBEDDER)}
            embedder = embedder_of(config).from_state(learnt, metadata)
            others = {k: v for k, v in arrays.items() if not k.startswith(EMBEDDER)}
            quantizer = QUANTIZERS[config.quantizer].from_state(others)
            tokenizer = cls(config, embedder, quantizer=quantizer, stored=config_dict)
        except (ValidationError, ValueError, KeyError, TypeError) as error:
            raise TokenizerError(f"{folder}: content does not fit together ({error})") from error
        if tokenizer.tokenizer_id != stated_id:
            raise TokenizerError(f"{folder}: expected tokenizer id {stated_id}, got {tokenizer.tokenizer_id}")
        return tokenizer

    def _metadata(self) -> dict[str, Any]:
        return self._embedder.state()[1]

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {EMBEDDER + name: array for name, array in self._embedder.state()[0].items()}
        return arrays | self._quantizer.state()
