"""Learn from what is served, as it comes (VSL and lists, with replay of the logs).

python -m training.recipes.online --config configs/demo.yaml --run build/demo

It starts from the last checkpoint in RUN/model, reads the samples that `python -m feedback` joins, and writes
checkpoints to RUN/online, which `python -m export publish --follow --model RUN/online` hands to the running
server. It goes on where its last checkpoint stands, whatever ended it: docs/online.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from serving.backend.priority import yield_to_servers
from serving.index.reader import IndexReader
from training.data.batch import Sample
from training.data.list_store import StoredLists
from training.loop.checkpoint import Checkpoint, load_checkpoint, weights_sha256
from training.loop.device import Device
from training.loop.retention import find_checkpoint
from training.loop.signals import StopSignals
from training.online.guards import Guards
from training.online.intake import Intake, SidSource
from training.online.learner import Learner
from training.online.state import OnlineState
from training.preset.preset import Preset
from training.recipes import pretrain
from training.recipes.command import alone, errors_end_the_command, make_parser, use_device
from training.recipes.folder import ONLINE, open_own
from training.recipes.listed_requests import ListedRequests, ListsOfParts
from training.recipes.post_train import two_terms
from training.recipes.requests import LoggedRequests, vsl_of
from training.recipes.roll_out_online import newest_lists
from training.run import RunData

FOLDER, LOCK = "online", "trainer.lock"
_LOOK_S = 5.0  # between two looks for newer lists


class IndexSids:
    """SIDs of the index that is served: it has those of new ads."""

    def __init__(self, index: Path, tokenizer_id: str) -> None:
        """Open.

        Raises:
            IndexStoreError: there is none, or it has no SIDs of this tokenizer.
        """
        self._reader = IndexReader(index, tokenizer_id=tokenizer_id, search=False)
        self._tokenizer_id = tokenizer_id

    def refresh(self) -> None:
        """Take over what has changed."""
        self._reader.refresh()

    def sids_of(self, ad_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `training.data.served.Sids`."""
        return self._reader.snapshot_of(self._tokenizer_id).sids_of(ad_ids)

    def close(self) -> None:
        """Let go of the index."""
        self._reader.close()


class Replay:
    """Samples of the logs: of a step some come with a list of the newest roll-out, where there is one."""

    def __init__(
        self,
        plain: LoggedRequests,
        listed: Callable[[StoredLists], LoggedRequests],
        run: Path,
        *,
        share: float,
        tokenizer_id: str,
        say: Callable[[str], object],
    ) -> None:
        """No list is read yet.

        Args:
            plain: requests without lists.
            listed: those that have one of these lists.
            run: run folder with the lists.
            share: of the samples of a step that come with one.
            tokenizer_id: of the model.
            say: is told of new lists.
        """
        self._plain, self._make, self._run, self._share = plain, listed, run, share
        self._tokenizer_id, self._say = tokenizer_id, say
        self._round, self._looked = 0, -math.inf
        self._listed: LoggedRequests | None = None

    def __call__(self, step: int, count: int) -> list[Sample]:
        """`count` samples; the same ones each time, as long as there are no newer lists."""
        if self._share:
            self._look()
        with_list = self._listed.some(step, round(self._share * count)) if self._listed else []
        return with_list + self._plain.some(step, count - len(with_list))

    def _look(self) -> None:
        if time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        found = newest_lists(self._run, tokenizer_id=self._tokenizer_id, after=self._round)
        if found is not None:
            self._round, lists = found
            self._listed = self._make(lists)
            self._say(f"{lists.folder}: {len(lists)} lists are learnt from")


