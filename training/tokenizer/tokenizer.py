"""Ads -> UA-SIDs."""

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
from training.tokenizer.columns import given_numbers, given_vectors
from training.tokenizer.cooccurrence.positives import Cooccurrence
from training.tokenizer.embedders import EMBEDDERS
from training.tokenizer.embedders.base import Embedder
from training.tokenizer.embedders.given_vectors import GivenContent
from training.tokenizer.quantizers.residual_kmeans import ResidualKMeans
from training.tokenizer.storage import TokenizerError, content_id, read_folder, write_folder

logger = logging.getLogger(__name__)

EMBEDDER = "embedder."  # prefix of the embedder's arrays in the common file
COLUMNS = ("ad_id", "account_id", "conversion_type", "text")


class Tokenizer:
    """Embedder, residual codebooks and hash level behind one `encode` (GR4AD, arXiv 2602.22732, UA-SID).

    A frame of ads needs the columns ad_id (integer), account_id and conversion_type (string or integer), and
    what the embedder reads: text (string), or embeddings and numbers; others are ignored.
    Letters: N ads, T levels = codebooks + the hash level.
    """

    def __init__(self, config: TokenizerConfig, embedder: Embedder, *, quantizer: ResidualKMeans) -> None:
        """Put fitted parts together; `fit` and `load` are the usual ways in.

        Raises:
            ValueError: the codebooks do not have the sizes of the config.
        """
        sizes = tuple(len(book) for book in quantizer.codebooks)
        if sizes != config.codebook_sizes:
            raise ValueError(f"expected codebooks of {config.codebook_sizes} codes, got {sizes}")
        self.config, self._embedder, self._quantizer = config, embedder, quantizer
        self._id = content_id(self._config_dict(), self._metadata(), arrays=self._arrays())

    @classmethod
    def fit(
        cls,
        ads: pl.DataFrame,
        config: TokenizerConfig,
        *,
        numeric_columns: Sequence[str] = (),
        cooccurrence: Cooccurrence | None = None,
    ) -> Self:
        """Learn from the ads' texts, or from what they come with; the order of the rows does not matter.

        `cooccurrence`, the baskets that ads were bought in, is for embedders that learn from it.

        The embedder reads each distinct text once; k-means weighs it by its ads, because SIDs collide where
        many ads share a cell (completejourney, defaults, seeds 0 to 2: collision 7.3 to 7.4 %; with equal
        weights, seeds 0 and 1: 10.5 to 10.9 %).

        Raises:
            ValueError: a column is missing, of the wrong type or null, or the texts are too few or too alike.
        """
        # One thread: other thread counts add in another order and would give another tokenizer id.
        with threadpool_limits(limits=1):
            return cls._fit(ads, config, numeric_columns=tuple(numeric_columns), cooccurrence=cooccurrence)

    @classmethod
    def _fit(
        cls,
        ads: pl.DataFrame,
        config: TokenizerConfig,
        *,
        numeric_columns: tuple[str, ...],
        cooccurrence: Cooccurrence | None,
    ) -> Self:
        _check_ads(ads, text=config.embedding != "given")
        if not ads.height:
            raise ValueError("expected at least one ad to fit the tokenizer on, got an empty table")
        if config.embedding == "given":
            ads = ads.sort("ad_id")  # means are sums, and sums know an order
        content, inverse = _contents(ads, config, numeric_columns)
        copies = np.bincount(inverse)
        logger.info("%d ads have %d distinct contents; fitting %s", ads.height, len(copies), config.embedding)
        positives = None
        if cooccurrence is not None and config.learns_from_baskets:
            positives = cooccurrence.positives(
                ads["ad_id"].to_numpy(), inverse, count=len(copies), settings=config.cooccurrence
            )
        embedder = EMBEDDERS[config.embedding].fit(content, config, positives=positives)
        vectors = embedder.embed(content)
        logger.info("embedded as %d x %d; fitting residual k-means %s", *vectors.shape, config.codebook_sizes)
        quantizer = ResidualKMeans.fit(
            vectors,
            config.codebook_sizes,
            weights=copies,
            iterations=config.kmeans_iterations,
            seed=config.seed,
        )
        return cls(config, embedder, quantizer=quantizer)

    @property
    def numeric_columns(self) -> tuple[str, ...]:
        """Numbers of the ads that it reads."""
        return getattr(self._embedder, "columns", ())

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of each level, length T: the codebooks, then the hash."""
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
    def codebooks(self) -> tuple[np.ndarray, ...]:
        """Codebooks of the levels before the hash, float32 [K_l, D] each, for export."""
        return self._quantizer.codebooks

    def encode(self, ads: pl.DataFrame) -> np.ndarray:
        """Return SIDs int32 [N, T]; a row depends on that ad alone, not on its neighbours in the call.

        Raises:
            ValueError: a column is missing, of the wrong type or null.
        """
        _check_ads(ads, text=self.config.embedding != "given")
        content, inverse = _contents(ads, self.config, self.numeric_columns)
        codes = self._quantizer.encode(self._embedder.embed(content))  # [distinct, T - 1]
        hashed = hash_level(
            ads["account_id"].cast(pl.String).to_list(),
            ads["conversion_type"].cast(pl.String).to_list(),
            ads["ad_id"].to_list(),
            size=self.config.hash_size,
        )
        return np.concatenate([codes[inverse], hashed[:, None]], axis=1)  # [N, T - 1] + [N, 1]

    def save(self, folder: Path) -> None:
        """Write the tokenizer to `folder`, replacing an older tokenizer there in one step.

        Raises:
            TokenizerError: `folder` holds something that is not a tokenizer.
        """
        write_folder(Path(folder), self._config_dict(), embedder=self._metadata(), arrays=self._arrays())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a saved tokenizer and check it.

        Raises:
            TokenizerError: a file is missing or corrupted, or was written by a newer version.
        """
        folder = Path(folder)
        stated_id, config_dict, metadata, arrays = read_folder(folder)
        try:
            config = TokenizerConfig.model_validate(config_dict)
            learnt = {k.removeprefix(EMBEDDER): v for k, v in arrays.items() if k.startswith(EMBEDDER)}
            embedder = EMBEDDERS[config.embedding].from_state(learnt, metadata)
            books = [arrays[f"codebook.{level}"] for level in range(len(config.codebook_sizes))]
            tokenizer = cls(config, embedder, quantizer=ResidualKMeans(books))
        except (ValidationError, ValueError, KeyError, TypeError) as error:
            raise TokenizerError(f"{folder}: content does not fit together ({error})") from error
        if tokenizer.tokenizer_id != stated_id:
            raise TokenizerError(f"{folder}: expected tokenizer id {stated_id}, got {tokenizer.tokenizer_id}")
        return tokenizer

    def _config_dict(self) -> dict[str, Any]:
        return self.config.to_json()

    def _metadata(self) -> dict[str, Any]:
        return self._embedder.state()[1]

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {EMBEDDER + name: array for name, array in self._embedder.state()[0].items()}
        return arrays | {f"codebook.{level}": book for level, book in enumerate(self._quantizer.codebooks)}


