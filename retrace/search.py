"""Search of records: which rows of which partitions a condition holds for, by DuckDB, each file read once.

The connection may read the partitions and nothing else, writes nothing, not even what does not fit into memory, and
takes the condition as one expression. Neither results nor messages hold anything of the condition or of a row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from retrace.condition import Condition, ConditionRefused, parse_condition, refuse_columns, refuse_values
from retrace.locked_down import reading

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation
    from pyarrow import RecordBatch, RecordBatchReader, Schema

__all__ = ["ConditionRefused", "Hit", "Place", "Searched", "remaining", "search"]

_MEMORY = "1GB"
_BATCH_ROWS = 128 * 1024
_FILE_COLUMN = "filename"  # DuckDB's name for the file that a row is from
_UNSUITED = "the condition cannot be computed on its rows; TRY_CAST skips values that are no number or date"
_UNREADABLE = "cannot be read as Parquet: it is damaged, or another kind of file"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Place:
    """A partition's path in the repository, its md5, and the object to read."""

    path: str
    md5: str
    file: Path


@dataclass(frozen=True)
class Hit:
    """How many rows of a partition a condition holds for."""

    path: str
    md5: str
    rows: int


@dataclass(frozen=True)
class Searched:
    """The partitions with hits, and those that could not be searched: (path, md5, why)."""

    hits: tuple[Hit, ...]
    unsearchable: tuple[tuple[str, str, str], ...]


class _NotComputed(Exception):
    """DuckDB gave up on some file: why, in words that hold nothing of the condition or of a row."""


def search(condition: str, places: Sequence[Place]) -> Searched:
    """Count the rows that match in each partition; a file that stands for several is read once.

    Raises `ConditionRefused`, also when no partition can be searched because of the condition.
    """
    with reading([place.file for place in places], _MEMORY) as connection:
        checked = parse_condition(connection, condition)
        schemas, why = _schemas(place.file for place in places)
        alike: dict[Schema, list[Path]] = defaultdict(list)
        for file, schema in schemas.items():
            if missing := checked.missing(schema.names):
                why[file] = f"has no column {', '.join(sorted(missing))}"
            else:
                alike[schema].append(file)
        if schemas and not alike:
            raise refuse_columns(list(dict.fromkeys(name for schema in schemas.values() for name in schema.names)))
        counts: dict[Path, int] = {}
        for schema, files in alike.items():
            counts |= _counts(connection, checked, schema, files, why)
        if alike and not counts and _UNSUITED in why.values():
            raise refuse_values(_typed(next(iter(alike))))
    hits = (Hit(place.path, place.md5, counts.get(place.file, 0)) for place in places)
    unsearchable = ((place.path, place.md5, why[place.file]) for place in places if place.file in why)
    return Searched(tuple(hit for hit in hits if hit.rows), tuple(unsearchable))


@contextmanager
def remaining(condition: str, place: Place) -> Iterator[RecordBatchReader]:
    """The rows of one partition that do not match, in their order, as a stream of Arrow batches.

    A row for which the condition is neither true nor false does not match. Raises `ConditionRefused`, also when the
    partition cannot be searched.
    """
    import duckdb
    from pyarrow import RecordBatchReader

    with reading([place.file], _MEMORY) as connection:
        checked = parse_condition(connection, condition)
        schemas, why = _schemas([place.file])
        if why:
            raise ConditionRefused(f"{place.path} ({place.md5[:12]}): {why[place.file]}")
        schema = schemas[place.file]
        if checked.missing(schema.names):
            raise refuse_columns(schema.names)
        false = duckdb.ConstantExpression(False)
        keep = duckdb.CoalesceOperator(checked.expression, false) == false
        try:
            relation = _boolean(connection.read_parquet(str(place.file)), checked).filter(keep)
            reader = _stoppable(connection, lambda: relation.to_arrow_reader(_BATCH_ROWS))
        except (_NotComputed, duckdb.Error):
            raise refuse_values(_typed(schema)) from None
        assert reader is not None
        yield RecordBatchReader.from_batches(reader.schema, _batches(connection, reader, place))


