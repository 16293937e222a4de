"""Where a person looks at a job in Marquez' web UI, and at a version in MLflow's."""

from __future__ import annotations

from urllib.parse import quote

from retrace.config import Settings

_VIEW = "isCompact=true&depth=20"  # the whole way from a version to its sources, without every column


def marquez_job(settings: Settings, job: str) -> str | None:
    """The page of a job's lineage; None where RETRACE_MARQUEZ does not say where the UI is."""
    if settings.marquez is None:
        return None
    return f"{settings.marquez}/lineage/job/{quote(settings.namespace, safe='')}/{quote(job, safe='')}?{_VIEW}"


def mlflow_version(settings: Settings, model: str, number: int) -> str:
    """The page of a version; for a store without a server that of the UI which `make up` starts."""
    server = settings.mlflow.startswith(("http://", "https://"))
    base = settings.mlflow.rstrip("/") if server else f"http://127.0.0.1:{settings.mlflow_port}"
    return f"{base}/#/models/{model}/versions/{number}"
