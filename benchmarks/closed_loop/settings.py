"""How long a loop is played, with whom, and how fast time goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DAYS_A_MINUTE = 9.1  # ten minutes are a quarter of a year
CANDIDATES = 128  # ads of an answer; of few the ranker could not choose what the model ranks too low
WINDOW_S = 3600  # simulated, of a sample; what users do, they do within ten minutes
SESSION_S = 600


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A loop.

    Attributes:
        config: preset.
        overrides: of it.
        run: folder with data, tokenizer and a trained model; only read.
        work: folder to work in; what is in it from before goes.
        cache: folder for what does not depend on the seed.
        minutes: that it is played.
        qps: requests a second, of each model.
        users: simulated.
        new_ads_a_minute: that come through the sidecar.
        drift: of tastes; 1 for that of the logs.
        seed: of users, drift, bids and choices.
    """

    config: str
    overrides: tuple[str, ...] = ()
    run: Path
    work: Path
    cache: Path
    minutes: float = 10.0
    qps: float = 8.0
    users: int = 300
    new_ads_a_minute: float = 6.0
    drift: float = 1.0
    seed: int = 0

    @property
    def requests(self) -> int:
        """In all."""
        return max(1, round(60 * self.minutes * self.qps))

    @property
    def spacing_s(self) -> float:
        """Simulated seconds between two requests."""
        return DAYS_A_MINUTE * 86_400 / (60 * self.qps)

    @property
    def days(self) -> int:
        """That the drift is drawn for."""
        return int(DAYS_A_MINUTE * self.minutes) + 1

    @property
    def new_ads(self) -> int:
        """In all."""
        return round(self.new_ads_a_minute * self.minutes)

    def words(self) -> list[str]:
        """Of the command line of whatever reads the preset."""
        values = (*LEARNING, *self.overrides, *SERVING)
        return [f"--config={self.config}", *(f"--set={value}" for value in values)]


LEARNING = ("online.list_objective=vsl", "online.learning_rate=1e-4")
"""Chosen on seed 100 (benchmarks/RESULTS.md); a preset or --set may say otherwise."""
SERVING = (
    "serving.graph_calls=in_process",  # the scheduler follows CURRENT by itself
    "serving.load_control=fixed",  # both models search what is configured
    "serving.cache='off'",  # a version, not a minute, decides what is answered
    "serving.scheduler_instances=1",
    "serving.threads=1",
)
