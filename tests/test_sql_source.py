"""Partitions from SQL, tried on SQLite; tests/integration/test_sql_postgres.py has the same with a real server."""

from __future__ import annotations

import hashlib
import resource
import socket
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import sqlalchemy

from retrace.config import DatasetSettings
from retrace.errors import RetraceError, TransientError
from retrace.manifest import Partition
from retrace.partition import PartitionWriteError, write_partition
from retrace.sources import sql, values
from retrace.sources.sql import (
    ColumnMismatch,
    EmptyInterval,
    QueryFailed,
    SourceRefused,
    SourceUnavailable,
    fetch_partition,
)
from retrace.sources.values import ValueMismatch

JUNE, JULY, AUGUST = (datetime(2013, month, 1, tzinfo=UTC) for month in (6, 7, 8))
QUERY = "SELECT id, name, at, delay, late FROM flights WHERE at >= :start AND at < :end"
FLIGHTS = DatasetSettings(
    name="flights",
    query=QUERY,
    key=("name", "id"),
    columns={"id": "integer", "name": "string", "at": "timestamp", "delay": "float", "late": "boolean"},
)
ROWS = [
    (3, "Ä", "2013-06-30 23:59:59", 1e22, 1),
    (1, "a", "2013-06-01 00:00:00", 0.1, 0),
    (2, "B", "2013-06-15 12:00:00", -3.0, None),
    (2, "", "2013-06-15 12:00:00", None, 1),
    (4, None, "2013-06-15T12:00:00.000001+02:00", 2, 1),
    (5, "july", "2013-07-01 00:00:00", 0.0, 0),
]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "source.db", isolation_level=None)
    connection.execute("CREATE TABLE flights (id INTEGER, name TEXT, at TEXT, delay REAL, late BOOLEAN)")
    connection.executemany("INSERT INTO flights VALUES (?, ?, ?, ?, ?)", ROWS)
    yield connection
    connection.close()


@pytest.fixture
def url(tmp_path: Path, database: sqlite3.Connection) -> sqlalchemy.URL:
    return sqlalchemy.URL.create("sqlite", database=str(tmp_path / "source.db"))


def fetch(url: sqlalchemy.URL, root: Path, dataset: DatasetSettings = FLIGHTS, start: datetime = JUNE) -> Partition:
    return fetch_partition(url, dataset, start, JULY if start == JUNE else AUGUST, root, "data/raw/flights/x.parquet")


def declared(**changes: Any) -> DatasetSettings:
    return DatasetSettings.model_validate({**FLIGHTS.model_dump(), **changes})


