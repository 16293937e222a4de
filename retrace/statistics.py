"""What a table holds, column by column, for lineage: rows, nulls, distinct values, extremes, quantiles.

    describe(root, "data/features/late_arrival")             reads every Parquet file below that folder
    kept(store, md5, root, "data/features/late_arrival")     the same, once for each version, which the md5 names

DuckDB reads one column at a time in pieces, on one thread, in bounded memory. It may read these files and nothing else:
no network, no extension, no temporary file. The names of files and of columns never become SQL.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter

from retrace.errors import RetraceError
from retrace.locked_down import pattern, reading

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

SUFFIX = ".parquet"
EXACT_ROWS = 1_000_000  # up to here a column's values fit into memory, and counting them takes a moment
EXACT_BYTES = 64_000_000  # of one column; texts may be long
QUANTILES = ("0.05", "0.25", "0.5", "0.75", "0.95")
_MEMORY = "512MB"
_STRICT = ConfigDict(extra="forbid")

Finite = Annotated[float, Field(allow_inf_nan=False)]


class StatisticsFailed(RetraceError):
    """The statistics of a table could not be had: a damaged or unusual file, a full disk. No reason to fail a task."""


@dataclass(frozen=True)
class Column:
    """One column. `type` is Arrow's name of it.

    NaN counts among `nulls`, as it does in pandas. `distinct` is None for lists, structures and maps. `low`, `high` and
    `quantiles` are of the finite values of numbers, and of dates and timestamps as seconds since 1970; other columns
    have none. A quantile is a value that occurs, unless it is approximate.
    """

    __pydantic_config__ = _STRICT

    name: str
    type: str
    nulls: int
    distinct: int | None
    low: Finite | None = None
    high: Finite | None = None
    quantiles: Mapping[str, Finite] = field(default_factory=dict)


@dataclass(frozen=True)
class Statistics:
    """A table: its rows, the files that it is made of and their bytes, its columns in their order."""

    __pydantic_config__ = _STRICT

    rows: int
    files: int
    size: int
    columns: tuple[Column, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Statistics:
        """Raises `ValueError` for what `as_dict` did not write."""
        return TypeAdapter(cls).validate_python(content)


def describe(root: Path, path: str) -> Statistics | None:
    """The statistics of the Parquet file `root / path`, or of all below that folder as one table; None without any.

    A file is Parquet if its name says so. A column that a file lacks counts as null there. Up to `EXACT_ROWS` rows (and
    `EXACT_BYTES` of the column) all is exact; above, `distinct` is approximate, mostly within 10 %, and so are
    `quantiles`. The same files give the same result. Raises `StatisticsFailed`.
    """
    import duckdb
    import pyarrow

    root = root.absolute()
    try:
        files = parquet_files(root / path)
        return _describe(files) if files else None
    except (duckdb.Error, pyarrow.ArrowException, OSError, UnicodeError) as error:
        reason = _reason(error).replace(f"{root}{os.sep}", "")
        raise StatisticsFailed(f"no statistics of {path}: {reason}") from None


def kept(store: Path, md5: str, root: Path, path: str) -> Statistics | None:
    """What `describe` says of the version `md5` of `path`: computed once, then read from `<store>/<md5>.json`.

    Raises `StatisticsFailed`.
    """
    file = store / f"{md5}.json"
    with contextlib.suppress(OSError, ValueError):  # absent or damaged: computed anew
        return Statistics.from_dict(json.loads(file.read_bytes()))
    statistics = describe(root, path)
    if statistics:
        try:
            _write_whole(file, json.dumps(statistics.as_dict(), allow_nan=False).encode())
        except OSError as error:
            raise StatisticsFailed(f"cannot keep the statistics of {path} in {store}: {_reason(error)}") from None
    return statistics


def parquet_files(path: Path) -> list[Path]:
    """The Parquet file at this path, or all below this folder, in the order of their names."""
    found = path.rglob(f"*{SUFFIX}") if path.is_dir() else [path]
    return sorted(file for file in found if file.suffix == SUFFIX and file.is_file())


@dataclass(frozen=True)
class _Footers:
    """What the ends of the files say: the columns of all of them together, rows, and each column's bytes in memory."""

    schema: pyarrow.Schema
    rows: int
    widths: Mapping[str, int]


