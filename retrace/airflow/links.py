"""Links on a task's page in Airflow's UI: to its job in Marquez, to the version in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperatorLink

from retrace.config import Settings
from retrace.git import Mirror
from retrace.lineage.links import marquez_job, mlflow_version
from retrace.versions import versions


class MarquezLink(BaseOperatorLink):
    """The job's lineage in Marquez."""

    name = "Lineage in Marquez"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        return marquez_job(Settings.load(Path(operator.project)), f"{ti_key.dag_id}.{ti_key.task_id}") or ""


class MlflowLink(BaseOperatorLink):
    """The version that the task has brought to MLflow."""

    name = "Version in MLflow"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        settings = Settings.load(Path(operator.project))
        known = versions(Mirror.open(settings.mirror, settings.origin), operator.model)
        own = next((version for version in known if version.commit == operator.commit), None)
        return mlflow_version(settings, operator.model, own.number) if own is not None else ""
