"""Run a DAG in this process: the very DAG that a scheduler would run, with no server.

The process works on a private copy of the embedded metadata database. `DAG.test()` must not share one with a live
scheduler, which would run its tasks a second time, nor with another process that tests the same DAG; and a process
that is killed leaves no half-finished run for a scheduler to continue.
"""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TextIO

from pluggy import HookimplMarker

from retrace.airflow.database import prepare_embedded
from retrace.airflow.embedded import airflow_home, environment, keys, sqlite_url
from retrace.errors import RetraceError
from retrace.workspace import lives

if TYPE_CHECKING:
    from airflow.sdk import DAG

# Marks the methods that Airflow's listener manager calls; Airflow's own marker, without importing Airflow for it.
_hook = HookimplMarker("airflow")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

TaskState = Literal["running", "success", "failed", "up_for_retry", "skipped"]


class DagBroken(RetraceError):
    """A DAG file cannot be imported, or has no such DAG."""


class Interrupted(KeyboardInterrupt):
    """The run was ended by a signal: Ctrl-C, `kill` or a closed terminal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@dataclass(frozen=True)
class TaskEvent:
    """Something that happened to a task while its DAG ran in this process."""

    task_id: str
    state: TaskState
    try_number: int
    error: BaseException | str | None = None


@dataclass(frozen=True)
class RunResult:
    """How a run ended. `failures` are the tasks that failed themselves, each with what it said last."""

    run_id: str
    state: Literal["success", "failed"]
    failures: tuple[TaskEvent, ...] = ()

    @property
    def succeeded(self) -> bool:
        return self.state == "success"


@contextmanager
def quiet(log_file: Path) -> Iterator[TextIO]:
    """Point file descriptors 1 and 2 at the log file and yield the real standard output.

    Airflow, the libraries under it and every child process write to the file; only what is meant for the user reaches
    the terminal. Both are put back at the end.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    try:
        with open(log_file, "ab") as log:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
        with open(os.dup(saved[0]), "w", buffering=1, encoding=sys.stdout.encoding) as terminal:
            yield terminal
    finally:
        _flush()
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


@contextmanager
def airflow(var: Path, dags: Path, *, slots: int = 2) -> Iterator[Mapping[str, DAG]]:
    """Start Airflow in this process, once, and yield its DAGs by id; several can be run, each any number of times.

    Everything that Airflow prints goes to standard output: use it inside `quiet`.
    """
    if "airflow" in sys.modules:
        raise RuntimeError("Airflow is imported already: its configuration can no longer be set")
    # Starting Airflow makes millions of objects that live as long as the process. Left on, the garbage collector looks
    # through them again and again: 2 s of the start, and 2 s more when the interpreter ends.
    gc.disable()
    try:
        with _private_database(var, prepare_embedded(var, slots)) as database:
            os.environ.update(environment(var, dags, os.environ, sqlite_url(database), keys(var)))
            _serve_only_this_version()
            try:
                yield _load(dags)
            finally:
                _close_database()
    finally:
        gc.enable()
        gc.freeze()


@contextmanager
def _private_database(var: Path, original: Path) -> Iterator[Path]:
    """A copy of the metadata database, Connections and Variables included, for as long as this process needs it."""
    folder = airflow_home(var) / "inprocess"
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    database = folder / f"{os.getpid()}.db"
    database.unlink(missing_ok=True)
    with closing(sqlite3.connect(original)) as source, closing(sqlite3.connect(database)) as target:
        source.backup(target)
    try:
        yield database
    finally:
        _remove(database)


def _sweep(folder: Path) -> None:
    """Remove the copies whose process was killed."""
    for database in folder.glob("*.db"):
        if not lives(int(database.stem)):
            _remove(database)


def _remove(database: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def _close_database() -> None:
    from airflow.settings import dispose_orm

    dispose_orm()


def _serve_only_this_version() -> None:
    """Let the API that tasks report to, a server within this process, speak the newest version of its protocol only.

    Its one client is this very Airflow. For each older version Airflow would build all routes of the server again.
    """
    from airflow.api_fastapi.execution_api import versions
    from airflow.api_fastapi.execution_api.routes import execution_api_router
    from cadwyn import HeadVersion, Version, VersionBundle
    from cadwyn.route_generation import _DELETED_ROUTE_TAG

    versions.bundle = VersionBundle(HeadVersion(), Version(versions.bundle.versions[0].value))
    routes = execution_api_router.routes
    routes[:] = [route for route in routes if _DELETED_ROUTE_TAG not in getattr(route, "tags", ())]


def _load(dags: Path) -> Mapping[str, DAG]:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(dags), collect_dags=True)
    for file, error in bag.import_errors.items():
        raise DagBroken(f"{file} cannot be imported: {error.strip().splitlines()[-1]}")
    return dict(bag.dags)


