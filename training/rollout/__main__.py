"""Candidate lists of logged requests by the search that serves, off the latency path: `make rollout`.

A list has the model's best beams, some drawn of the others, and what the request led to, each with its log p.
Where it was stopped, the same command goes on, a shard at a time.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from serving.inputs import RECORD, Inputs, is_up_to_date
from serving.search.widths import WidthPlan
from training.data.list_about import About
from training.data.list_files import check_name, files_of
from training.data.list_store import ListWriter, StoredLists
from training.data.split import PARTS
from training.loop.checkpoint import CheckpointError, load_checkpoint
from training.loop.choice import add_checkpoint_arguments, chosen_checkpoint
from training.preset.preset import Preset, add_preset_arguments
from training.rollout.audiences import Audiences
from training.rollout.drawn_requests import DrawnRequests
from training.rollout.inputs import inputs_of, settings_of
from training.rollout.lists import RollOut
from training.rollout.live import LiveAds
from training.rollout.report import ListFigures
from training.run import RunData

PER_SHARD = 128  # requests: seconds of work, which is what a stop loses


def roll_out(
    preset: Preset, run: Path, *, part: str, checkpoint: Path, folder: Path, fresh: bool = False
) -> StoredLists:
    """Make the lists that are not there yet, and say what they hold.

    Args:
        preset: section `rollout`, and what says which requests there are.
        run: run folder with data/ and tokenizer/.
        part: train, validation or test.
        checkpoint: folder of the model that searches.
        folder: where the lists go, and nothing else; those made from something else are replaced.
        fresh: make all of them again.

    Raises:
        CheckpointError: the checkpoint is not readable.
        ValueError: there is no request, run and model do not fit each other, or there is something else in
            the folder.
        OSError: a file is missing, or the disk is full.
    """
    record = folder / RECORD
    inputs = inputs_of(preset, run, part=part, checkpoint=checkpoint, before=Inputs.load(record))
    if is_up_to_date(record, inputs, outputs=files_of(folder), fresh=fresh):
        return _told(folder)
    loaded, data = load_checkpoint(checkpoint), RunData.load(run)
    data.check_tokenizer(loaded.spec)
    dataset = data.dataset(loaded.spec)
    config = settings_of(preset, part=part)
    requests = DrawnRequests.draw(
        dataset,
        part,
        config=config,
        target_behaviors=preset.logs.target_behaviors,
        min_history=preset.training.min_history,
    )
    about = About(
        weights=inputs.values["weights"],
        tokenizer_id=data.tokenizer_id,
        level_sizes=loaded.spec.level_sizes,
        contexts=len(requests.rows),
        per_shard=PER_SHARD,
        inputs=inputs.values,
    )
    maker = RollOut(
        loaded.model,
        dataset,
        requests,
        live=LiveAds.of(dataset, data.prepared.tables.ads),
        config=config,
        widths=WidthPlan.parse(str(config.widths), levels=len(loaded.spec.level_sizes)).sid,
        audiences=Audiences.of(dataset, data.prepared.tables.ads, serving=preset.serving),
    )
    writer = ListWriter(folder, about, fresh=fresh)  # first: it refuses a folder of something else
    record.unlink(missing_ok=True)
    _make(maker, writer, batch_size=config.batch_size)
    inputs.save(record)
    return _told(folder)


def _make(maker: RollOut, writer: ListWriter, *, batch_size: int) -> None:
    about, missing = writer.about, writer.missing()
    wanted = sum(len(about.rows(shard)) for shard in missing)
    bar = tqdm(
        total=about.contexts,
        initial=about.contexts - wanted,
        desc="roll out",
        unit="list",
        file=sys.stderr,
        mininterval=2.0,
    )
    spent = time.process_time()
    with bar:
        for shard in missing:
            rows, lists = about.rows(shard), []
            for start in range(rows.start, rows.stop, batch_size):
                batch = range(start, min(start + batch_size, rows.stop))
                lists += maker.lists(batch)
                bar.update(len(batch))
            writer.write(shard, lists)
    spent = time.process_time() - spent
    print(f"{wanted:,} lists, {1e3 * spent / max(wanted, 1):.1f} ms of processor time each")


def _told(folder: Path) -> StoredLists:
    stored = StoredLists.open(folder)
    print(f"{folder}: {ListFigures.of(stored)}")
    return stored


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preset_arguments(parser)
    add_checkpoint_arguments(parser)
    parser.add_argument("--part", choices=PARTS, default="train", help="whose requests [train]")
    parser.add_argument("--name", help="of the lists: RUN/lists/NAME (default: the part)")
    parser.add_argument("--requests", type=int, help="how many requests [rollout.requests]")
    parser.add_argument("--fresh", action="store_true", help="start over: keep no list")
    arguments = parser.parse_args()
    overrides = [*arguments.overrides]
    overrides += [f"rollout.requests={arguments.requests}"] if arguments.requests is not None else []
    try:
        name = arguments.part if arguments.name is None else arguments.name
        folder = arguments.run / "lists" / check_name(name)
        preset = Preset.load(arguments.config, overrides)
        torch.set_num_threads(preset.training.threads)
        roll_out(
            preset,
            arguments.run,
            part=arguments.part,
            checkpoint=chosen_checkpoint(arguments),
            folder=folder,
            fresh=arguments.fresh,
        )
    except (CheckpointError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt as stop:
        raise SystemExit("\nstopped; the same command goes on") from stop


if __name__ == "__main__":
    main()
