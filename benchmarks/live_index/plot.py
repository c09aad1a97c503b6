"""The day in fast-forward as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot(growth: dict[str, Any], path: Path) -> None:
    """File and memory over the events of `benchmarks.live_index.growth`."""
    events = [s["events"] / 1e6 for s in growth["series"]]
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 5.5), sharex=True, layout="constrained")
    above.plot(events, [s["file_mb"] for s in growth["series"]], color="#0072B2")
    above.set_ylabel("index on disk, MB")
    above.set_ylim(bottom=0)
    below.plot(events, [s["writer_mb"] for s in growth["series"]], color="#D55E00", label="writer")
    below.plot(events, [s["reader_mb"] for s in growth["series"]], color="#009E73", label="reader")
    below.set_ylabel("private memory, MB")
    below.set_xlabel("million events")
    below.set_ylim(bottom=0)
    below.legend(frameon=False)
    above.set_title(
        f"{growth['events']:,} events on {growth['ads']:,} ads, {growth['compactions']} compactions",
        loc="left",
    )
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
