"""Which services answer: the git origin, the DVC remote, the package index, MLflow, the lineage consumer."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from retrace.config import Settings
from retrace.errors import RetraceError
from retrace.health.finding import Finding, Section
from retrace.health.scope import CONSUMER, MLFLOW, Scope
from retrace.lineage.settings import ConsumerSettings
from retrace.registry.contact import address, contact, probe, sqlite_file

_SECTION = "services"
SILENT = "service-silent"


def services(scope: Scope, environ: Mapping[str, str] = os.environ) -> Section:
    """Ask those that no other subject has asked, and tell of all that are silent."""
    store = sqlite_file(scope.settings.mlflow)
    if store is None or store.exists():
        scope.asked.append(MLFLOW)
    if any(environ.get(name) for name in ("OPENLINEAGE_URL", "AIRFLOW__OPENLINEAGE__TRANSPORT")):
        scope.asked.append(CONSUMER)
    for name, reason in ((MLFLOW, _mlflow(scope.settings)), (CONSUMER, _consumer(scope.settings, environ))):
        if reason is not None:
            scope.silent[name] = reason
    findings = [
        Finding(SILENT, f"{name}: {reason}", facts={"service": name, "reason": reason})
        for name, reason in scope.silent.items()
    ]
    answering = [name for name in scope.asked if name not in scope.silent]
    return Section(_SECTION, f"reached: {', '.join(answering) or 'none'}", tuple(findings))


def _mlflow(settings: Settings) -> str | None:
    """Why MLflow does not answer, None if it does. The embedded default's store is made when it is first needed."""
    file = sqlite_file(settings.mlflow)
    if file is not None:
        return _sqlite(file) if file.exists() else None
    if settings.mlflow.startswith(("http://", "https://")):
        return _http(settings)
    try:
        with contact(settings.mlflow, settings.patience):
            probe(settings.mlflow)
    except RetraceError as error:
        return str(error)
    return None


def _sqlite(file: Path) -> str | None:
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        return f"{file} cannot be read as SQLite ({error}); remove it and run `retrace sync`: git has all of it"
    return None


def _http(settings: Settings) -> str | None:
    """MLflow's own import takes seconds; its server says in one answer that it lives."""
    import requests

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true")
    verify: bool | str = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or not insecure
    shown = address(settings.mlflow)
    try:
        answer = requests.get(f"{settings.mlflow.rstrip('/')}/health", timeout=settings.patience, verify=verify)
    except (requests.RequestException, OSError) as error:
        return f"{shown} does not answer ({type(error).__name__}); check that it is up"
    return f"{shown} answers with status {answer.status_code}" if answer.status_code >= 500 else None


def _consumer(settings: Settings, environ: Mapping[str, str]) -> str | None:
    from retrace.lineage.consumer import Consumer

    try:
        found = ConsumerSettings.of(environ)
        if found is not None:
            with closing(Consumer(found, settings.patience)) as consumer:
                consumer.job(settings.namespace, "ingest.ingest")
    except RetraceError as error:
        return str(error)
    return None
