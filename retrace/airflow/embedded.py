"""The embedded default of Airflow: the configuration that makes it run under `var/` with no server.

Nothing here imports Airflow, so that the environment can be set before it is: Airflow reads it while it is imported.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from retrace.lineage.settings import SPOOL_TRANSPORT, ConsumerSettings

# Every option that already says where OpenLineage events go: with one of them set, ours is left out.
_TRANSPORT_SETTINGS = (
    "AIRFLOW__OPENLINEAGE__TRANSPORT",
    "AIRFLOW__OPENLINEAGE__CONFIG_PATH",
    "AIRFLOW__OPENLINEAGE__CONFIG_CONN_ID",
    "OPENLINEAGE_CONFIG",
)


def airflow_home(var: Path) -> Path:
    """Where the embedded Airflow keeps its state."""
    return var / "airflow"


def embedded_database(var: Path) -> Path:
    """The SQLite file of the embedded metadata database."""
    return airflow_home(var) / "airflow.db"


def lineage_file(var: Path) -> Path:
    """Where OpenLineage events are appended, unless the user chose another transport."""
    return var / "lineage" / "events.jsonl"


def spool_folder(var: Path) -> Path:
    """Where OpenLineage events wait for the process that sends them."""
    return lineage_file(var).with_name("spool")


def sqlite_url(database: Path) -> str:
    """The SQLAlchemy address of an SQLite file."""
    return f"sqlite:///{database.absolute()}"


def keys(var: Path) -> dict[str, str]:
    """The two secrets that every process of the embedded Airflow must share, made once.

    Without them each process would make up its own: tasks could not report to the API server, and one process could
    not read a password that another stored.
    """
    path = airflow_home(var) / "keys.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = {
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(32),
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        }
        draft = path.with_suffix(f".{os.getpid()}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
            json.dump(made, handle)
        with suppress(FileExistsError):  # of several processes that get here at once, one wins
            os.link(draft, path)
        draft.unlink()
    return dict(json.loads(path.read_text()))


def environment(
    var: Path,
    dags: Path,
    base: Mapping[str, str],
    database: str | None = None,
    more: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The environment of an embedded Airflow: `base`, and a default for each setting that `base` leaves open.

    `database` is the address of a metadata database that must be used whatever `base` says; by default it is the one
    that `base` names, or else an SQLite file under `var`. `more` are further defaults, by variable name. Raises
    `ConsumerMisconfigured` for an address of a lineage consumer that makes no sense.
    """
    home = airflow_home(var)
    defaults = {
        "AIRFLOW_HOME": str(home.absolute()),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags.absolute()),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",  # the default forks 32 workers
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": sqlite_url(embedded_database(var)),
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str((home / "logs").absolute()),
        "AIRFLOW__LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": str((home / "logs/dag_processor").absolute()),
        "AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD": "True",  # the default forks a whole Airflow for every event
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        **(more or {}),
        **_lineage(var, base),
    }
    result = dict(base)
    result.update({name: value for name, value in defaults.items() if not _is_set(name, base)})
    if database is not None:
        for suffix in ("_CMD", "_SECRET"):
            result.pop(f"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN{suffix}", None)
        result["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = database
    return result


def _is_set(name: str, base: Mapping[str, str]) -> bool:
    """Whether the user gave this setting, be it as a command or a secret's name, which Airflow accepts as well."""
    return any(base.get(name + suffix) for suffix in ("", "_CMD", "_SECRET"))


def _lineage(var: Path, base: Mapping[str, str]) -> dict[str, str]:
    """Where OpenLineage events go: what the user set, else a file, and with a consumer's address a spool for it, too.

    The transport is always given as Airflow's own option: with less, the client would look for an `openlineage.yml`
    in the folder it happens to be started in, and prefer that to `OPENLINEAGE_URL`. The consumer's key is left where
    it is, in the environment. Raises `ConsumerMisconfigured`.
    """
    chosen = any(_is_set(name, base) for name in _TRANSPORT_SETTINGS)
    if chosen or any(name.startswith("OPENLINEAGE__TRANSPORT") for name in base):
        return {}
    consumer = ConsumerSettings.of(base)
    transport: dict[str, object] = {
        "type": SPOOL_TRANSPORT,
        "log_file_path": str(lineage_file(var).absolute()),
        "spool": str(spool_folder(var).absolute()),
        "sender_log": str((var / "logs" / "lineage.log").absolute()),
        "hide": _places(var, base),
    }
    if consumer is not None:
        transport |= {"url": consumer.url, "endpoint": consumer.endpoint}
    return {"AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport)}


def _places(var: Path, base: Mapping[str, str]) -> dict[str, str]:
    """The folders of this machine that no event may show, with what stands for them."""
    places = {Path(__file__).parents[2]: "project", Path(base.get("HOME") or Path.home()): "~"}
    if sys.prefix != sys.base_prefix:
        places[Path(sys.prefix)] = "environment"
    if var.name == "var":
        places[var.parent] = "project"
    places[var] = "var"
    return {str(spelling): name for path, name in places.items() for spelling in (path.absolute(), path.resolve())}
