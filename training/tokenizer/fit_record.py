"""What is known of a fit besides the tokenizer: what it cost, and how the ads lay in its codes."""

from __future__ import annotations

import json
import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from serving.files import read_object, write_file
from training.tokenizer.drift import Spread

FIT = "fit.json"


def peak_memory_gb() -> float:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # KiB, as Linux counts


@dataclass(frozen=True)
class FitRecord:
    """Later ads are judged by it.

    Attributes:
        tokenizer_id: whose fit it was.
        fitted_until: unix seconds; ads created before are those it was fitted on.
        spread: of those ads.
        fit_seconds: of the embedder and the quantizer together.
        fit_peak_gb: highest resident memory of the process by the end of it, GB.
        encode_ads_per_s: ads of the whole table a second.
    """

    tokenizer_id: str
    fitted_until: int
    spread: Spread
    fit_seconds: float
    fit_peak_gb: float
    encode_ads_per_s: float

    def save(self, folder: Path) -> None:
        """Write it beside the tokenizer.

        Raises:
            OSError: the disk is full or not writable.
        """
        write_file(folder / FIT, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read what `save` wrote; None where the tokenizer is from before there was such a file.

        Raises:
            ValueError: the file holds something else.
        """
        path = folder / FIT
        if not path.exists():
            return None
        content = read_object(path)
        try:
            spread = dict(content["spread"])
            spread["pairs"] = tuple(spread["pairs"])
            return cls(**{**content, "spread": Spread(**spread)})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected what is known of a fit, got {error!r}") from error
