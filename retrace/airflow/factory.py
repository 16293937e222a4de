"""DAGs from params.yaml and dvc.yaml of the commit that is trained: one per model, and ingestion.

What a DAG file imports is kept light: no pandas, DVC or MLflow, so that hundreds of models parse in little time.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import (
    DAG,
    AssetOrTimeSchedule,
    CronTriggerTimetable,
    ExceptionRetryPolicy,
    RetryAction,
    RetryRule,
)
from airflow.sdk.exceptions import AirflowException

from retrace.airflow.operators import (
    DATA_ASSET,
    AuditOperator,
    CleanupOperator,
    DoctorOperator,
    GateOperator,
    IngestOperator,
    PublishOperator,
    RegisterOperator,
    RetraceOperator,
    SnapshotOperator,
    StageOperator,
    SyncOperator,
)
from retrace.config import ModelSettings, Params, ScheduleSettings, parse_params
from retrace.dvcfiles import StageTemplate, check_parameters, stages
from retrace.lineage.jobs import documentation, stage_documentation

STAGE_POOL = "retrace_stages"
# What operators raise for a transient error, and what may befall a task's talk with Airflow. Anything else is wrong
# code or data, and would only fail again. A task that is killed is retried without being asked.
_TRANSIENT = RetryRule(exception=[AirflowException, ConnectionError, TimeoutError], action=RetryAction.RETRY)
_RETRY: dict[str, Any] = {
    "retries": 4,
    "retry_delay": timedelta(seconds=20),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=15),
    "retry_policy": ExceptionRetryPolicy(rules=[_TRANSIENT], default=RetryAction.FAIL),
}
_MARGIN = timedelta(minutes=30)
_ENGINE_TIMEOUT = timedelta(minutes=30)


def _root(project: Path) -> str:
    """Where the project's state is: beside the DAG files, or where RETRACE_ROOT says when they lie elsewhere."""
    return os.environ.get("RETRACE_ROOT") or str(project)


def read_project(project: Path) -> tuple[Params, tuple[StageTemplate, ...]]:
    """params.yaml and dvc.yaml beside the DAG files. Raises `ConfigError` or `PipelineError`."""
    where = str(project / "params.yaml")
    params = parse_params((project / "params.yaml").read_text(), where)
    templates = stages((project / "dvc.yaml").read_text(), str(project / "dvc.yaml"))
    check_parameters(params, templates, where)
    return params, templates


def _schedule(settings: ScheduleSettings) -> Any:
    if settings.cron and settings.data:
        timetable = CronTriggerTimetable(settings.cron, timezone="UTC")
        return AssetOrTimeSchedule(timetable=timetable, assets=[DATA_ASSET])
    if settings.cron:
        return CronTriggerTimetable(settings.cron, timezone="UTC")
    return [DATA_ASSET] if settings.data else None


def retrain_dags(project: Path) -> dict[str, DAG]:
    """One DAG per model, by its name."""
    params, templates = read_project(project)
    return {
        name: retrain_dag(project, name, model, templates, params.ingest.start) for name, model in params.models.items()
    }


