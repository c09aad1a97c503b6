"""Embeddings of ads in several modalities (image, video, ..), which become the one column `embedding`.

Each is a list column of its name or columns <name>_0, <name>_1, ..; an ad without one of them has nulls
there, which become zeros.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import polars as pl

from training.data.checks import TableChecks

EMBEDDING = "embedding"

Modalities = Mapping[str, int]
"""Dimensions by name, see `data.embedding_columns`."""


def is_of_modality(column: str, modalities: Modalities) -> bool:
    """Whether a column holds a modality, or one of its numbers."""
    return any(column == name or column in _numbered(name, width) for name, width in modalities.items())


def check_modalities(checks: TableChecks, modalities: Modalities) -> None:
    """Faults: a column missing, lists of another length, a number that is not finite, half an embedding."""
    other = [c for c in checks.schema if c == EMBEDDING or c.startswith(f"{EMBEDDING}_")]
    if modalities and other:
        names = ", ".join(modalities)
        checks.fault(f"either {other[0]} or data.embedding_columns {names}", actual="both", column=other[0])
    for name, width in modalities.items():
        if name in checks.schema:
            bad = pl.col(name).list.len() != width
            checks.rows(name, bad=bad.fill_null(False), expected=f"a list of {width} numbers or null")
            finite = pl.element().is_finite().fill_null(False)
            checks.rows(name, bad=pl.col(name).list.eval(~finite).list.any(), expected="finite numbers")
            continue
        columns = _numbered(name, width)
        missing = [column for column in columns if column not in checks.schema]
        if missing:
            wanted = f"columns {columns[0]} .. {columns[-1]} or a list {name} of data.embedding_columns"
            checks.fault(wanted, actual=f"no {missing[0]}", column=missing[0])
            continue
        for column in columns:
            checks.rows(column, bad=~pl.col(column).is_finite(), expected="a finite number or null")
        nulls = pl.sum_horizontal(pl.col(column).is_null() for column in columns)
        checks.rows(columns[0], bad=nulls.is_between(1, width - 1), expected=f"all {width} numbers or none")


def joined(schema: Collection[str], modalities: Modalities) -> pl.Expr:
    """One embedding of all modalities, in the order of the setting, zeros where an ad has none."""
    parts = []
    for name, width in modalities.items():
        if name in schema:
            part = pl.col(name).fill_null(pl.lit([0.0] * width))
        else:
            part = pl.concat_list(pl.col(column).fill_null(0) for column in _numbered(name, width))
        parts.append(part.cast(pl.List(pl.Float64)))
    return pl.concat_list(parts).alias(EMBEDDING)


def _numbered(name: str, width: int) -> list[str]:
    return [f"{name}_{i}" for i in range(width)]