def _batches(connection: DuckDBPyConnection, reader: RecordBatchReader, place: Place) -> Iterator[RecordBatch]:
    import duckdb
    from pyarrow import ArrowException

    while True:
        try:
            batch = _stoppable(connection, lambda: next(reader, None))
        except (duckdb.Error, ArrowException, OSError):
            raise ConditionRefused(f"{place.path} ({place.md5[:12]}): {_UNSUITED}, or it is damaged") from None
        if batch is None:
            return
        yield batch


def _schemas(files: Iterable[Path]) -> tuple[dict[Path, Schema], dict[Path, str]]:
    """The schema of each file once, and why others have none."""
    import pyarrow
    import pyarrow.parquet

    schemas: dict[Path, Schema] = {}
    why: dict[Path, str] = {}
    for file in dict.fromkeys(files):
        try:
            schemas[file] = pyarrow.parquet.read_schema(file).remove_metadata()
        except FileNotFoundError:
            why[file] = "is not on this machine"
        except (pyarrow.ArrowException, OSError):
            why[file] = _UNREADABLE
    return schemas, why


def _counts(
    connection: DuckDBPyConnection, condition: Condition, schema: Schema, files: Sequence[Path], why: dict[Path, str]
) -> dict[Path, int]:
    """File -> matching rows, of files with the same columns: all at once, and one by one if that fails."""
    if len(files) > 1 and _FILE_COLUMN not in {name.lower() for name in schema.names}:
        try:
            return _count_together(connection, condition, files)
        except _NotComputed:
            pass  # told below, of the file that it comes from
    found: dict[Path, int] = {}
    for file in files:
        try:
            found[file] = _count(connection, condition, file)
        except _NotComputed as error:
            why[file] = str(error)
    return found


def _count_together(connection: DuckDBPyConnection, condition: Condition, files: Sequence[Path]) -> dict[Path, int]:
    names = [str(file) for file in files]
    rows = _run(
        connection,
        condition,
        lambda: connection.read_parquet(names, filename=True),
        lambda relation: relation.aggregate(f"{_FILE_COLUMN}, count(*)"),
    )
    return dict.fromkeys(files, 0) | {Path(name): count for name, count in rows}


def _count(connection: DuckDBPyConnection, condition: Condition, file: Path) -> int:
    rows = _run(
        connection,
        condition,
        lambda: connection.read_parquet(str(file)),
        lambda relation: relation.aggregate("count(*)"),
    )
    return int(rows[0][0])


def _run(
    connection: DuckDBPyConnection,
    condition: Condition,
    read: Callable[[], DuckDBPyRelation],
    summed: Callable[[DuckDBPyRelation], DuckDBPyRelation],
) -> list[tuple[Any, ...]]:
    """What a summary of the matching rows holds. Raises `_NotComputed`: DuckDB's own message would repeat values."""
    import duckdb

    try:
        matching = _boolean(read(), condition).filter(condition.expression)
        return _stoppable(connection, lambda: summed(matching).fetchall())
    except (duckdb.DataError, duckdb.ProgrammingError, duckdb.NotSupportedError):
        raise _NotComputed(_UNSUITED) from None
    except duckdb.OutOfMemoryException:
        raise _NotComputed(f"the condition needs more than {_MEMORY} of memory on it") from None
    except duckdb.Error:
        raise _NotComputed(_UNREADABLE) from None


def _boolean(relation: DuckDBPyRelation, condition: Condition) -> DuckDBPyRelation:
    """The relation, if the condition is true or false on it: DuckDB would take numbers and texts for conditions."""
    if [str(kind) for kind in relation.select(condition.expression).types] != ["BOOLEAN"]:
        raise _NotComputed(_UNSUITED)
    return relation


def _stoppable(connection: DuckDBPyConnection, work: Callable[[], _T]) -> _T:
    """Run a query in a thread, so that Ctrl-C reaches this one: DuckDB itself may look for it after minutes only."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except BaseException:
            connection.interrupt()
            raise


def _typed(schema: Schema) -> list[str]:
    return [f"{field.name} {field.type}" for field in schema]