def prepare_online(
    preset: Preset,
    run: Path,
    *,
    folder: Path,
    store: Path,
    sids: Callable[[str], SidSource],
    device: Device,
    after: int | None = None,
    fresh: bool = False,
    say: Callable[[str], object] = print,
) -> Learner:
    """A learner that stands where the last checkpoint in `folder` was, or at the trained model.

    Args:
        preset: section `online`, and what says which targets there are and what they teach.
        run: run folder.
        folder: of checkpoints.
        store: of feedback.
        sids: SIDs of the tokenizer of that id.
        device: of this process.
        after: samples up to this one that were not learnt are left out.
        fresh: start over.
        say: is told of what happens.

    Raises:
        CheckpointError: there is no trained model, or a checkpoint is not readable.
        SpecError: the folder is of another run, see `open_own`; or the tokenizer is not the model's.
        ValueError: data and model do not fit each other, or there is nothing to replay.
    """
    config, trained = preset.online, find_checkpoint(run / pretrain.FOLDER)
    source = weights_sha256(trained)
    start = open_own(folder, kind=ONLINE, trained=trained, source=source, fresh=fresh)
    if start is None:
        begun = load_checkpoint(trained)
        start = Checkpoint(
            model=begun.model,
            spec=begun.spec,
            settings={},
            seen_sids=begun.seen_sids,
            source=source,
            online=OnlineState().to_json(),
        )
    else:
        say(f"{folder}: goes on at step {start.step}")
    if start.model.copy_path is not None:
        # It says how much users repeat themselves. Served pages would teach it how much they are shown that.
        start.model.copy_path.requires_grad_(False)
    state = OnlineState.of(start.online, start.learnt)
    state.since = {"step": start.step, "offset": state.offset}
    if after is not None and after > state.offset:
        say(f"samples {state.offset + 1} .. {after} are left out")
        state.skipped, state.offset = state.skipped + after - state.offset, after
    data = RunData.load(run)
    data.check_tokenizer(start.spec)
    of_logs = {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "validation_requests": config.probe_requests,
    }
    replayed = preset.training.model_copy(update=of_logs)
    requests = LoggedRequests(
        data.dataset(start.spec), start.spec, preset=preset, config=replayed, device=Device()
    )
    post = preset.post_training.model_copy(update=of_logs)
    listed = preset.model_copy(update={"post_training": post})
    replay = Replay(
        requests,
        lambda stored: ListedRequests(
            requests.dataset, start.spec, lists=ListsOfParts(stored), preset=listed, device=Device()
        ),
        run,
        share=config.rolled_out,
        tokenizer_id=start.spec.tokenizer_id,
        say=say,
    )
    vsl = vsl_of(preset.training, start.spec)
    lists = preset.post_training.model_copy(update={"objective": config.list_objective})
    intake = Intake(
        store,
        sids(start.spec.tokenizer_id),
        state,
        spec=start.spec,
        training=preset.training,
        target_behaviors=preset.logs.target_behaviors,
        say=say,
    )
    return Learner(
        replace(start, settings=config.model_dump(mode="json")),
        intake,
        replay,
        objective=vsl if config.list_objective == "vsl" else two_terms(lists, vsl),
        guards=Guards(list(requests.validation()), vsl, config, device=device),
        config=config,
        device=device,
        folder=folder,
        say=say,
    )


def main() -> None:
    """Command line."""
    parser = make_parser(__doc__, out=FOLDER)
    parser.add_argument("--feedback", type=Path, help="store of feedback (default: RUN/feedback)")
    parser.add_argument("--index", type=Path, help="index that is served (default: RUN/index)")
    parser.add_argument(
        "--after",
        type=int,
        metavar="SEQUENCE",
        help="leave out samples up to this one that it has not learnt",
    )
    arguments = parser.parse_args()
    run: Path = arguments.run
    with errors_end_the_command():
        preset = Preset.load(arguments.config, arguments.overrides)
        folder = arguments.out or run / FOLDER
        with alone(folder / LOCK), use_device(preset.online) as device, StopSignals() as signals:
            learner = prepare_online(
                preset,
                run,
                folder=folder,
                store=arguments.feedback or run / "feedback",
                sids=lambda tokenizer_id: IndexSids(arguments.index or run / "index", tokenizer_id),
                device=device,
                after=arguments.after,
                fresh=arguments.fresh,
                say=_say,
            )
            yield_to_servers()
            learner.run(lambda: signals.received)
            _say(f"stopped at step {learner.step}, behind sample {learner.state.offset}")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
