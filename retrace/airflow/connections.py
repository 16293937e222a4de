"""Airflow Connections as SQLAlchemy URLs. Passwords stay inside the URL object and are never printed."""

from __future__ import annotations

from pathlib import Path

from airflow.sdk import BaseHook, Connection
from sqlalchemy import URL

from retrace.config import ConfigError, IngestSettings
from retrace.ingest import Fetch
from retrace.intervals import Interval
from retrace.manifest import Partition

_DRIVERS = {"postgres": "postgresql+psycopg2", "postgresql": "postgresql+psycopg2", "mysql": "mysql+pymysql"}


class NoConnection(ConfigError):
    """Airflow has no Connection of that name."""


def source_url(connection_id: str) -> URL:
    """The SQLAlchemy URL of an Airflow Connection; `sqlalchemy_driver` in its extra overrides the driver.

    Raises `NoConnection`.
    """
    try:
        connection = BaseHook.get_connection(connection_id)
    except Exception as error:
        if "isn't defined" not in str(error) and "not found" not in str(error).lower():
            raise
        raise NoConnection(
            f"ingest.connection in params.yaml names {connection_id!r}, which Airflow does not have; "
            f"add it (airflow connections add {connection_id} ...) or set AIRFLOW_CONN_{connection_id.upper()}"
        ) from None
    return url_of(connection)


def url_of(connection: Connection) -> URL:
    """A Connection's parts as a URL. A SQLite file stands in `host`, as Airflow's SQLite hook has it."""
    kind = str(connection.conn_type)
    extra = connection.extra_dejson
    if kind == "sqlite":
        return URL.create("sqlite", database=connection.host or connection.schema)
    query = {key: str(value) for key, value in extra.items() if key in ("sslmode", "sslrootcert", "connect_timeout")}
    return URL.create(
        str(extra.get("sqlalchemy_driver") or _DRIVERS.get(kind, kind)),
        username=connection.login,
        password=connection.password,
        host=connection.host,
        port=connection.port,
        database=connection.schema,
        query=query,
    )


def fetcher() -> Fetch:
    """How ingestion gets a partition: the dataset's query through the Connection that params.yaml names."""
    from retrace.sources.sql import fetch_partition

    def fetch(settings: IngestSettings, name: str, interval: Interval, root: Path, path: str) -> Partition:
        url = source_url(settings.connection)
        return fetch_partition(url, settings.datasets[name], interval.start, interval.end, root, path)

    return fetch
