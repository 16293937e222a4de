"""Partitions from a real PostgreSQL: the bytes that SQLite gives, and clear errors when the server plays foul."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy
from servers import PostgresServer

from retrace.config import DatasetSettings
from retrace.manifest import Partition
from retrace.sources.sql import QueryFailed, SourceRefused, SourceUnavailable, fetch_partition

START, END = datetime(2013, 6, 1, tzinfo=UTC), datetime(2013, 7, 1, tzinfo=UTC)
PATH = "data/raw/tricky/2013-06.parquet"
TRICKY = DatasetSettings(
    name="tricky",
    query="SELECT * FROM tricky WHERE at >= :start AND at < :end AND text NOT LIKE '100%' ORDER BY text",
    key=("text", "number"),
    columns={
        "number": "integer",
        "big": "integer",
        "real": "float",
        "exact": "float",
        "text": "string",
        "yes": "boolean",
        "at": "timestamp",
        "zoned": "timestamp",
        "day": "timestamp",
    },
)
TEXTS = [
    "a",
    "A",
    "b",
    "B",
    "Z",
    "z",
    "ä",
    "Ä",
    "a\u0308",
    "ö",
    "é",
    "ß",
    "ss",
    "",
    " ",
    "-a",
    "_",
    "10",
    "9",
    "\U0001f6eb",
    "日",
    "O'Neil",
    "x\ny",
]
FLOATS = [
    1e22,
    0.1,
    -0.0,
    3.0,
    1 / 3,
    5e-324,
    1.7976931348623157e308,
    float("inf"),
    float("nan"),
    None,
    123456789.123456789,
]
SQLITE_TYPES = (
    "number INTEGER, big BIGINT, real REAL, exact NUMERIC, text TEXT, yes BOOLEAN, at TEXT, zoned TEXT, day TEXT"
)
POSTGRES_TYPES = (
    "number SMALLINT, big NUMERIC, real DOUBLE PRECISION, exact NUMERIC(12, 3), text TEXT, yes BOOLEAN, "
    "at TIMESTAMP, zoned TIMESTAMPTZ, day DATE"
)


def tricky_rows() -> Iterator[dict[str, object]]:
    for number, text in enumerate(TEXTS * 2):
        yield {
            "number": number % 30,
            "big": 2**63 - 1 - number,
            "real": FLOATS[number % len(FLOATS)],
            "exact": number / 8,
            "text": text,
            "yes": (True, False, None)[number % 3],
            "at": f"2013-06-{number % 30 + 1:02} 12:34:56.{number:06}",
            "zoned": f"2013-06-15 23:30:00+0{number % 3}:00" if number % 4 else None,
            "day": f"2013-06-{number % 30 + 1:02}",
        }


def fill(url: sqlalchemy.URL, types: str) -> None:
    engine = sqlalchemy.create_engine(url)
    columns = list(TRICKY.columns)
    insert = f"INSERT INTO tricky ({', '.join(columns)}) VALUES ({', '.join(':' + name for name in columns)})"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE tricky ({types})")
        connection.execute(sqlalchemy.text(insert), list(tricky_rows()))
    engine.dispose()


def fetch(url: sqlalchemy.URL, root: Path, query: str = TRICKY.query, silence_seconds: float = 60) -> Partition:
    dataset = TRICKY.model_copy(update={"query": query})
    return fetch_partition(url, dataset, START, END, root, PATH, silence_seconds=silence_seconds)


@pytest.fixture
def source(postgres: PostgresServer, database: sqlalchemy.URL) -> sqlalchemy.URL:
    """The tricky rows in a database whose settings are as far from Python's as the server can have them."""
    for setting in ("timezone = 'America/New_York'", "datestyle = 'German'", "extra_float_digits = 0"):
        postgres.execute(f'ALTER DATABASE "{database.database}" SET {setting}')
    postgres.execute("CREATE SEQUENCE counter", database.database or "")
    fill(database, POSTGRES_TYPES)
    return database


def test_postgres_and_sqlite_give_the_same_bytes(source: sqlalchemy.URL, tmp_path: Path) -> None:
    sqlite = sqlalchemy.URL.create("sqlite", database=str(tmp_path / "source.db"))
    fill(sqlite, SQLITE_TYPES)
    from_postgres = fetch(source, tmp_path / "postgres")
    assert from_postgres == fetch(sqlite, tmp_path / "sqlite")
    assert from_postgres.rows == len(TEXTS) * 2
    assert (tmp_path / "postgres" / PATH).read_bytes() == (tmp_path / "sqlite" / PATH).read_bytes()


