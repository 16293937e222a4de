"""PSI of raw columns from the partitions themselves, by DuckDB: every row of both sides counts.

Numbers fall into bins that end at A's deciles, texts and booleans into one bin for each of A's most frequent values and
one for all others; missing values (and NaN) have a bin of their own. Side B is read once; A twice, since its bins must
be known before its rows can be counted. Memory is bounded however many rows there are: where they are too many for
exact deciles, DuckDB's approximate ones move the bins a little, and the index of those bins is exact.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrace.comparison.psi import ColumnPsi, psi
from retrace.errors import RetraceError
from retrace.locked_down import pattern, reading

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation, Expression

_DECILES = tuple(number / 10 for number in range(1, 10))
_CATEGORIES = 20
_MEMORY = "1GB"
_NUMBERS = re.compile(r"(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\(.*\))")
_FLOATING = ("FLOAT", "DOUBLE")
_CLASSES = ("VARCHAR", "BOOLEAN")


class PartitionsUnreadable(RetraceError):
    """DuckDB cannot read the partitions of a dataset."""


@dataclass(frozen=True)
class _Bins:
    """A column and where its bins end (numbers), or which values have one (others)."""

    column: str
    kind: str
    limits: tuple[Any, ...]

    @property
    def numeric(self) -> bool:
        return self.kind not in _CLASSES

    def counts(self) -> list[Expression]:
        """What is counted in one pass: rows that are not missing, then up to each limit, or of each value."""
        import duckdb

        column = duckdb.ColumnExpression(self.column)
        there = _is_there(column, self.kind)
        limits = [duckdb.ConstantExpression(limit) for limit in self.limits]
        tests = [there, *(there & (column <= limit if self.numeric else column == limit) for limit in limits)]
        return [duckdb.FunctionExpression("count_if", test) for test in tests]

    def shares(self, rows: int, counted: Sequence[int]) -> list[float]:
        """Rows in each bin, of what `counts` found: missing ones, then bin by bin, then the rest."""
        present, *rest = counted
        if not self.numeric:
            return [rows - present, *rest, present - sum(rest)]
        up_to = [0, *rest, present]
        return [rows - present, *(high - low for low, high in pairwise(up_to))]


def psi_of_files(before: Sequence[Path], after: Sequence[Path], *, exact: bool) -> tuple[ColumnPsi, ...]:
    """The index of each column that both sides have, in A's order; `exact` says whether the deciles are.

    Times, and columns whose type differs, have none. Raises `PartitionsUnreadable`.
    """
    if not before or not after:
        return ()
    import duckdb

    try:
        bins = list(_bins(before, _columns(after), exact))
        counted = [_counted(files, bins) for files in (before, after)]
    except duckdb.Error as error:
        raise PartitionsUnreadable(str(error).partition("\n")[0]) from None
    return tuple(ColumnPsi(item.column, psi(*shares)) for item, *shares in zip(bins, *counted, strict=True))


def _table(connection: DuckDBPyConnection, files: Iterable[Path]) -> DuckDBPyRelation:
    names = [pattern(file) for file in files]
    return connection.read_parquet(names, union_by_name=True, hive_partitioning=False)


def _columns(files: Sequence[Path]) -> dict[str, str]:
    with reading(files, _MEMORY, 1) as connection:
        return _types(_table(connection, files))


def _types(table: DuckDBPyRelation) -> dict[str, str]:
    return {name: str(kind) for name, kind in zip(table.columns, table.types, strict=True)}


def _bins(files: Sequence[Path], other: Mapping[str, str], exact: bool) -> Iterator[_Bins]:
    """The bins of every column that both sides have, by one pass over the files.

    One thread reads them: what is approximate depends on the order of rows.
    """
    with reading(files, _MEMORY, 1) as connection:
        table = _table(connection, files)
        wanted = {name: kind for name, kind in _types(table).items() if other.get(name) == kind and _has_bins(kind)}
        if not wanted:
            return
        (limits,) = table.aggregate([_limits(name, kind, exact) for name, kind in wanted.items()]).fetchall()
    for (name, kind), found in zip(wanted.items(), limits, strict=True):
        yield _Bins(name, kind, tuple(dict.fromkeys(value for value in found or () if value is not None)))


def _has_bins(kind: str) -> bool:
    return kind in _CLASSES or _NUMBERS.fullmatch(kind) is not None


def _is_there(column: Expression, kind: str) -> Expression:
    """Whether a value is neither NULL nor NaN.

    Not by `isnan`: DuckDB answers that from a Parquet file's statistics, which know nothing of NaN.
    """
    import duckdb

    if kind not in _FLOATING:
        return column.isnotnull()
    infinite = [duckdb.ConstantExpression(sign * math.inf) for sign in (1, -1)]
    return duckdb.FunctionExpression("isfinite", column) | (column == infinite[0]) | (column == infinite[1])


def _limits(name: str, kind: str, exact: bool) -> Expression:
    """The deciles of a column of numbers, the most frequent values of another."""
    import duckdb

    column = duckdb.ColumnExpression(name)
    if kind in _CLASSES:
        return duckdb.FunctionExpression("approx_top_k", column, duckdb.ConstantExpression(_CATEGORIES))
    column = duckdb.CaseExpression(_is_there(column, kind), column)
    deciles = duckdb.ConstantExpression(list(_DECILES))
    if exact:
        return duckdb.FunctionExpression("quantile_disc", column, deciles)
    return duckdb.FunctionExpression("approx_quantile", column, deciles.cast("FLOAT[]"))


def _counted(files: Sequence[Path], bins: Sequence[_Bins]) -> list[list[float]]:
    """Rows in each bin of each column, by one pass over the files."""
    import duckdb

    if not bins:
        return []
    counts = [item.counts() for item in bins]
    with reading(files, _MEMORY, os.cpu_count() or 1) as connection:
        everything = duckdb.FunctionExpression("count_star")
        asked = [everything, *(count for one in counts for count in one)]
        ((rows, *rest),) = _table(connection, files).aggregate(asked).fetchall()
    numbers = iter(rest)
    return [item.shares(rows, [next(numbers) for _ in one]) for item, one in zip(bins, counts, strict=True)]
