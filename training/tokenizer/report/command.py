r"""Measure a tokenizer and draw what it gives: report.html and report.json beside it.

python -m training.tokenizer report --config configs/demo.yaml --data build/demo/data \
    --out build/demo/tokenizer

The page says what every figure means (training.tokenizer.definitions). An embedder that learns from baskets
is fitted a second time, without the baskets of some texts.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from serving.files import write_file
from training.preset.preset import Preset, add_preset_arguments
from training.tokenizer.report.figures import Figures
from training.tokenizer.report.page import render

PAGE, REPORT = "report.html", "report.json"


def main(words: Sequence[str]) -> None:
    """Command line, behind `report`."""
    parser = argparse.ArgumentParser(
        prog="python -m training.tokenizer report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_preset_arguments(parser)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the tokenizer")
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        preset = Preset.load(arguments.config, arguments.overrides)
        figures = Figures.measure(
            arguments.out, data_dir=arguments.data, behaviors=preset.logs.target_behaviors
        )
        stats = arguments.data / "stats.json"
        provenance = json.loads(stats.read_text()).get("provenance", "") if stats.exists() else ""
        write_file(arguments.out / PAGE, render(figures, provenance=provenance))
        write_file(arguments.out / REPORT, json.dumps(figures.to_json(), indent=2) + "\n")
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    print(f"{arguments.out / PAGE}, {arguments.out / REPORT}")
