"""Where a run stands: what it was made from, what has changed since, and whether it is at its end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from serving.inputs import Inputs, changes, named, summary
from training.loop.checkpoint import Checkpoint
from training.loop.device import Device
from training.loop.patience import best_record, is_exhausted
from training.preset.data import FeatureConfig
from training.preset.loop import HOW_IT_RUNS, LoopConfig
from training.preset.preset import Preset
from training.run import SpecError
from training.tokenizer.storage import read_folder

_WINDOW = "data.attribution_window"
# What of the data is read by a model that trains; of the ads it sees the SIDs alone.
_FILES = ("data/events.parquet", "data/users.parquet", "data/split.json", "tokenizer/sids.parquet")


def inputs_of(preset: Preset, run: Path, *, more_files: Iterable[str] = ()) -> dict[str, Any]:
    """What training reads besides the section of its recipe.

    Args:
        preset: all settings.
        run: run folder.
        more_files: paths in the run folder that the recipe reads besides those of pre-training.

    Raises:
        OSError: a file is missing.
        TokenizerError: the tokenizer is broken.
    """
    values = {
        "tokenizer": read_folder(run / "tokenizer")[0],
        _WINDOW: json.loads((run / "data" / "stats.json").read_text()).get("attribution_window_s", 0),
        "data.target_behaviors": preset.logs.target_behaviors,
        **named("model", preset.model.model_dump(mode="json")),
        **named("features", preset.features.model_dump(mode="json")),
    }
    return Inputs.now(values, files={name: run / name for name in (*_FILES, *more_files)}).values


def changed_since(
    found: Checkpoint, section: str, *, settings: dict[str, Any], inputs: dict[str, Any]
) -> list[str]:
    """What is not as it was when a checkpoint was made; nothing of what the checkpoint does not know."""
    known = found.settings.keys() & settings.keys()
    was, now = (
        named(section, {k: of[k] for k in settings if k in known}) for of in (found.settings, settings)
    )
    was |= _of(found)
    return changes(was, now | {k: v for k, v in inputs.items() if found.inputs is not None or k in was})


def to_do(
    found: Checkpoint | None,
    config: LoopConfig,
    *,
    folder: Path,
    section: str,
    inputs: dict[str, Any],
    device: Device,
) -> list[str] | None:
    """What has changed since a checkpoint was made; None where a run is at its end and nothing has.

    Args:
        found: where the run stands; None for one that begins.
        config: its section of the preset.
        folder: of its checkpoints.
        section: name of the section.
        inputs: what it reads besides.
        device: the first process says that a run is at its end.

    Raises:
        SpecError: the run has made all its steps, with other settings or data than there are now.
    """
    if found is None:
        return []
    changed = changed_since(found, section, settings=config.model_dump(mode="json"), inputs=inputs)
    if is_at_end(found, config, folder=folder, section=section, changed=changed, device=device):
        return None
    if found.step >= config.steps:
        raise stale(folder, found, section=section, changed=changed)
    return changed


def is_at_end(
    found: Checkpoint, config: LoopConfig, *, folder: Path, section: str, changed: list[str], device: Device
) -> bool:
    """Whether a run has made all its steps or lost its patience, and nothing has changed since.

    The first process says so.
    """
    if found.step >= config.steps:
        end = ""
    elif is_exhausted(found.history, patience=config.patience, first=found.first_record):
        best = found.history[best_record(found.history, first=found.first_record)]
        end = f"; stopped early, step {best['step']:.0f} was no worse: see --checkpoint best"
    else:
        return False
    if weighty(changed, section):
        return False
    if device.rank == 0:
        print(f"{folder}: up to date (step {found.step} of {config.steps}{end})")
    return True


def weighty(changed: list[str], section: str) -> list[str]:
    """Those of `changed_since` with which other weights would have come out."""
    return [c for c in changed if not c.startswith(tuple(f"{section}.{key} " for key in HOW_IT_RUNS))]


def stale(folder: Path, found: Checkpoint, *, section: str, changed: list[str]) -> SpecError:
    """A run at its end was made with other settings or data than there are now."""
    return SpecError(
        f"{folder}: trained to its end (step {found.step}), with other inputs than there are now: "
        f"{summary(weighty(changed, section))}; raise {section}.steps to go on with these, set them back, or "
        "start over with --fresh"
    )


def _of(found: Checkpoint) -> dict[str, Any]:
    """Inputs of a checkpoint; what its model says stands above what it kept, and an older one kept none."""
    features = json.loads(json.dumps(found.spec.features.to_json()))
    return {
        **(found.inputs or {}),
        "tokenizer": found.spec.tokenizer_id,
        _WINDOW: found.spec.features.attribution_window_s,
        **named("model", found.spec.model.model_dump(mode="json")),
        **named("features", {key: features[key] for key in FeatureConfig.model_fields}),
    }
