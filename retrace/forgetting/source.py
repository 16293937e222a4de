"""How the source is reached outside of a task: by the very Connection that ingestion uses, found as late as it can."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from retrace.config import IngestSettings, Params, Settings
from retrace.ingest import Fetch
from retrace.intervals import Interval
from retrace.manifest import Partition

if TYPE_CHECKING:
    from sqlalchemy import URL

_DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"


def source(settings: Settings, params: Params) -> Fetch:
    """How to get a partition from the source; Airflow is asked for its address when the first one is wanted."""
    url = cache(lambda connection: _url(settings, params, connection))

    def fetch(ingest: IngestSettings, name: str, interval: Interval, root: Path, path: str) -> Partition:
        from retrace.sources.sql import fetch_partition

        return fetch_partition(url(ingest.connection), ingest.datasets[name], interval.start, interval.end, root, path)

    return fetch


def _url(settings: Settings, params: Params, connection: str) -> URL:
    """The address of a Connection: from the environment, a secrets backend or Airflow's database. Raises
    `NoConnection`."""
    from retrace.airflow.embedded import embedded_database, environment, keys
    from retrace.airflow.inprocess import quiet
    from retrace.console import embedded_environment

    embedded_environment(settings, params)
    embedded = embedded_database(settings.var).exists()
    held = embedded or any(os.environ.get(_DATABASE + suffix) for suffix in ("", "_CMD", "_SECRET"))
    more = keys(settings.var) if embedded else None
    os.environ.update(environment(settings.var, settings.root / "dags", os.environ, None, more))
    if held:  # outside of a task Airflow looks into its database only when this says that it is a server
        os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
    with quiet(settings.logs / "airflow.log"):
        from retrace.airflow.connections import source_url

        return source_url(connection)
