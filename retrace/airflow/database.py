"""Airflow's metadata database: migrated once, with the pool that bounds heavy stages.

Run as a program, in an Airflow environment, it migrates that environment's database; Airflow reads its configuration
while it is imported, so a process that is to use another database cannot do this itself.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from retrace.airflow.embedded import airflow_home, embedded_database, environment, keys, lineage_file, sqlite_url
from retrace.errors import RetraceError
from retrace.git import locked

STAGES_POOL = "retrace_stages"
_SLOTS = "RETRACE_STAGE_SLOTS"
_DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"


def database_log(var: Path) -> Path:
    """Where setting the database up is logged."""
    return var / "logs" / "airflow-database.log"


class DatabaseFailed(RetraceError):
    """Airflow's metadata database could not be set up."""


def prepare_embedded(var: Path, slots: int) -> Path:
    """The embedded SQLite database, made or migrated to this Airflow if need be; costs nothing the second time.

    A new one is made beside its place and moved there whole, so that a kill half-way leaves none.
    """
    database = embedded_database(var)
    for folder in (airflow_home(var), lineage_file(var).parent):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(database.with_suffix(".lock")):
        marker = database.with_suffix(".json")
        if not _is_current(database, marker):
            fresh = not database.exists()
            target = database.with_suffix(".new") if fresh else database
            if fresh:
                target.unlink(missing_ok=True)
            migrate(environment(var, var, os.environ, sqlite_url(target), keys(var)), slots, database_log(var))
            if fresh:
                target.replace(database)
            marker.write_text(json.dumps(_state(database)))
    return database


def migrate(environ: Mapping[str, str], slots: int, log: Path) -> None:
    """Migrate the metadata database of an Airflow environment, in a process of its own. Raises `DatabaseFailed`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        ended = subprocess.run(
            [sys.executable, "-m", "retrace.airflow.database"],
            env={**environ, _SLOTS: str(slots), "PYTHONPATH": _python_path(environ)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    if ended.returncode:
        raise DatabaseFailed(
            f"Airflow's metadata database could not be set up; see the end of {log}, and check {_DATABASE} if it is set"
        )


def _python_path(environ: Mapping[str, str]) -> str:
    package = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, [package, environ.get("PYTHONPATH")]))


def _state(database: Path) -> dict[str, str]:
    """What a migrated database and its Airflow are called: equal states need no migration."""
    with closing(sqlite3.connect(database)) as connection:
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return {"airflow": version("apache-airflow-core"), "revision": str(revision)}


def _is_current(database: Path, marker: Path) -> bool:
    return database.exists() and marker.exists() and json.loads(marker.read_text()) == _state(database)


def _main() -> None:
    from airflow.models.pool import Pool
    from airflow.utils.db import initdb
    from airflow.utils.session import create_session

    initdb()
    with create_session() as session:
        if Pool.get_pool(STAGES_POOL, session=session) is None:
            slots = int(os.environ[_SLOTS])
            description = "Heavy stages that may run at once; change it here"
            Pool.create_or_update_pool(STAGES_POOL, slots, description, include_deferred=False, session=session)


if __name__ == "__main__":
    _main()