def read(root: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pyarrow.parquet.read_table(root / "data/raw/flights/x.parquet").to_pylist()
    return rows


def test_rows_have_the_declared_types_and_a_fixed_order(url: sqlalchemy.URL, tmp_path: Path) -> None:
    partition = fetch(url, tmp_path)
    noon = datetime(2013, 6, 15, 12)
    assert read(tmp_path) == [
        {"id": 2, "name": "", "at": noon, "delay": None, "late": True},
        {"id": 2, "name": "B", "at": noon, "delay": -3.0, "late": None},
        {"id": 1, "name": "a", "at": datetime(2013, 6, 1), "delay": 0.1, "late": False},
        {"id": 3, "name": "Ä", "at": datetime(2013, 6, 30, 23, 59, 59), "delay": 1e22, "late": True},
        {"id": 4, "name": None, "at": noon - timedelta(hours=2, microseconds=-1), "delay": 2.0, "late": True},
    ]
    content = (tmp_path / partition.path).read_bytes()
    assert partition == Partition(
        "data/raw/flights/x.parquet", hashlib.md5(content).hexdigest(), hashlib.sha256(content).hexdigest(), 5
    )
    assert [file.name for file in (tmp_path / "data/raw/flights").iterdir()] == ["x.parquet"]
    assert pyarrow.parquet.read_schema(tmp_path / partition.path).metadata is None


def test_bytes_depend_neither_on_chunks_nor_on_the_order_of_rows_and_columns(
    url: sqlalchemy.URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fetch(url, tmp_path)
    monkeypatch.setattr(sql, "CHUNK_ROWS", 2)
    assert fetch(url, tmp_path) == whole
    query = f"SELECT late, delay, at, name, id FROM ({QUERY}) ORDER BY delay DESC"
    assert fetch(url, tmp_path, declared(query=query)) == whole


def test_rows_are_read_in_chunks(url: sqlalchemy.URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def record_batch(dataset: DatasetSettings, names: list[str], rows: list[tuple[object, ...]]) -> pyarrow.RecordBatch:
        sizes.append(len(rows))
        return values.record_batch(dataset, names, rows)

    monkeypatch.setattr(sql, "record_batch", record_batch)
    monkeypatch.setattr(sql, "CHUNK_ROWS", 2)
    fetch(url, tmp_path)
    assert sizes == [2, 2, 1]


def test_bounds_are_utc(url: sqlalchemy.URL, tmp_path: Path) -> None:
    east = timezone(timedelta(hours=2))
    start, end = JUNE.astimezone(east), JULY.astimezone(east)
    eastern = fetch_partition(url, FLIGHTS, start, end, tmp_path, "data/raw/flights/x.parquet")
    assert eastern == fetch(url, tmp_path)


def test_what_sqlite_cannot_tell_apart_is_the_same(
    url: sqlalchemy.URL, database: sqlite3.Connection, tmp_path: Path
) -> None:
    """Zero has no sign, a whole number in a column without a type is a float all the same."""
    whole = fetch(url, tmp_path)
    database.execute("CREATE TABLE loose (id, name, at, delay, late)")
    database.execute("INSERT INTO loose SELECT id * 1.0, name, at, delay, late * 1.0 FROM flights")
    assert fetch(url, tmp_path, declared(query=QUERY.replace("flights", "loose"))) == whole
    database.execute("UPDATE flights SET delay = 0.0")
    zero = fetch(url, tmp_path)
    database.execute("UPDATE loose SET delay = -0.0")
    assert fetch(url, tmp_path, declared(query=QUERY.replace("flights", "loose"))) == zero


def test_empty_interval(url: sqlalchemy.URL, database: sqlite3.Connection, tmp_path: Path) -> None:
    database.execute("DELETE FROM flights WHERE id = 5")
    with pytest.raises(
        EmptyInterval, match=r"^dataset flights has no rows from 2013-07-01 00:00:00 to 2013-08-01"
    ) as e:
        fetch(url, tmp_path, start=JULY)
    assert "ingest again when the data has arrived" in str(e.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("column", "kind", "value", "example"),
    [
        ("id", "integer", 1.5, "1.5"),
        ("id", "integer", "many", "'many'"),
        ("id", "integer", float("inf"), "inf"),
        ("id", "string", 7, "7"),
        ("delay", "float", "NA", "'NA'"),
        ("delay", "integer", 1e22, "1e+22"),
        ("late", "boolean", 2, "2"),
        ("late", "boolean", "true", "'true'"),
        ("at", "float", None, "'2013-06-01 00:00:00'"),
        ("name", "timestamp", "", "''"),
        ("name", "timestamp", "x" * 100, "'" + "x" * 59 + "..."),
    ],
)
def test_a_value_that_does_not_fit_names_column_and_example(
    url: sqlalchemy.URL,
    database: sqlite3.Connection,
    tmp_path: Path,
    column: str,
    kind: str,
    value: object,
    example: str,
) -> None:
    database.execute("DELETE FROM flights WHERE id <> 1")
    if value is not None:
        database.execute(f"UPDATE flights SET {column} = ?", (value,))
    dataset = declared(columns={**FLIGHTS.columns, column: kind})
    with pytest.raises(ValueMismatch) as error:
        fetch(url, tmp_path, dataset)
    assert str(error.value).startswith(
        f"dataset flights: column {column} is declared {kind}, but the source gave {example}; correct "
    )
    assert not (tmp_path / "data").exists()


def test_missing_and_undeclared_columns_are_named(url: sqlalchemy.URL, tmp_path: Path) -> None:
    columns = {"id": "integer", "name": "string", "at": "timestamp", "tail": "string"}
    with pytest.raises(ColumnMismatch, match="lacks tail; has undeclared delay, late; make ingest"):
        fetch(url, tmp_path, declared(columns=columns))
    with pytest.raises(ColumnMismatch, match="has twice id"):
        fetch(url, tmp_path, declared(query=QUERY.replace("SELECT", "SELECT id,")))


def test_whoever_keeps_the_error_does_not_keep_the_source_locked(
    url: sqlalchemy.URL, database: sqlite3.Connection, tmp_path: Path
) -> None:
    with pytest.raises(ColumnMismatch) as error:
        fetch(url, tmp_path, declared(columns={"id": "integer", "name": "string", "at": "timestamp"}))
    database.execute("BEGIN EXCLUSIVE")
    database.execute("ROLLBACK")
    assert error.traceback


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (QUERY.replace("flights", "trains"), "no such table: trains"),
        (QUERY.replace("late FROM", "lat FROM"), "no such column: lat"),
        ("SELEC :start, :end", 'near "SELEC": syntax error'),
        (f"{QUERY} AND id > :other", "A value is required for bind parameter 'other'"),
        ("UPDATE flights SET name = :start || :end", "readonly database"),
        ("CREATE TABLE made AS SELECT :start, :end", "readonly database"),
    ],
)
def test_a_wrong_query_is_not_tried_again(url: sqlalchemy.URL, tmp_path: Path, query: str, reason: str) -> None:
    with pytest.raises(QueryFailed) as error:
        fetch(url, tmp_path, declared(query=query))
    assert reason in str(error.value)
    assert "correct ingest.datasets.flights.query in params.yaml" in str(error.value)
    assert "\n" not in str(error.value)
    assert not isinstance(error.value, TransientError)


def test_a_missing_sqlite_file_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match=r"the file .*none\.db does not exist"):
        fetch(sqlalchemy.URL.create("sqlite", database=str(tmp_path / "none.db")), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database at all, but long enough to look like one\n" * 50)
    with pytest.raises(QueryFailed, match="file is not a database"):
        fetch(sqlalchemy.URL.create("sqlite", database=str(tmp_path / "text.db")), tmp_path)


def test_an_odd_file_name_is_that_file(url: sqlalchemy.URL, tmp_path: Path) -> None:
    odd = tmp_path / "ä b?mode=memory#%41.db"
    (tmp_path / "source.db").rename(odd)
    assert fetch(sqlalchemy.URL.create("sqlite", database=str(odd)), tmp_path).rows == 5


def test_a_locked_database_is_tried_again(url: sqlalchemy.URL, database: sqlite3.Connection, tmp_path: Path) -> None:
    database.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SourceUnavailable, match="database is locked"):
        fetch(url.update_query_dict({"timeout": "0.1"}), tmp_path)


