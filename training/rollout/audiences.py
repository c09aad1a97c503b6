"""Who may see which ad of a dataset in a logged request: by the code that serves.

Letters: A ads, P columns of profile and request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from serving.backend.settings import ServingConfig
from serving.backend.terms import TermColumns
from serving.index.audience import Audience
from serving.index.audience_table import AudienceTable
from serving.index.eligible import NO_TERMS, Terms, meets
from training.data.samples import RequestDataset


def settings_of(serving: ServingConfig) -> dict[str, Any]:
    """What of section `serving` decides which ads a logged request may be shown, by key of the preset."""
    if serving.audience == "off":
        return {}
    return {"serving.audience": "on", "serving.attributes": serving.model_dump(mode="json")["attributes"]}


@dataclass(frozen=True, eq=False)
class Audiences:
    """Audiences as the index has them, of ads in the order of the dataset's `ad_ids`.

    Attributes:
        numbers: int32 [A], number of each ad's audience, 0 for everybody.
        table: the audiences by number.
        columns: of a request; None where it has no terms, and is in no audience.
        attributes: that a log does not have, one empty text each.
    """

    numbers: np.ndarray
    table: AudienceTable
    columns: TermColumns | None
    attributes: tuple[bytes, ...]

    @classmethod
    def of(
        cls, dataset: RequestDataset, ads: pl.DataFrame, *, serving: ServingConfig | None
    ) -> Audiences | None:
        """From the ads table and section `serving` (None: off); None where all ads are for everybody.

        Raises:
            AudienceError: an audience is none.
            ValueError: a name stands for two columns, see `TermColumns`.
        """
        if "audience" not in ads.columns:
            return None
        given = ads.sort("ad_id")["audience"]
        texts = {text: Audience.parse(text).text for text in given.drop_nulls().unique(maintain_order=True)}
        distinct = [text for text in dict.fromkeys(texts.values()) if text]
        if not distinct:
            return None
        number = {text: n for n, text in enumerate(distinct, start=1)}
        numbers = [0 if text is None else number.get(texts[text], 0) for text in given]
        columns: TermColumns | None = None
        attributes: tuple[bytes, ...] = ()
        if serving is not None and serving.audience == "on":
            attributes = (b"",) * len(serving.attributes)
            columns = TermColumns(
                dataset.vocabulary.categories,
                request_features=dataset.spec.request_features,
                attributes=serving.attributes,
            )
        table = AudienceTable().now({n: text for text, n in number.items()})
        return cls(np.array(numbers, np.int32), table, columns, attributes)

    def terms(self, codes: np.ndarray, *, now: int) -> Terms:
        """Of a request with these codes int [P] of profile and request, at that time."""
        if self.columns is None:
            return NO_TERMS
        row = self.columns.pack(codes, self.attributes, now=now, max_per_account=0, excluded_accounts=())
        return self.columns.unpack(row)[0]

    def shown(self, terms: Terms) -> np.ndarray:
        """Ads that a request of these terms may be shown, bool [A]."""
        return meets(self.table.satisfied(terms.values, now=terms.now), self.numbers)
