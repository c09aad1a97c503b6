"""Candidate lists in a file: a row a request, what was found for it in columns of lists.

Letters: N requests, M candidates of all of them, n of one, T SID levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from serving.files import new_file
from training.data.checks import TableError
from training.data.files import read_table
from training.data.list_about import ListStoreError
from training.data.lists import CandidateList

Int64 = npt.NDArray[np.int64]

_KEY = ("user_id", "now", "nth")
_REWARD: dict[str, pl.DataType] = {"reward": pl.List(pl.Float32)}


@dataclass(frozen=True, kw_only=True)
class ContextList:
    """What was found for one request.

    Attributes:
        user_id: whose request.
        now: its time, unix seconds.
        nth: which of the requests of that user and time, in the order of the log, counted from 0.
        candidates: with `log_p_ref`; the rewards are not kept here.
        bought: bool [n], to which of these ads the request led, by the log.
    """

    user_id: int
    now: int
    nth: int
    candidates: CandidateList
    bought: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """Lists of some requests, side by side.

    Attributes:
        user_id: int64 [N].
        now: int64 [N].
        nth: int64 [N].
        ptr: int64 [N + 1]; candidates of request i are [ptr[i], ptr[i + 1]).
        sids: int32 [M, T].
        ads: int64 [M], -1 where unknown.
        log_p_ref: float32 [M].
        flags: uint8 [M].
        bought: bool [M].
    """

    user_id: Int64
    now: Int64
    nth: Int64
    ptr: Int64
    sids: npt.NDArray[np.int32]
    ads: Int64
    log_p_ref: npt.NDArray[np.float32]
    flags: npt.NDArray[np.uint8]
    bought: npt.NDArray[np.bool_]

    @classmethod
    def join(cls, shards: Sequence[Shard]) -> Shard:
        """One after the other; at least one."""
        columns = {
            name: np.concatenate([getattr(shard, name) for shard in shards])
            for name in vars(shards[0])
            if name != "ptr"
        }
        counts = np.concatenate([np.diff(shard.ptr) for shard in shards])
        return cls(ptr=np.append(0, np.cumsum(counts)), **columns)


def write_shard(path: Path, contexts: Sequence[ContextList], *, levels: int) -> None:
    """Write a shard, whole or not at all.

    Raises:
        ValueError: a list without `log_p_ref`, or `bought` of another length.
        OSError: the disk is full or not writable.
    """
    rows = []
    for context in contexts:
        found, bought = context.candidates, context.bought
        if found.log_p_ref is None or bought.shape != found.ads.shape:
            got = "none" if found.log_p_ref is None else f"bought {list(bought.shape)}"
            raise ValueError(
                f"user {context.user_id} at {context.now}: expected log_p_ref and bought of {len(found.ads)} "
                f"candidates, got {got}"
            )
        lists = (found.sids, found.ads, found.log_p_ref, found.flags, bought)
        rows.append((context.user_id, context.now, context.nth, *(column.tolist() for column in lists)))
    with new_file(path) as partial:
        pl.DataFrame(rows, schema=_schema(levels), orient="row").write_parquet(partial)


def read_shard(path: Path, *, level_sizes: tuple[int, ...], contexts: int) -> Shard:
    """Read what `write_shard` wrote.

    Args:
        path: file.
        level_sizes: codes of each level.
        contexts: requests that it must have.

    Raises:
        ListStoreError: it is missing or damaged, or not of so many requests.
    """
    table = _read(path, _schema(len(level_sizes)), rows=contexts)
    names = [name for name in table.columns if name not in _KEY]
    counts = table[names[0]].list.len().cast(pl.Int64)
    for name in names[1:]:
        odd = (table[name].list.len().cast(pl.Int64) != counts).arg_true()
        if len(odd):
            row, got = odd[0], len(table[name][odd[0]])
            raise ListStoreError(f"{path}: row {row}, {name}: expected {counts[row]} candidates, got {got}")
    flat = {name: _flat(path, table[name]) for name in names}
    if (flat["sids"] >= np.array(level_sizes)).any():
        row = int(np.flatnonzero((flat["sids"] >= np.array(level_sizes)).any(axis=1))[0])
        raise ListStoreError(
            f"{path}: candidate {row}: expected a code a level below {level_sizes}, got "
            f"{flat['sids'][row].tolist()}"
        )
    keys = {name: table[name].to_numpy() for name in _KEY}
    shard = Shard(ptr=np.append(0, np.cumsum(counts.to_numpy())), **keys, **flat)
    try:
        CandidateList(
            sids=shard.sids,
            reward=np.zeros(len(shard.ads), np.float32),
            flags=shard.flags,
            ads=shard.ads,
            log_p_ref=shard.log_p_ref,
        )
    except ValueError as error:
        raise ListStoreError(f"{path}: {error}") from error
    return shard


def write_rewards(path: Path, rewards: Sequence[np.ndarray], *, counts: Int64) -> None:
    """Write the rewards of a shard's candidates, whole or not at all.

    Args:
        path: file.
        rewards: of each request, float [n].
        counts: int64 [N], candidates of each request.

    Raises:
        ValueError: they are not of these candidates, or not finite.
        OSError: the disk is full or not writable.
    """
    _check_rewards("rewards", [np.asarray(reward, np.float32) for reward in rewards], counts=counts)
    column = [np.asarray(reward, np.float32).tolist() for reward in rewards]
    with new_file(path) as partial:
        pl.DataFrame({"reward": column}, schema=_REWARD).write_parquet(partial)


def read_rewards(path: Path, *, counts: Int64) -> npt.NDArray[np.float32]:
    """Rewards float32 [M] of the candidates of a shard.

    Raises:
        ListStoreError: the file is missing or damaged, or of other candidates.
    """
    column = _read(path, _REWARD, rows=len(counts))["reward"]
    rewards = [reward.to_numpy() for reward in column]
    try:
        _check_rewards(str(path), rewards, counts=counts)
    except ValueError as error:
        raise ListStoreError(str(error)) from error
    return np.concatenate(rewards) if rewards else np.zeros(0, np.float32)


def _check_rewards(where: str, rewards: Sequence[np.ndarray], *, counts: Int64) -> None:
    if len(rewards) != len(counts):
        raise ValueError(f"{where}: expected rewards of {len(counts)} requests, got {len(rewards)}")
    for row, (reward, count) in enumerate(zip(rewards, counts, strict=True)):
        if reward.shape != (count,) or not np.isfinite(reward).all():
            got = f"{list(reward.shape)}" if reward.shape != (count,) else f"{reward}"
            raise ValueError(f"{where}: row {row}: expected {count} finite rewards, got {got}")


def _schema(levels: int) -> dict[str, pl.DataType]:
    """Columns of a shard, the lists with one type each."""
    lists = {
        "sids": pl.Array(pl.Int32, levels),
        "ads": pl.Int64(),
        "log_p_ref": pl.Float32(),
        "flags": pl.UInt8(),
        "bought": pl.Boolean(),
    }
    return {name: pl.Int64() for name in _KEY} | {name: pl.List(of) for name, of in lists.items()}


def _read(path: Path, schema: dict[str, pl.DataType], *, rows: int) -> pl.DataFrame:
    try:
        table = read_table(path)
    except TableError as error:
        raise ListStoreError(str(error)) from error
    if dict(table.schema) != schema:
        raise ListStoreError(f"{path}: expected columns {schema}, got {dict(table.schema)}")
    if table.height != rows:
        raise ListStoreError(f"{path}: expected lists of {rows} requests, got {table.height}")
    for name in schema:
        if table[name].null_count():
            raise ListStoreError(f"{path}: {name}: expected no empty cell, got {table[name].null_count()}")
    return table


def _flat(path: Path, column: pl.Series) -> np.ndarray:
    values = column.filter(column.list.len() > 0).explode()
    inner = values.explode() if isinstance(values.dtype, pl.Array) else values
    if inner.null_count():
        raise ListStoreError(f"{path}: {column.name}: expected no empty value in a list, got one")
    return values.to_numpy()
