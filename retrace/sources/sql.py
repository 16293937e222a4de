"""One interval of a dataset from any database that SQLAlchemy speaks to, written as a partition.

The source is only read, in one query and in chunks, so that memory is bounded by one partition. Whatever goes wrong
is one sentence without the password: `SourceUnavailable` is worth a retry, everything else needs a person.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, quote_plus

import pyarrow
import sqlalchemy
import sqlalchemy.exc
import sqlalchemy.pool

from retrace.config import DatasetSettings
from retrace.errors import RetraceError, TransientError
from retrace.manifest import Partition
from retrace.partition import arrow_schema, write_partition
from retrace.sources.values import record_batch

CHUNK_ROWS = 20_000
CONNECT_SECONDS = 5
SILENCE_SECONDS = 600.0

# SQLAlchemy 2.1 would take drivers that are not installed here for these names, or does not know them.
_DRIVERS = {"postgres": "postgresql+psycopg2", "postgresql": "postgresql+psycopg2"}
_CONNECT_TIMEOUT_ARGUMENTS = {
    "psycopg2": "connect_timeout",
    "psycopg": "connect_timeout",
    "pymysql": "connect_timeout",
    "mysqldb": "connect_timeout",
    "mysqlconnector": "connection_timeout",
}
# The interval's bounds are UTC, floats must keep every digit, and nobody's source is ever written to.
_SESSION = {
    "postgresql": ("SET TRANSACTION READ ONLY", "SET TIME ZONE 'UTC'", "SET extra_float_digits = 1"),
    "sqlite": ("PRAGMA query_only = ON",),
}
_SQLITE_TRANSIENT = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR})
# libpq gives no error code for a refused connection, only text.
_REFUSALS = ("authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry", "denied")


class SourceUnavailable(TransientError):
    """The source is down, hangs or is busy."""


class SourceRefused(RetraceError):
    """The source answers, but not to us: wrong password or database, no such file, no driver."""


class QueryFailed(RetraceError):
    """The source refused the query: a missing table, a syntax error."""


class ColumnMismatch(RetraceError):
    """The result lacks a declared column, or has one that is not declared."""


class EmptyInterval(RetraceError):
    """The source has no rows in the interval."""


def fetch_partition(
    url: sqlalchemy.URL,
    dataset: DatasetSettings,
    start: datetime,
    end: datetime,
    root: Path,
    path: str,
    *,
    silence_seconds: float = SILENCE_SECONDS,
) -> Partition:
    """Write the rows of [start, end) to `root / path`.

    A server that sends nothing for `silence_seconds` counts as unavailable.
    """
    source = _Source(url, dataset, (_text(start), _text(end)))
    return write_partition(source.read(silence_seconds), dataset.key, root, path)


def _text(moment: datetime) -> str:
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return moment.isoformat(sep=" ", timespec="seconds")


class _Source:
    """One query of one dataset: the connection, the rows, and what to say when either fails."""

    def __init__(self, url: sqlalchemy.URL, dataset: DatasetSettings, interval: tuple[str, str]) -> None:
        self.url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
        self.dataset = dataset
        self.interval = interval
        self.name = self.url.set(query={}).render_as_string(hide_password=True)

    def read(self, silence_seconds: float) -> pyarrow.Table:
        """All rows of the interval, with the declared schema, in the order in which they came."""
        connection = self._connect()
        with _Patience(connection, silence_seconds) as patience, self._explained(patience), connection:
            for setting in _SESSION.get(self.url.get_backend_name(), ()):
                connection.exec_driver_sql(setting)
            statement = sqlalchemy.text(self.dataset.query)
            bounds = dict(zip(("start", "end"), self.interval, strict=True))
            with self._in_range():
                result = connection.execution_options(yield_per=CHUNK_ROWS).execute(statement, bounds)
            with result:  # a cursor left open would keep SQLite's lock for as long as an error's traceback holds it
                names = list(result.keys())
                self._check_columns(names)
                batches = []
                for rows in self._chunks(result):
                    patience.renew()
                    batches.append(record_batch(self.dataset, names, rows))
        if not batches:
            raise self._empty()
        return pyarrow.Table.from_batches(batches, arrow_schema(self.dataset))

    def _chunks(self, result: sqlalchemy.CursorResult[Any]) -> Iterator[Sequence[sqlalchemy.Row[Any]]]:
        # The size is said again: without it SQLAlchemy 2.1 makes chunks of one row, `yield_per` or not.
        chunks = result.partitions(CHUNK_ROWS)
        while True:
            with self._in_range():
                rows = next(chunks, None)
            if rows is None:
                return
            yield rows

    def _connect(self) -> sqlalchemy.Connection:
        url, arguments = self.url, {}
        if url.get_backend_name() == "sqlite":
            url = self._existing_file()
        try:
            timeout = _CONNECT_TIMEOUT_ARGUMENTS.get(url.get_driver_name())
            if timeout and timeout not in url.query:
                arguments[timeout] = CONNECT_SECONDS
            engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool, connect_args=arguments)
            return engine.connect()
        except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
            raise SourceRefused(
                f"source {self.name}: no driver for {url.drivername} ({self._clean(error)}); install its package"
            ) from None
        except sqlalchemy.exc.DBAPIError as error:
            detail = self._clean(error.orig)
            if _is_transient(error) and not any(refusal in detail for refusal in _REFUSALS):
                raise self._unavailable(detail) from None
            raise SourceRefused(
                f"source {self.name} refuses the connection: {detail}; correct the Airflow Connection"
            ) from None

    def _existing_file(self) -> sqlalchemy.URL:
        """The URL of the SQLite file that cannot create it: connecting would, and the query would find no table."""
        file = self.url.database or ":memory:"
        if file == ":memory:" or file.startswith("file:"):
            return self.url
        if not Path(file).is_file():
            raise SourceRefused(
                f"source {self.name}: the file {file} does not exist; create it or correct the Airflow Connection"
            )
        location = f"file:{quote(str(Path(file).absolute()))}"
        return self.url.set(database=location, query={**self.url.query, "mode": "rw", "uri": "true"})

    @contextmanager
    def _explained(self, patience: _Patience) -> Iterator[None]:
        try:
            yield
        except sqlalchemy.exc.DBAPIError as error:
            detail = patience.complaint or self._clean(error.orig)
            raise (self._unavailable(detail) if _is_transient(error) else self._failed(detail)) from None
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise self._failed(self._clean(error)) from None

    @contextmanager
    def _in_range(self) -> Iterator[None]:
        """Drivers make Python's values, which have narrower bounds: no year before 1 or after 9999."""
        try:
            yield
        except (ValueError, OverflowError) as error:
            raise self._failed(f"a value is out of Python's range ({self._clean(error)})") from None

    def _unavailable(self, detail: str) -> SourceUnavailable:
        return SourceUnavailable(
            f"source {self.name} is not available: {detail}; start it or correct the Airflow Connection, then try again"
        )

    def _failed(self, detail: str) -> QueryFailed:
        return QueryFailed(
            f"dataset {self.dataset.name}: the query failed at {self.name}: {detail}; correct "
            f"ingest.datasets.{self.dataset.name}.query in params.yaml, or the source"
        )

    def _empty(self) -> EmptyInterval:
        start, end = self.interval
        return EmptyInterval(
            f"dataset {self.dataset.name} has no rows from {start} to {end} in {self.name}; ingest again when the data "
            f"has arrived, or correct ingest.start or ingest.datasets.{self.dataset.name}.query in params.yaml"
        )

    def _check_columns(self, names: list[str]) -> None:
        declared = self.dataset.columns
        problems = {
            "lacks": [name for name in declared if name not in names],
            "has undeclared": [name for name in names if name not in declared],
            "has twice": sorted({name for name in names if names.count(name) > 1}),
        }
        found = "; ".join(f"{what} {', '.join(columns)}" for what, columns in problems.items() if columns)
        if found:
            where = f"ingest.datasets.{self.dataset.name}"
            raise ColumnMismatch(
                f"dataset {self.dataset.name}: the query's result {found}; "
                f"make {where}.query and {where}.columns in params.yaml agree"
            )

    def _clean(self, error: BaseException | None) -> str:
        """The first line of a driver's message, without the password in either spelling."""
        line = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
        for secret in (self.url.password, self.url.query.get("password")):
            if secret:
                for spelling in (str(secret), quote(str(secret), safe=""), quote_plus(str(secret))):
                    line = line.replace(spelling, "***")
        return line


