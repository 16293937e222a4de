"""A real Airflow for tests: scheduler, DAG processor and API server on a free port, with its own metadata database."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from retrace.airflow.database import prepare_embedded
from retrace.airflow.embedded import airflow_home, embedded_database, environment, keys, sqlite_url

_DATABASE_LOCKED = 503  # SQLite has one writer; Airflow asks for another try
_PAUSE = 1.0  # each question is work for the API server, which the tasks ask as well
FINISHED = frozenset({"success", "failed"})
# Airflow's defaults spare a busy machine; a test wants to be told soon.
_QUICK = {
    "AIRFLOW__CORE__PARALLELISM": "2",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "2",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
    "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
    "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
    "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "2",
}


@dataclass(frozen=True)
class Run:
    """One DAG run as the API tells it."""

    dag_id: str
    run_id: str
    state: str
    run_type: str
    logical_date: datetime | None
    run_after: datetime
    conf: Mapping[str, Any]


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class AirflowServer:
    """Start with `with`; everything below it is ended at the end, whatever happened.

    Its database is an SQLite file under `var`, migrated if need be; `environ` is added to this process's.
    """

    def __init__(
        self,
        var: Path,
        dags: Path,
        environ: Mapping[str, str] | None = None,
        start_seconds: float = 120.0,
    ) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.logs = var / "server-logs"
        self._start_seconds = start_seconds
        self._processes: list[subprocess.Popen[bytes]] = []
        self._token = ""
        more = {
            **_QUICK,
            **keys(var),
            "AIRFLOW__API__BASE_URL": self.address,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.address}/execution/",
        }
        base = {**os.environ, **(environ or {})}
        self.environ = environment(var, dags, base, sqlite_url(embedded_database(var)), more)
        root = str(Path(__file__).resolve().parents[2])
        self.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, base.get("PYTHONPATH")]))
        self._var, self._home = var, airflow_home(var)

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        Path(self._home.parent / "lineage").mkdir(exist_ok=True)
        prepare_embedded(self._var, 2)
        try:
            self._spawn("api-server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1")
            self._spawn("scheduler", "--skip-serve-logs")
            self._spawn("dag-processor")
            self.wait(self._is_healthy, self._start_seconds, "the scheduler and DAG processor to be healthy")
            self._token = str(self._request("GET", "/auth/token", None)["access_token"])
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _spawn(self, command: str, *arguments: str) -> None:
        with open(self.logs / f"{command}.log", "ab") as log:
            self._processes.append(
                subprocess.Popen(
                    [str(Path(sys.executable).with_name("airflow")), command, *arguments],
                    cwd=self._home,
                    env=self.environ,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def _stop(self) -> None:
        """End the sessions of the three processes: their workers and parsers are in them."""
        for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 10.0)):
            for process in self._processes:
                _signal_group(process.pid, number)
            deadline = time.monotonic() + patience
            for process in self._processes:
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    continue
        self._processes.clear()

    def _is_healthy(self) -> bool:
        for process in self._processes:
            if process.poll() is not None:
                raise AssertionError(f"{process.args!r} ended with {process.returncode}; see {self.logs}")
        try:
            health = self._request("GET", "/api/v2/monitor/health", None)
        except (urllib.error.URLError, OSError):
            return False
        return all(health[part]["status"] == "healthy" for part in ("scheduler", "dag_processor"))

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        request = urllib.request.Request(self.address + path, method=method)
        request.add_header("Content-Type", "application/json")
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        data = None if body is None else json.dumps(body).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, data, timeout=30) as response:
            answer = response.read()
        return dict(json.loads(answer)) if answer else {}

    def cli(self, *arguments: str) -> str:
        """What an `airflow` command prints; about 4 s each."""
        command = [str(Path(sys.executable).with_name("airflow")), *arguments]
        return subprocess.run(
            command, cwd=self._home, env=self.environ, check=True, capture_output=True, text=True
        ).stdout

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Return as soon as the condition holds; an AssertionError after so many seconds."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:.0f} s for {what}; see {self.logs}")
            time.sleep(_PAUSE)

    def wait_for_dags(self, *dag_ids: str, seconds: float = 60.0) -> None:
        """Wait until the DAG processor has read these DAGs."""
        self.wait(lambda: set(dag_ids) <= self.dag_ids(), seconds, f"the DAGs {', '.join(dag_ids)}")

    def dag_ids(self) -> set[str]:
        """The DAGs that the scheduler knows."""
        return {str(dag["dag_id"]) for dag in self._request("GET", "/api/v2/dags?limit=1000", None)["dags"]}

    def import_errors(self) -> list[str]:
        """What the DAG processor could not import, with the reason."""
        errors = self._request("GET", "/api/v2/importErrors?limit=100", None)["import_errors"]
        return [f"{error['filename']}: {error['stack_trace']}" for error in errors]

    def unpause(self, *dag_ids: str) -> None:
        """Let the scheduler run these DAGs."""
        for dag_id in dag_ids:
            self._request("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})

    def trigger(self, dag_id: str, logical_date: datetime | None = None, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run by hand and return its id."""
        body = {"logical_date": logical_date.isoformat() if logical_date else None, "conf": dict(conf or {})}
        return str(self._request("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def backfill(self, dag_id: str, first: datetime, last: datetime, max_active_runs: int = 1) -> None:
        """Run the DAG for every date of its timetable from the first to the last, as `airflow backfill create` does."""
        body = {
            "dag_id": dag_id,
            "from_date": first.isoformat(),
            "to_date": last.isoformat(),
            "max_active_runs": max_active_runs,
            "reprocess_behavior": "none",
            "run_backwards": False,
            "dag_run_conf": {},
        }
        while True:
            try:
                self._request("POST", "/api/v2/backfills", body)
            except urllib.error.HTTPError as error:
                if error.code != _DATABASE_LOCKED:
                    raise
                time.sleep(0.3)
            else:
                return

    def runs(self, dag_id: str) -> list[Run]:
        """The DAG's runs, oldest first."""
        answer = self._request("GET", f"/api/v2/dags/{dag_id}/dagRuns?limit=100&order_by=id", None)
        return [_run(entry) for entry in answer["dag_runs"]]

    def asset_events(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The asset events that set off a run: `source_dag_id`, `extra`, ..."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id)}/upstreamAssetEvents"
        return list(self._request("GET", path, None)["asset_events"])

    def tasks(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """Every task of a run as the API tells it: `state`, `try_number`, `start_date`, ..."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances?limit=100"
        return {task["task_id"]: task for task in self._request("GET", path, None)["task_instances"]}

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """The state of every task of a run."""
        return {task_id: task["state"] for task_id, task in self.tasks(dag_id, run_id).items()}

    def xcoms(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """What the tasks of a run left for others: task -> key -> value."""
        instances = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances"
        left: dict[str, dict[str, Any]] = {}
        for entry in self._request("GET", f"{instances}/~/xcomEntries?limit=100", None)["xcom_entries"]:
            task, key = entry["task_id"], entry["key"]
            told = self._request("GET", f"{instances}/{task}/xcomEntries/{key}?deserialize=true", None)
            left.setdefault(task, {})[key] = told["value"]
        return left

    def wait_for_runs(self, dag_id: str, count: int, seconds: float = 120.0) -> Sequence[Run]:
        """Wait until at least so many runs of the DAG have ended, and return all that have."""
        self.wait(lambda: len(_ended(self.runs(dag_id))) >= count, seconds, f"{count} runs of {dag_id} to end")
        return _ended(self.runs(dag_id))


def _ended(runs: Iterable[Run]) -> list[Run]:
    return [run for run in runs if run.state in FINISHED]


def _run(entry: Mapping[str, Any]) -> Run:
    logical = entry["logical_date"]
    return Run(
        dag_id=entry["dag_id"],
        run_id=entry["dag_run_id"],
        state=entry["state"],
        run_type=entry["run_type"],
        logical_date=datetime.fromisoformat(logical) if logical else None,
        run_after=datetime.fromisoformat(entry["run_after"]),
        conf=entry["conf"] or {},
    )


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return
