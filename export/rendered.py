"""What a model repository was rendered for, and whether that is what is asked for: `make serve` asks.

python -m export.rendered --config configs/demo.yaml --run build/demo
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from serving.backend.model_settings import HOME
from serving.backend.settings import ServingConfig
from serving.files import write_file
from serving.index.audience import ATTRIBUTES
from serving.inputs import Inputs, changes, named, summary
from training.preset.preset import Preset, add_preset_arguments

RECORD = "rendered.json"  # in the repository; Triton looks at its folders only


def rendered_for(config: ServingConfig, *, bundles: Path, index: Path) -> Inputs:
    """What a repository is rendered for.

    Args:
        config: serving settings.
        bundles: folder of bundles.
        index: folder of the index.
    """
    folders = {"bundles": portable(bundles), "index": portable(index)}
    return Inputs.now(named("serving", config.model_dump(mode="json")) | folders)


def check(repository: Path, wanted: Inputs) -> None:
    """Refuse a repository that was rendered for something else.

    Raises:
        ValueError: says what it was rendered for, and what was asked for.
    """
    found = Inputs.load(repository / RECORD)
    if found is None:
        raise ValueError(f"{repository}: expected a rendered model repository, got none; run `make export`")
    changed = changes(found.values, wanted.values)
    if changed:
        raise ValueError(
            f"{repository}: rendered for another preset than asked for (was -> asked): {summary(changed)}; "
            "ask for that one (PRESET=, RUN=, SET=), or render for this one: `make export`"
        )


def write_attributes(bundles: Path, config: ServingConfig) -> None:
    """Tell sidecars, which see bundles and no preset, which attributes audiences of events may name."""
    if config.attributes:
        write_file(bundles / ATTRIBUTES, json.dumps(config.attributes, indent=2) + "\n")
    else:
        (bundles / ATTRIBUTES).unlink(missing_ok=True)


def portable(path: Path) -> str:
    """Relative to the checkout where it lies inside, so that a mounted checkout works elsewhere too."""
    path = path.resolve()
    return str(path.relative_to(HOME.resolve())) if path.is_relative_to(HOME.resolve()) else str(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m export.rendered",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_preset_arguments(parser)
    parser.add_argument("--run", required=True, type=Path, help="run folder with bundles/ and index/")
    parser.add_argument(
        "--repository", type=Path, default=HOME / "model_repository", help="[model_repository]"
    )
    parser.add_argument("--index", type=Path, help="index that is served (default: RUN/index)")
    arguments = parser.parse_args()
    try:
        wanted = rendered_for(
            Preset.load(arguments.config, arguments.overrides).serving,
            bundles=arguments.run / "bundles",
            index=arguments.index or arguments.run / "index",
        )
        check(arguments.repository, wanted)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