def test_the_collation_of_the_database_does_not_matter(
    postgres: PostgresServer, source: sqlalchemy.URL, tmp_path: Path
) -> None:
    engine = sqlalchemy.create_engine(postgres.url())
    with engine.connect() as connection:
        icu = connection.exec_driver_sql("SELECT count(*) FROM pg_collation WHERE collname = 'de-x-icu'").scalar_one()
    engine.dispose()
    if not icu:
        pytest.skip("this PostgreSQL has no collation but byte order")
    german = postgres.create_database(
        f"{source.database}_german", "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'de-DE' LOCALE 'C'"
    )
    try:
        fill(german, POSTGRES_TYPES)
        assert fetch(german, tmp_path) == fetch(source, tmp_path)
    finally:
        postgres.drop_database(german.database or "")


def test_a_large_interval_arrives_in_chunks(source: sqlalchemy.URL, tmp_path: Path) -> None:
    many = TRICKY.query.replace("FROM tricky", "FROM tricky CROSS JOIN generate_series(1, 1000)").replace(
        "*", ", ".join(TRICKY.columns)
    )
    assert fetch(source, tmp_path, many).rows == len(TEXTS) * 2 * 1000


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (TRICKY.query.replace("tricky", "nothing"), 'relation "nothing" does not exist'),
        (TRICKY.query.replace("*", "colour"), 'column "colour" does not exist'),
        (TRICKY.query.replace("SELECT", "SELEC"), "syntax error"),
        (TRICKY.query.replace("*", "timestamp '20000-01-01'"), "out of Python's range (year 20000 is out of range)"),
        (TRICKY.query.replace("*", "nextval('counter')"), "cannot execute nextval() in a read-only transaction"),
    ],
)
def test_a_wrong_query_is_not_tried_again(source: sqlalchemy.URL, tmp_path: Path, query: str, reason: str) -> None:
    with pytest.raises(QueryFailed) as error:
        fetch(source, tmp_path, query)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["password", "username", "database"])
def test_a_refused_connection_is_not_tried_again(source: sqlalchemy.URL, tmp_path: Path, part: str) -> None:
    stranger = {
        "password": source.set(password="stranger"),
        "username": source.set(username="stranger"),
        "database": source.set(database="stranger"),
    }
    with pytest.raises(SourceRefused, match=r"refuses the connection: .*; correct the Airflow Connection") as error:
        fetch(stranger[part], tmp_path)
    assert ("stranger" in str(error.value)) == (part != "password")
    assert str(source.password) not in str(error.value)


def test_a_server_that_is_down_is_tried_again(postgres: PostgresServer, source: sqlalchemy.URL, tmp_path: Path) -> None:
    with postgres.outage(), pytest.raises(SourceUnavailable, match="Connection refused") as error:
        fetch(source, tmp_path)
    assert str(source.password) not in str(error.value)
    assert fetch(source, tmp_path).rows == len(TEXTS) * 2


def test_a_connection_that_is_cut_during_the_query_is_tried_again(source: sqlalchemy.URL, tmp_path: Path) -> None:
    cut = TRICKY.query.replace("AND text", "AND pg_terminate_backend(pg_backend_pid()) AND text")
    with pytest.raises(SourceUnavailable, match=r"closed the connection unexpectedly|terminating connection"):
        fetch(source, tmp_path, cut)


def test_a_server_that_freezes_is_given_up(postgres: PostgresServer, source: sqlalchemy.URL, tmp_path: Path) -> None:
    started = time.monotonic()
    with postgres.hanging(), pytest.raises(SourceUnavailable, match="timeout expired"):
        fetch(source, tmp_path)
    assert time.monotonic() - started < 30


def test_a_query_that_stays_silent_is_given_up(source: sqlalchemy.URL, tmp_path: Path) -> None:
    sleepy = TRICKY.query.replace("AND text", "AND pg_sleep(60) IS NOT NULL AND text")
    started = time.monotonic()
    with pytest.raises(SourceUnavailable, match="nothing came for 1 s"):
        fetch(source, tmp_path, sleepy, silence_seconds=1)
    assert time.monotonic() - started < 30
    assert list(tmp_path.iterdir()) == []