def _is_transient(error: sqlalchemy.exc.DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.Error):
        # sqlite3 calls a missing table an operational error too; only its code tells them apart.
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _SQLITE_TRANSIENT
    operational = isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError)
    return operational or error.connection_invalidated


class _Patience:
    """Cuts a connection whose server has been silent for too long: a driver would wait for ever on one that hangs."""

    def __init__(self, connection: sqlalchemy.Connection, seconds: float) -> None:
        self.complaint: str | None = None
        self._seconds = seconds
        driver: Any = connection.connection.dbapi_connection
        # A duplicate, so that a descriptor that was closed and given to another file is never cut.
        self._socket = socket.socket(fileno=os.dup(driver.fileno())) if hasattr(driver, "fileno") else None
        self._timer = self._start()

    def _start(self) -> threading.Timer:
        timer = threading.Timer(self._seconds, self._cut)
        timer.daemon = True
        if self._socket is not None:
            timer.start()
        return timer

    def _cut(self) -> None:
        if self._socket is not None:
            self.complaint = f"nothing came for {self._seconds:g} s"
            with suppress(OSError):  # it may have ended by itself meanwhile
                self._socket.shutdown(socket.SHUT_RDWR)

    def renew(self) -> None:
        self._timer.cancel()
        self._timer = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._socket is not None:
            if self._timer.is_alive():
                self._timer.join()
            self._socket.close()