@pytest.mark.parametrize("driver", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_a_source_that_is_down_is_tried_again_and_keeps_its_password(tmp_path: Path, driver: str) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = sqlalchemy.URL.create(driver, "reader", "top secret", "127.0.0.1", unheard.getsockname()[1], "shop")
        with pytest.raises(SourceUnavailable) as error:
            fetch(url, tmp_path)
    assert "reader:***@127.0.0.1" in str(error.value)
    assert "Connection refused" in str(error.value)
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None


def test_a_source_that_never_answers_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = sqlalchemy.URL.create("postgresql", "reader", "secret", "127.0.0.1", silent.getsockname()[1], "shop")
        with pytest.raises(SourceUnavailable, match="timeout expired"):
            fetch(url, tmp_path)


@pytest.mark.parametrize("driver", ["nosuchdatabase", "postgresql+pg8000"])
def test_a_driver_that_is_not_installed(tmp_path: Path, driver: str) -> None:
    with pytest.raises(SourceRefused, match=r"no driver for .*; install its package"):
        fetch(sqlalchemy.URL.create(driver, "reader", "secret", "127.0.0.1"), tmp_path)


def test_a_full_disk_leaves_what_was_there(url: sqlalchemy.URL, tmp_path: Path) -> None:
    before = fetch(url, tmp_path)
    content = (tmp_path / before.path).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(PartitionWriteError, match=r"cannot write .*x\.parquet: File too large"):
            fetch(url, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / before.path).read_bytes() == content
    assert [file.name for file in (tmp_path / "data/raw/flights").iterdir()] == ["x.parquet"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    table = pyarrow.table({"id": [1]})
    with pytest.raises(PartitionWriteError, match="cannot write"):
        write_partition(table, ("id",), tmp_path, "data/x.parquet")


def test_every_error_is_one_for_users() -> None:
    for error in (ColumnMismatch, EmptyInterval, QueryFailed, SourceRefused, ValueMismatch, PartitionWriteError):
        assert issubclass(error, RetraceError)
        assert not issubclass(error, TransientError)
    assert issubclass(SourceUnavailable, TransientError)
