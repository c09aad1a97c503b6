"""Is the index on disk what was written? Checked at the start and now and then, healed where possible."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from indexer.sidecar.beside import Beside
from indexer.store.file import StoreFile
from indexer.store.health import IndexHealth, check_index
from serving.index.base import check_sizes
from serving.index.layout import BASE, STORE, IndexStoreError, base_folder

log = logging.getLogger("gr4ad.indexer")

_LOOK_S = 2.0
_HEAL_AGAIN_S = 60.0
_ADVICE = "restore a backup, or build it anew (docs/index.md)"


class StartCheck:
    """The check of an index before it is opened for writing.

    Attributes:
        running: the check, where it takes longer than the start may.
        health: what it found; nothing yet where it still runs.
    """

    def __init__(self, index: Path, *, wait_s: float) -> None:
        """Check; at the longest for `wait_s`.

        Raises:
            IndexStoreError: the store is damaged, or cannot be checked.
        """
        self.running: Beside | None = None
        self.health = IndexHealth()
        if not (index / STORE / "data.mdb").exists():
            return
        self.running = Beside(check_index, str(index))
        if self.running.wait(wait_s):
            self.health = _health(self.running)
            self.running = None
        if self.health.store:
            raise IndexStoreError(f"index {index}: {'; '.join(self.health.store)}; {_ADVICE}")


class Checker:
    """A chore of the writer's thread: nothing in it waits."""

    def __init__(
        self,
        file: StoreFile,
        *,
        first: StartCheck,
        make_base: Callable[[str], bool],
        every_s: float = 3600.0,
        look_s: float = _LOOK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Of an open store.

        Args:
            file: the store.
            first: its check at the start.
            make_base: begins new base arrays of a tokenizer; False where that must wait.
            every_s: time between two checks of everything.
            look_s: time between two looks whether files are there and whole.
            clock: seconds, monotonic.
        """
        self._file, self._make_base, self._clock = file, make_base, clock
        self._every_s, self._look_s = every_s, look_s
        self._running, self._store = first.running, list[str]()
        self._bases: dict[str, tuple[int, str]] = {}  # tokenizer -> base that is damaged, and how
        self._heal_at: dict[str, float] = {}
        self._check_at, self._look_at = clock() + every_s, clock()
        self._take(first.health)

    def __call__(self) -> None:
        """Look, take the result of a check, begin one that is due, begin new bases for damaged ones."""
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + self._look_s
            self._look()
            self._heal(now)
        if self._running is not None and self._running.wait(0.0):
            self._take(_health(self._running))
            self._running = None
        if self._running is None and now >= self._check_at:
            self._check_at = now + self._every_s
            self._running = Beside(check_index, str(self._file.path))

    def problems(self) -> list[str]:
        """What is damaged."""
        store = [f"the store is damaged: {problem}; {_ADVICE}" for problem in self._store]
        bases = [f"new base arrays are made: {problem}" for _, problem in self._bases.values()]
        return [*store, *bases]

    def damaged(self) -> dict[str, int]:
        """How many problems of the store there are, and of base arrays."""
        return {STORE: len(self._store), BASE: len(self._bases)}

    def close(self) -> None:
        """End a check that runs."""
        if self._running is not None:
            self._running.stop()

    def _take(self, health: IndexHealth) -> None:
        for problem in health.store:
            log.error("the store is damaged: %s", problem)
        self._store = health.store
        for name, (base, problem) in health.bases.items():
            self._damaged(name, base, problem)

    def _look(self) -> None:
        """Files that are missing or cut off; who maps one would be ended by SIGBUS."""
        generations = self._file.meta.generations
        for name, (base, _) in list(self._bases.items()):
            if name not in generations or generations[name].base != base:
                log.warning("generation %s has sound base arrays again", name)
                del self._bases[name]
        for name, generation in generations.items():
            if generation.base is not None:
                try:
                    check_sizes(base_folder(self._file.path, name, sequence=generation.base))
                except IndexStoreError as error:
                    self._damaged(name, generation.base, str(error))
        if (problem := self._file.file_problem()) and problem not in self._store:
            self._take(IndexHealth([*self._store, problem]))

    def _damaged(self, name: str, base: int, problem: str) -> None:
        generation = self._file.meta.generations.get(name)
        if generation is not None and generation.base == base and name not in self._bases:
            log.error("generation %s: %s", name, problem)
            self._bases[name] = base, problem

    def _heal(self, now: float) -> None:
        for name in self._bases:
            if now >= self._heal_at.get(name, now) and self._make_base(name):
                self._heal_at[name] = now + _HEAL_AGAIN_S


def _health(finished: Beside) -> IndexHealth:
    try:
        health = finished.result()
    except IndexStoreError as error:
        return IndexHealth([f"it cannot be checked: {error}"])
    assert isinstance(health, IndexHealth)
    return health
