"""A DuckDB connection in memory that reads the given files and nothing else, and that no statement gives more rights.

No network, no extension, no temporary file, no variable of this process taken for a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@contextmanager
def reading(files: Iterable[Path], memory: str, threads: int | None = None) -> Iterator[DuckDBPyConnection]:
    """Connect for as long as the block lasts; by default DuckDB takes all cores."""
    import duckdb

    options: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory,
        "temp_directory": "",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "python_enable_replacements": False,
    }
    options |= {"threads": threads} if threads is not None else {}
    allowed = sorted({name for file in files for name in (str(file), pattern(file))})
    with duckdb.connect(":memory:", config=options) as connection:
        connection.execute("SET enable_progress_bar = false")  # it would go to standard output after two seconds
        connection.execute("SET allowed_paths = ?", [allowed])
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield connection


def pattern(file: Path) -> str:
    """DuckDB takes a name for a pattern; this one fits this file alone."""
    return re.sub(r"[*?[]", r"[\g<0>]", str(file))