def retrain_dag(
    project: Path, name: str, model: ModelSettings, templates: tuple[StageTemplate, ...], start: datetime
) -> DAG:
    """snapshot, a task per DVC stage, register, gate, publish; and a teardown that always cleans up."""
    dag = DAG(
        dag_id=name,
        schedule=_schedule(model.schedule),
        start_date=start,
        catchup=False,
        max_active_runs=1,
        tags=["retrace", "retrain"],
        default_args=_RETRY,
        doc_md=f"Retrains `{name}`: every version it makes is a git tag `{name}@vN`.",
    )
    common: dict[str, Any] = {"project": _root(project), "model": name, "dag": dag, **_owner(model.owner)}

    def own(job: str) -> dict[str, Any]:
        return {"task_id": job, "doc": documentation(name, job), **common}

    timeout = timedelta(minutes=model.timeout_minutes)
    tasks: list[RetraceOperator] = [SnapshotOperator(execution_timeout=_ENGINE_TIMEOUT, **own("snapshot"))]
    for template in templates:
        tasks.append(
            StageOperator(
                task_id=template.name,
                stage=template.name,
                after=tasks[-1].task_id,
                timeout=timeout.total_seconds(),
                execution_timeout=timeout + _MARGIN,
                pool=STAGE_POOL,
                doc=stage_documentation(template.address(name), template.command.replace("${key}", name)),
                **common,
            )
        )
    tasks.append(RegisterOperator(after=tasks[-1].task_id, execution_timeout=_ENGINE_TIMEOUT, **own("register")))
    tasks.append(
        GateOperator(after="register", execution_timeout=2 * timeout + _MARGIN, pool=STAGE_POOL, **own("gate"))
    )
    tasks.append(PublishOperator(after="register", execution_timeout=_ENGINE_TIMEOUT, **own("publish")))
    for earlier, later in zip(tasks, tasks[1:], strict=False):
        earlier.set_downstream(later)
    # Airflow judges a run by its last tasks. `publish` stays one beside the teardown, so that neither hides the other's
    # failure; and the model's lease is given up without waiting for MLflow.
    cleanup = CleanupOperator(**own("cleanup")).as_teardown(on_failure_fail_dagrun=True)
    tasks[-2].set_downstream(cleanup)
    return dag


def _owner(name: str | None) -> dict[str, str]:
    """Whom lineage names; without one it is Airflow's default."""
    return {"owner": name} if name is not None else {}


def ingest_dag(project: Path) -> DAG:
    """The DAG that brings the branch `data` up to its run's date and updates the asset that retrains wait for."""
    params, _ = read_project(project)
    about = "Fetches new partitions of the raw data and commits them on the branch `data`."
    dag = _own_dag("ingest", params, params.ingest.schedule, about)
    IngestOperator(outlets=[DATA_ASSET], **_only_task(project, dag), **_owner(params.ingest.owner))
    return dag


def sync_dag(project: Path) -> DAG:
    """The DAG that brings MLflow and the lineage consumer up to git, so that nobody has to think of it."""
    params, _ = read_project(project)
    about = "Brings MLflow and the lineage consumer up to what git says: what an outage left out, put in."
    dag = _own_dag("sync", params, params.sync.schedule, about)
    SyncOperator(**_only_task(project, dag))
    return dag


def doctor_dag(project: Path) -> DAG:
    """The DAG that looks after what past versions need; it fails when something is a person's to act on."""
    params, _ = read_project(project)
    about = "Looks for what can no longer be rebuilt and why, and removes what crashed runs left behind."
    dag = _own_dag("doctor", params, params.doctor.schedule, about)
    DoctorOperator(**_only_task(project, dag))
    return dag


def audit_dag(project: Path) -> DAG:
    """The DAG that rebuilds past versions, a task per model; one that departs fails its task."""
    params, _ = read_project(project)
    about = (
        "Rebuilds each model's champion and the version that went longest without a verdict, and compares every byte."
    )
    dag = _own_dag("audit", params, params.audit.schedule, about)
    for name, model in params.models.items():
        AuditOperator(
            task_id=name,
            model=name,
            project=_root(project),
            doc=documentation(name, "audit"),
            execution_timeout=timedelta(minutes=params.audit.timeout_minutes),
            pool=STAGE_POOL,
            dag=dag,
            **_owner(model.owner),
        )
    return dag


def _own_dag(name: str, params: Params, schedule: str | None, about: str) -> DAG:
    return DAG(
        dag_id=name,
        schedule=CronTriggerTimetable(schedule, timezone="UTC") if schedule else None,
        start_date=params.ingest.start,
        catchup=False,
        max_active_runs=1,
        tags=["retrace"],
        default_args=_RETRY,
        doc_md=about,
    )


def _only_task(project: Path, dag: DAG) -> dict[str, Any]:
    """The arguments of the one task of a DAG, which has its name."""
    name = dag.dag_id
    return {
        "task_id": name,
        "model": name,
        "project": _root(project),
        "doc": documentation(name, name),
        "execution_timeout": timedelta(hours=6),
        "dag": dag,
    }
