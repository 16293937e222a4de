"""One file of a raw dataset: Parquet whose bytes depend on the rows and the schema alone, and the hashes of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from retrace.config import DatasetSettings
from retrace.errors import RetraceError
from retrace.hashing import hash_file
from retrace.manifest import Partition

ROW_GROUP_ROWS = 128 * 1024

ARROW_TYPES = {
    "string": pyarrow.string(),
    "integer": pyarrow.int64(),
    "float": pyarrow.float64(),
    "boolean": pyarrow.bool_(),
    "timestamp": pyarrow.timestamp("us"),
}


class PartitionWriteError(RetraceError):
    """A partition could not be written: disk full, no permission."""


def arrow_schema(dataset: DatasetSettings) -> pyarrow.Schema:
    """The schema of every partition of a dataset: the declared columns in the declared order."""
    return pyarrow.schema([(name, ARROW_TYPES[kind]) for name, kind in dataset.columns.items()])


def write_partition(table: pyarrow.Table, key: tuple[str, ...], root: Path, path: str) -> Partition:
    """Sort the rows and write them to `root / path`, which is replaced whole or left as it was."""
    target = root / path
    partial = target.with_name(f".{target.name}.partial")
    table = _sorted(table, key)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_parquet(table, partial)
        hashed = hash_file(partial)
        partial.replace(target)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise PartitionWriteError(f"cannot write {target}: {reason}; what was there is unchanged") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return Partition(path, hashed.md5, hashed.sha256, table.num_rows)


def _sorted(table: pyarrow.Table, key: tuple[str, ...]) -> pyarrow.Table:
    """Order rows by key, then by the rest: Arrow compares text by its UTF-8 bytes and puts nulls last everywhere."""
    # One chunk per column: sorting is slow across chunks, and the file must not show how the rows were fetched.
    table = table.combine_chunks()
    order = [*key, *(name for name in table.column_names if name not in key)]
    indices = pyarrow.compute.sort_indices(table, sort_keys=[(name, "ascending", "at_end") for name in order])
    return table.take(indices).combine_chunks()


def _write_parquet(table: pyarrow.Table, path: Path) -> None:
    """Every option that shapes the bytes is stated, so that a new default cannot change them."""
    pyarrow.parquet.write_table(
        table,
        path,
        row_group_size=ROW_GROUP_ROWS,
        version="2.6",
        data_page_version="1.0",
        data_page_size=1024 * 1024,
        use_dictionary=True,
        write_statistics=True,
        compression="zstd",
        compression_level=3,
        store_schema=False,
    )