def _contents(
    ads: pl.DataFrame, config: TokenizerConfig, numeric_columns: tuple[str, ...]
) -> tuple[Any, np.ndarray]:
    """What the embedder reads, and which of it each ad has, int64 [N].

    Many ads share a text, and each text is embedded once; given embeddings are taken as they come.
    """
    if config.embedding == "given":
        content = GivenContent(given_vectors(ads), given_numbers(ads, numeric_columns), numeric_columns)
        return content, np.arange(ads.height)
    texts, inverse = np.unique(ads["text"].to_numpy(), return_inverse=True)
    return texts.tolist(), inverse


def _check_ads(ads: pl.DataFrame, *, text: bool) -> None:
    columns = COLUMNS if text else COLUMNS[:-1]
    missing = [name for name in columns if name not in ads.columns]
    if missing:
        raise ValueError(f"table of ads: expected columns {list(columns)}, missing {missing}")
    for name in columns:
        dtype, column = ads.schema[name], ads[name]
        wanted = {"ad_id": dtype.is_integer(), "text": dtype == pl.String}
        if not wanted.get(name, dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum)):
            raise ValueError(f"table of ads, column {name}: unexpected type {dtype}")
        if column.null_count():
            row = column.is_null().arg_max()
            raise ValueError(f"table of ads, column {name}: expected no null, got one in row {row}")
