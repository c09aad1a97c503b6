"""Batches as a stream, built ahead of the model that works on them."""

from __future__ import annotations

import atexit
import functools
import signal
import traceback
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, Dataset

Item = TypeVar("Item")

_OF_THE_MAIN_PROCESS = (signal.SIGINT, signal.SIGTERM)


class StreamError(RuntimeError):
    """A batch could not be built: names the step, what it holds, and the fault."""


def stream(
    build: Callable[[int], Item],
    steps: Iterable[int],
    *,
    workers: int = 0,
    describe: Callable[[int], str] = lambda step: "",
) -> Generator[Item, None, None]:
    """Yield `build(step)` of every step, in order; `close()` the generator to stop what works ahead.

    What is built is a pure function of the step, so the stream is the same with any number of workers.

    Workers are forked: they share the memory of what `build` reads (an event log) without a copy and need no
    pickling of it, so start the stream before that memory changes. They run NumPy on one thread each and must
    not touch an accelerator. Ctrl-C and SIGTERM are for the main process alone; workers end with the stream,
    or within seconds of a main process that was killed.

    Args:
        build: of the step, and of nothing that changes.
        steps: endless (`itertools.count`) or not.
        workers: processes; 0 for one thread, which is one step ahead.
        describe: what a step holds, for the error.

    Raises:
        StreamError: `build` failed, or a worker was killed.
    """
    guarded = _Guarded(build, describe)
    items = _by_processes(guarded, steps, workers) if workers else _by_thread(guarded, steps)
    try:
        for item in items:
            if isinstance(item, _Fault):
                error = StreamError(item.text)
                error.add_note(item.traceback)
                raise error
            yield item
    finally:
        items.close()


@dataclass(frozen=True)
class _Fault:
    """An error on its way from a worker, as an item: as an exception it would lose its type and its text."""

    text: str
    traceback: str


@dataclass(frozen=True)
class _Guarded(Dataset):
    """Steps as a data set whose items are batches or faults."""

    build: Callable[[int], Any]
    describe: Callable[[int], str]

    def __getitem__(self, step: int) -> Any:
        try:
            return self.build(step)
        except Exception as error:
            held = self.describe(step)
            text = f"step {step}: {type(error).__name__}: {error}{'; ' if held else ''}{held}"
            return _Fault(text, traceback.format_exc())


def _by_thread(batches: _Guarded, steps: Iterable[int]) -> Generator[Any, None, None]:
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        ahead: Future | None = None
        for step in steps:
            ready, ahead = ahead, pool.submit(batches.__getitem__, step)
            if ready is not None:
                yield ready.result()
        if ahead is not None:
            yield ahead.result()


def _by_processes(batches: _Guarded, steps: Iterable[int], workers: int) -> Generator[Any, None, None]:
    loader = DataLoader(
        batches,
        sampler=steps,
        batch_size=None,  # an item is a batch already
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_start_worker,
        multiprocessing_context="fork",
        generator=torch.Generator(),  # PyTorch would draw from the one that seeds the model
    )
    # No signal may reach a worker before it has said which it takes: until then they wait.
    mask, others = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_MAIN_PROCESS), set(active_children())
    try:
        iterator = iter(loader)  # its workers end when it goes
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # The traceback of an error that ends the process keeps it. Then `multiprocessing` would send SIGTERM,
    # which they ignore, and wait for ever.
    kill = functools.partial(_kill, set(active_children()) - others)
    atexit.register(kill)
    try:
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                break
            except RuntimeError as error:  # PyTorch's, of a worker that was killed
                item = _Fault(str(error), traceback.format_exc())
            yield item
    except GeneratorExit:
        atexit.unregister(kill)
        raise
    atexit.unregister(kill)


def _kill(workers: set[BaseProcess]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's would raise
    for worker in workers:
        worker.kill()


def _start_worker(_: int) -> None:
    # The main process decides when to stop, also when a terminal or torchrun signals the whole group.
    for number in _OF_THE_MAIN_PROCESS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_THE_MAIN_PROCESS)
    threadpool_limits(limits=1)


def _as_it_is(item: Any) -> Any:
    return item