def _read_footers(files: Sequence[Path]) -> _Footers:
    import pyarrow

    schemas: list[pyarrow.Schema] = []
    rows, widths = 0, Counter[str]()
    for file in files:
        metadata = _metadata(file)
        rows += metadata.num_rows
        schema = metadata.schema.to_arrow_schema().remove_metadata()
        if schema not in schemas:
            schemas.append(schema)
        for group in range(metadata.num_row_groups):
            for position in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(position)
                widths[chunk.path_in_schema] += chunk.total_uncompressed_size
    unified = schemas[0] if len(schemas) == 1 else pyarrow.unify_schemas(schemas, promote_options="permissive")
    return _Footers(unified, rows, widths)


def _metadata(file: Path) -> pyarrow.parquet.FileMetaData:
    import pyarrow
    import pyarrow.parquet

    try:
        with open(file, "rb") as handle:
            return pyarrow.parquet.ParquetFile(handle).metadata
    except (pyarrow.ArrowException, OSError) as error:  # neither says which file
        raise pyarrow.ArrowInvalid(f"{file}: {_reason(error)}") from None


def _describe(files: Sequence[Path]) -> Statistics:
    footers = _read_footers(files)
    names = [pattern(file) for file in files]
    columns = []
    exactly = [footers.rows <= EXACT_ROWS and footers.widths[name] <= EXACT_BYTES for name in footers.schema.names]
    # An approximate quantile depends on the order in which rows come; what is exact does not.
    threads = os.cpu_count() or 1 if all(exactly) else 1
    with reading(files, _MEMORY, threads) as database:
        for position, (column, exact) in enumerate(zip(footers.schema, exactly, strict=True)):
            query = _query(position, len(footers.schema), column.type, exact)
            columns.append(_column(column, footers.rows, database.execute(query, [names]).fetchone() or ()))
    return Statistics(footers.rows, len(files), sum(file.stat().st_size for file in files), tuple(columns))


def _query(position: int, width: int, kind: pyarrow.DataType, exact: bool) -> str:
    """SQL for one of the `width` columns of the files, which is taken by its place.

    By name, DuckDB would not tell columns apart that differ in case alone.
    """
    place = f"c{position}"
    names = ", ".join(f"c{number}" for number in range(width))
    distinct = "count(DISTINCT value)" if exact else "approx_count_distinct(value)"
    quantiles = f"{'quantile_disc' if exact else 'approx_quantile'}(number, [{', '.join(QUANTILES)}])"
    return f"""
        SELECT count(*) - count(value), {"NULL" if _nested(kind) else distinct}, min(number), max(number), {quantiles}
        FROM (SELECT {_value(kind, place)} AS value, {_number(kind, place)} AS number
              FROM read_parquet(?, union_by_name = true, hive_partitioning = false, can_have_nan = true)
                   AS files({names}))
    """


def _nested(kind: pyarrow.DataType) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_nested(getattr(kind, "storage_type", kind)))


def _value(kind: pyarrow.DataType, place: str) -> str:
    import pyarrow

    return f"CASE WHEN NOT isnan({place}) THEN {place} END" if pyarrow.types.is_floating(kind) else place


def _number(kind: pyarrow.DataType, place: str) -> str:
    """SQL for what a column is worth on the scale of numbers; NULL where it is worth nothing, or is not finite."""
    import pyarrow

    types = pyarrow.types
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return f"CASE WHEN isfinite({place}::DOUBLE) THEN {place}::DOUBLE END"
    if types.is_date(kind) or types.is_timestamp(kind):
        return f"epoch({place})"
    return "NULL::DOUBLE"


def _column(column: pyarrow.Field, rows: int, found: Sequence[Any]) -> Column:
    nulls, distinct, low, high, quantiles = found
    if distinct is not None:
        distinct = min(distinct, rows - nulls)  # an approximate one may exceed what there is
    # Between the greatest numbers an approximate quantile may be infinite.
    finite = {name: value for name, value in zip(QUANTILES, quantiles or (), strict=False) if math.isfinite(value)}
    return Column(column.name, str(column.type), nulls, distinct, low, high, finite)


def _write_whole(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as partial:
        try:
            partial.write(content)
            partial.flush()
            os.replace(partial.name, file)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial.name)


def _reason(error: Exception) -> str:
    """The first line: DuckDB shows its SQL below."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error).partition("\n")[0]
