"""Where things are: the checkout, and the files that the launcher makes there."""

from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
DEFAULT_CACHE = HOME / "build" / "triton"