def run_dag(
    dag: DAG,
    *,
    logical_date: datetime | None = None,
    conf: Mapping[str, Any] | None = None,
    follow: Callable[[TaskEvent], None] | None = None,
) -> RunResult:
    """Run a DAG to its end, in the main thread; `follow` hears of each task.

    `logical_date` is now by default; the run's id is made of it. A first Ctrl-C, SIGTERM or SIGHUP ends the running
    task through its `finally` blocks and its `on_kill`, and with it the run: no retry, no further task. It is raised as
    `Interrupted`.
    """
    from airflow.sdk.listener import get_listener_manager

    when = logical_date or datetime.now(UTC)
    watch = _Watch(follow)
    manager = get_listener_manager()
    manager.pm.register(watch)
    try:
        with watch.signals():
            # Airflow names a run after `run_after`: given, the run's id is `manual__<logical date>`, known beforehand.
            run = dag.test(logical_date=when, run_after=when, run_conf=dict(conf or {}))
    finally:
        manager.pm.unregister(watch)
    state: Literal["success", "failed"] = "success" if run.state == "success" else "failed"
    return RunResult(run_id=str(run.run_id), state=state, failures=tuple(watch.failures.values()))


class _Watch:
    """Follows the tasks of a run and ends it on a signal.

    Airflow takes any exception in a task, `KeyboardInterrupt` too, for a failure of the task and goes on with a retry
    or with what comes after it. So the signal is remembered, and raised again where Airflow lets it through.
    """

    def __init__(self, follow: Callable[[TaskEvent], None] | None) -> None:
        self._follow = follow
        self._task: Any = None
        self._received: int | None = None
        self._handled: tuple[signal.Signals, ...] = ()
        self.failures: dict[str, TaskEvent] = {}

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Handle the signals that would end this process; those that it was told to ignore stay ignored."""
        self._handled = tuple(number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN)
        before = {number: signal.getsignal(number) for number in self._handled}
        self._install()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _install(self) -> None:
        for number in self._handled:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            return  # a second Ctrl-C must not break off the cleaning up after the first
        self._received = number
        raise Interrupted(number)

    def _tell(self, instance: Any, state: TaskState, error: BaseException | str | None = None) -> None:
        event = TaskEvent(str(instance.task_id), state, int(instance.try_number), error)
        if state == "failed":
            self.failures[event.task_id] = event
        if self._follow is not None:
            self._follow(event)

    @_hook
    def on_task_instance_running(self, task_instance: Any) -> None:
        if gc.isenabled() is False:  # the first task runs: Airflow has started
            gc.freeze()
            gc.enable()
        self._task = task_instance.task
        self._install()  # Airflow has just put its own handler of SIGTERM in place
        self._tell(task_instance, "running")

    @_hook
    def on_task_instance_success(self, task_instance: Any) -> None:
        self._tell(task_instance, "success")

    @_hook
    def on_task_instance_skipped(self, task_instance: Any) -> None:
        self._tell(task_instance, "skipped")

    # After the others: OpenLineage must have told of the end of a task before the run is broken off.
    @_hook(trylast=True)
    def on_task_instance_failed(self, task_instance: Any, error: BaseException | str | None) -> None:
        retried = task_instance.state == "up_for_retry"
        self._tell(task_instance, "up_for_retry" if retried else "failed", error)

    @_hook(trylast=True)
    def before_stopping(self) -> None:
        """A task has ended, and everybody knows.

        `on_kill` comes after the task's `finally` blocks, as with a timeout. In the signal handler it could wait for
        a lock that the task, stopped right there, holds: `Popen.wait()` takes one.
        """
        if self._received is not None:
            if self._task is not None:
                self._task.on_kill()
            raise Interrupted(self._received)
        self._task = None
