"""Airflow operators: a few lines around the engine each. Only a commit id goes from task to task."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, BaseOperator, BaseOperatorLink
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSkipException,
)

from retrace.airflow.links import MarquezLink, MlflowLink
from retrace.config import Settings
from retrace.errors import RetraceError, TransientError
from retrace.git import Mirror, is_commit_id
from retrace.lease import IN_PROCESS
from retrace.progress import tell
from retrace.runs import Run, Task

DATA_ASSET = Asset(name="retrace_data", uri="retrace://data/raw")
_ASK_AGAIN = timedelta(seconds=15)
_BETWEEN_TASKS = timedelta(minutes=15)  # until the next task, or this one's next try, renews the lease


class NoCommit(RetraceError):
    """The previous task handed on something that is no commit."""


class RetraceOperator(BaseOperator):
    """A task of one model's retrain; a subclass says what it does with the commit it is given."""

    ui_color = "#e8f1ee"

    def __init__(self, *, project: str, model: str, after: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.project = project
        self.model = model
        self.after = after
        self._running: tuple[Settings, Task] | None = None
        self.commit: str | None = None

    def execute(self, context: Any) -> str | None:
        """Do the work; turn the engine's errors into what Airflow retries (transient) and what it does not."""
        settings = Settings.load(Path(self.project))
        task = self._task(context)
        self._running = (settings, task)
        tell(self.model, self.task_id, "start", log=self.log_file(settings, task))
        try:
            commit = self.work(settings, task, context)
        except RetraceError as error:
            tell(self.model, self.task_id, "failed", str(error))
            raise _as_airflow_has_it(error, retried=not _in_process(context)) from None
        except AirflowException:
            raise
        except Exception as error:
            tell(self.model, self.task_id, "failed", f"{type(error).__name__}: {error}")
            raise
        self.commit = commit
        return commit

    @property
    def operator_extra_links(self) -> tuple[BaseOperatorLink, ...]:  # type: ignore[override]
        """Where a person goes on from the task's page; each costs a task an XCom, so only those that lead somewhere."""
        return (MarquezLink(),) if os.environ.get("RETRACE_MARQUEZ") else ()

    def get_openlineage_facets_on_start(self) -> Any:
        """Nothing yet: a dataset that is named before it is there stays behind in the consumer when the run fails."""
        from retrace.airflow.lineage import operator_lineage

        return operator_lineage(None)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """What Airflow's integration tells of the task: its committed event, without inputs."""
        from retrace.airflow.lineage import operator_lineage
        from retrace.lineage.told import told_of

        if self._running is None or self.commit is None:
            return operator_lineage(None)
        settings, task = self._running
        return operator_lineage(told_of(Mirror.open(settings.mirror, settings.origin), task, self.commit))

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> Any:
        """The failure as committed, with the stage's own traceback."""
        from retrace.airflow.lineage import operator_lineage
        from retrace.lineage.told import told_on_ref

        if self._running is None:
            return operator_lineage(None)
        settings, task = self._running
        return operator_lineage(told_on_ref(Mirror.open(settings.mirror, settings.origin), task))

    def work(self, settings: Settings, task: Task, context: Any) -> str | None:
        """Do this task's part and return the commit that the next one starts from."""
        raise NotImplementedError

    def log_file(self, settings: Settings, task: Task) -> Path | None:
        """The log whose last line tells how far the task is."""
        return None

    def done(self, text: str) -> None:
        self.log.info("%s", text)
        tell(self.model, self.task_id, "done", text)

    def phase(self, text: str) -> None:
        self.log.info("%s", text)
        tell(self.model, self.task_id, "phase", text)

    def _task(self, context: Any) -> Task:
        from retrace.airflow.lineage import parent_of, run_id_of

        instance = context["ti"]
        run = Run(self.model, context["run_id"])
        parent = parent_of(context["dag_run"])
        return Task(run, self.task_id, run_id_of(instance), int(instance.try_number), parent)

    def given(self, context: Any) -> str:
        """The commit that the previous task handed on. Raises `NoCommit`."""
        value = context["ti"].xcom_pull(task_ids=self.after)
        if not isinstance(value, str) or not is_commit_id(value):
            raise NoCommit(
                f"{self.task_id} was given {value!r} by {self.after}, which is no commit; clear {self.after}"
            )
        return value

    def renew_lease(self, settings: Settings, task: Task) -> None:
        from retrace import lease

        mirror = Mirror.open(settings.mirror, settings.origin)
        lease.take(mirror, self.model, task.run.run_id, self.lease_minutes(settings))

    def lease_minutes(self, settings: Settings) -> float:
        """How long a lease lasts: what is set, or as long as the longest task of this model may take, if that is more.

        Else it would end in the middle of a long stage, and another run would begin instead of waiting.
        """
        dag = self.get_dag()
        limits = [item.execution_timeout for item in dag.tasks] if dag is not None else [self.execution_timeout]
        longest = max((limit for limit in limits if limit is not None), default=timedelta())
        return max(settings.lease_minutes, (longest + _BETWEEN_TASKS) / timedelta(minutes=1))


def _as_airflow_has_it(error: RetraceError, retried: bool) -> AirflowException:
    """The error as one that Airflow tries again, or not; its notes, a stage's own traceback, go to log and lineage."""
    kind = AirflowException if isinstance(error, TransientError) and retried else AirflowFailException
    failure = kind(str(error))
    for note in getattr(error, "__notes__", ()):
        failure.add_note(note)
    return failure


def _in_process(context: Any) -> bool:
    return IN_PROCESS in (context["dag_run"].conf or {})


def _moment(value: Any) -> datetime | None:
    if value is None:
        return None
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class SnapshotOperator(RetraceOperator):
    """Takes the model's lease and makes the commit where code and data meet."""

    def work(self, settings: Settings, task: Task, context: Any) -> str:
        from retrace import lease, runs
        from retrace.register import snapshot_facts

        dag_run = context["dag_run"]
        conf = dag_run.conf or {}
        mirror = Mirror.open(settings.mirror, settings.origin)
        try:
            # Which process it is stays out of the conf: that is told to consumers, and it names the machine.
            process = lease.this_process() if IN_PROCESS in conf else None
            lease.take(mirror, self.model, task.run.run_id, self.lease_minutes(settings), process)
        except lease.ModelBusy as busy:
            if IN_PROCESS in conf:
                raise
            # Waiting for one's turn is no failure: it uses up no retry, however long it takes, and no worker.
            self.log.info("%s", busy)
            again = datetime.now(UTC) + _ASK_AGAIN
            raise AirflowRescheduleException(again) from None  # type: ignore[no-untyped-call]
        explicit = _moment(conf.get("as_of"))
        as_of = explicit if explicit is not None or IN_PROCESS in conf else _moment(dag_run.logical_date)
        backfill = str(getattr(dag_run.run_type, "value", dag_run.run_type)) == "backfill"
        commit = runs.snapshot(settings, task, as_of=as_of, backfill=backfill)
        facts = snapshot_facts(mirror, commit, self.model)
        self.done(f"code {facts['code'][:8]} meets data {facts['data'][:8]} (through {facts['dataThrough'][:10]})")
        return commit


class StageOperator(RetraceOperator):
    """Runs one DVC stage."""

    def __init__(self, *, stage: str, timeout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        self.timeout = timeout

    def log_file(self, settings: Settings, task: Task) -> Path:
        from retrace.runs import log_path

        return log_path(settings, task)

    def work(self, settings: Settings, task: Task, context: Any) -> str:
        from retrace.process import last_line
        from retrace.runs import log_path
        from retrace.stage import StageCall, run_stage

        self.renew_lease(settings, task)
        call = StageCall(
            task=task, ref=task.run.ref, commit=self.given(context), stage=self.stage, timeout=self.timeout
        )
        result = run_stage(settings, call, self.phase)
        self.done(last_line(log_path(settings, task)) if result.executed else "unchanged, not run")
        return result.commit


class RegisterOperator(RetraceOperator):
    """Tags the run's last commit as the model's next version."""

    def work(self, settings: Settings, task: Task, context: Any) -> str:
        from retrace.register import register

        self.renew_lease(settings, task)
        registered = register(settings, task, self.given(context))
        version = registered.version
        self.done(version.name if registered.new else f"nothing changed since {version.name}: no new version")
        return version.commit


class GateOperator(RetraceOperator):
    """Promotes the new version if it keeps the rules of params.yaml."""

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """The decision as committed: it stands on the run's ref, not in the version that is handed on."""
        return self.get_openlineage_facets_on_failure(task_instance)

    def work(self, settings: Settings, task: Task, context: Any) -> str:
        from retrace.gate import gate

        self.renew_lease(settings, task)
        commit = self.given(context)
        decision = gate(settings, task, commit, self.phase)
        if decision is None:
            self.done("no new version to judge")
        elif decision.promoted:
            self.done(f"{decision.version} is champion: {decision.reason}")
        else:
            self.done(f"{decision.version} not promoted: {decision.reason}")
        return commit


class PublishOperator(RetraceOperator):
    """Brings MLflow up to what git says of this model."""

    @property
    def operator_extra_links(self) -> tuple[BaseOperatorLink, ...]:  # type: ignore[override]
        """MLflow's page of the version, besides."""
        return (*super().operator_extra_links, MlflowLink())

    def work(self, settings: Settings, task: Task, context: Any) -> str:
        from retrace.publish import publish_model

        commit = self.given(context)
        changes = publish_model(settings, self.model, self.phase)
        self.done("; ".join(changes) or "MLflow is up to date")
        return commit


class CleanupOperator(RetraceOperator):
    """Removes what no process holds any more on this worker and gives the model's lease up.

    A failure here fails the run, too.
    """

    def work(self, settings: Settings, task: Task, context: Any) -> None:
        from retrace import lease
        from retrace.workspace import sweep

        sweep(settings)
        lease.release(Mirror.open(settings.mirror, settings.origin), self.model, task.run.run_id)


class SyncOperator(RetraceOperator):
    """Brings MLflow and the lineage consumer up to what git says."""

    def work(self, settings: Settings, task: Task, context: Any) -> None:
        from retrace.sync import sync

        for line in sync(settings, None, self.log.info):
            self.log.info("%s", line)


class DoctorOperator(RetraceOperator):
    """Looks for what can no longer be rebuilt, and removes what is left over; fails with all that it found.

    Left as they are, leftovers would fail it every day until somebody logged in to the worker; and they are held by
    nobody, as `CleanupOperator` asks too before it removes a workspace.
    """

    def work(self, settings: Settings, task: Task, context: Any) -> None:
        from retrace.doctor import acted_on, examine, found, text_of

        sections = []
        for section in examine(settings, self.log.debug, fix=True, read_all=None):
            sections.append(section)
            self.log.info("%s", "\n".join(text_of(section)))
        if findings := acted_on(sections):
            raise found(findings)
        self.done("all is well")


class AuditOperator(RetraceOperator):
    """Rebuilds the champion of a model and the version that went longest without a verdict; fails if one departs.

    It names no dataset, so that no consumer takes a rebuild for a new version; the verdicts stand in a run facet.
    """

    verdicts: tuple[Any, ...] = ()

    def work(self, settings: Settings, task: Task, context: Any) -> None:
        from retrace.audit import audit, require_identical

        for verdict in audit(settings, self.model, self.phase):
            self.verdicts += (verdict,)
        require_identical(self.verdicts)
        self.done(f"{', '.join(verdict.version for verdict in self.verdicts) or 'no version'}: identical")

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """The verdicts."""
        from retrace.airflow.lineage import verdict_lineage

        return verdict_lineage([verdict.facts for verdict in self.verdicts])

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> Any:
        """The verdicts, as far as they were reached."""
        return self.get_openlineage_facets_on_complete(task_instance)


class IngestOperator(RetraceOperator):
    """Brings the branch `data` up to the run's date and tells Airflow that there is new data."""

    def work(self, settings: Settings, task: Task, context: Any) -> str:
        from retrace.airflow.connections import fetcher
        from retrace.ingest import IngestCall, Ingested, ingest

        dag_run = context["dag_run"]
        conf = dag_run.conf or {}
        until = _moment(conf.get("until")) or _moment(dag_run.logical_date) or datetime.now(UTC)
        call = IngestCall(until, _moment(conf.get("since")), task.run.run_id, task.lineage_run_id, task.parent)

        def follow(done: Ingested) -> None:
            tell(self.model, done.interval, "done", done.summary)
            tell(self.model, self.task_id, "start")

        results = ingest(settings, call, fetcher(), follow)
        commits = [result.commit for result in results if result.commit]
        if not commits:
            tell(self.model, self.task_id, "done", f"nothing new up to {until:%Y-%m-%d}")
            raise AirflowSkipException(f"nothing new up to {until:%Y-%m-%d}")
        context["outlet_events"][DATA_ASSET].extra = {"commit": commits[-1]}
        return commits[-1]
