"""DAGs run in a process of their own: results, retries, interruption, quiet output, lineage."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import copy_seed

ROOT = Path(__file__).resolve().parents[2]

DAGS = """
import os
import signal
import subprocess
from datetime import timedelta
from airflow.sdk import DAG, BaseOperator, ExceptionRetryPolicy, RetryAction, RetryRule


class Ok(BaseOperator):
    def execute(self, context):
        print("noise from a task", flush=True)
        return str(context["logical_date"])


class Fail(BaseOperator):
    def __init__(self, error, until=99, **kwargs):
        super().__init__(**kwargs)
        self.error, self.until = error, until

    def execute(self, context):
        if context["ti"].try_number < self.until:
            raise self.error("boom")


class Sleep(BaseOperator):
    def execute(self, context):
        self.child = subprocess.Popen(["sleep", "987654"], start_new_session=True)
        try:
            self.child.wait()
        finally:
            self.on_kill()
            print("finally", flush=True)

    def on_kill(self):
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()


policy = ExceptionRetryPolicy(
    rules=[RetryRule(exception=ConnectionError, action=RetryAction.RETRY)], default=RetryAction.FAIL
)
quick = {"retries": 2, "retry_delay": timedelta(seconds=0.1), "retry_policy": policy}

with DAG("good", schedule=None) as good:
    Ok(task_id="first") >> Ok(task_id="second")
with DAG("transient", schedule=None) as transient:
    Fail(task_id="only", error=ConnectionError, until=2, **quick)
with DAG("bad", schedule=None) as bad:
    start = Ok(task_id="start")
    start >> Fail(task_id="work", error=ValueError, **quick) >> Ok(task_id="after") >> Ok(
        task_id="cleanup"
    ).as_teardown(setups=start)
with DAG("slow", schedule=None) as slow:
    Sleep(task_id="sleep", **{**quick, "retry_policy": None}) >> Ok(task_id="after")
"""

PROGRAM = """
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from retrace.airflow import inprocess

var, dags, *names = sys.argv[1:]
try:
    with inprocess.quiet(Path(var) / "logs/airflow.log") as terminal:
        with inprocess.airflow(Path(var), Path(dags), slots=3) as known:
            for name in names:
                def follow(event):
                    print(json.dumps([event.task_id, event.state, event.try_number]), file=terminal)
                result = inprocess.run_dag(known[name], logical_date=datetime(2013, 7, 3, tzinfo=UTC), follow=follow)
                failures = [[event.task_id, str(event.error)] for event in result.failures]
                print(json.dumps({"dag": name, "state": result.state, "failures": failures}), file=terminal)
except inprocess.Interrupted as interrupted:
    print("interrupted")
    sys.exit(interrupted.exit_code)
print("end")
"""


@pytest.fixture(scope="module")
def var(tmp_path_factory: pytest.TempPathFactory, seeded: Path) -> Path:
    """One state folder for the module."""
    folder = tmp_path_factory.mktemp("var")
    copy_seed(seeded, folder)
    return folder


def write_dags(folder: Path) -> Path:
    folder.mkdir()
    (folder / "toy.py").write_text(DAGS)
    return folder


@pytest.fixture
def dags(tmp_path: Path) -> Path:
    return write_dags(tmp_path / "dags")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a project after its first run, which had somebody's openlineage.yml in its working directory."""
    folder = tmp_path_factory.mktemp("fresh")
    (folder / "openlineage.yml").write_text("transport: {type: http, url: 'http://127.0.0.1:9'}\n")
    finish(start(folder / "var", write_dags(folder / "dags"), "good"))
    return folder / "var"


def start(var: Path, dags: Path, *names: str, environ: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Run DAGs in a new process, in the folder of the DAGs, as a terminal's shell would."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(var), str(dags), *names],
        cwd=dags.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> list[Any]:
    """What the process printed, line by line; it must end well and say nothing else."""
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), err
    *lines, end = out.splitlines()
    assert end == "end"
    return [json.loads(line) for line in lines]


def test_several_dags_in_one_process_of_which_nothing_is_left(var: Path, dags: Path) -> None:
    lines = finish(start(var, dags, "good", "transient", "bad", "good"))
    results = [line for line in lines if isinstance(line, dict)]
    assert results == [
        {"dag": "good", "state": "success", "failures": []},
        {"dag": "transient", "state": "success", "failures": []},
        {"dag": "bad", "state": "failed", "failures": [["work", "boom"]]},
        {"dag": "good", "state": "success", "failures": []},
    ]
    assert [line for line in lines if isinstance(line, list)] == [
        ["first", "running", 1],
        ["first", "success", 1],
        ["second", "running", 1],
        ["second", "success", 1],
        ["only", "running", 1],
        ["only", "up_for_retry", 1],
        ["only", "running", 2],
        ["only", "success", 2],
        ["start", "running", 1],
        ["start", "success", 1],
        ["work", "running", 1],
        ["work", "failed", 1],
        ["cleanup", "running", 1],
        ["cleanup", "success", 1],
        ["first", "running", 1],
        ["first", "success", 1],
        ["second", "running", 1],
        ["second", "success", 1],
    ]
    assert "noise from a task" in (var / "logs/airflow.log").read_text()
    assert list((var / "airflow/inprocess").iterdir()) == []


def test_two_processes_at_once(var: Path, dags: Path) -> None:
    both = [start(var, dags, "good"), start(var, dags, "good")]
    for process in both:
        assert finish(process)[-1]["state"] == "success"


def test_lineage_goes_to_the_file_whatever_lies_around(fresh: Path) -> None:
    told = [json.loads(line) for line in (fresh / "lineage/events.jsonl").read_text().splitlines()]
    jobs = {(event["job"]["name"], event["eventType"]) for event in told}
    assert {("good.first", "START"), ("good.first", "COMPLETE"), ("good.second", "COMPLETE")} <= jobs
    assert ("good", "COMPLETE") in jobs


def test_broken_dag_file_is_named(var: Path, dags: Path) -> None:
    (dags / "broken.py").write_text("from airflow.sdk import DAG\nraise ValueError('no such model')\n")
    process = start(var, dags, "good")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.splitlines()[-1].endswith("broken.py cannot be imported: ValueError: no such model")


def sleepers() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["cmdline"] == ["sleep", "987654"] and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.fixture
def sleeping(var: Path, dags: Path) -> Iterator[subprocess.Popen[str]]:
    """A process whose task sleeps."""
    process = start(var, dags, "slow")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == ["sleep", "running", 1]
    deadline = time.monotonic() + 20
    while not sleepers():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda x: str(x)
)
def test_signal_ends_the_run_at_once(
    var: Path, sleeping: subprocess.Popen[str], number: signal.Signals, code: int
) -> None:
    sent = time.monotonic()
    sleeping.send_signal(number)
    sleeping.send_signal(number)
    out, _ = sleeping.communicate(timeout=30)
    assert sleeping.returncode == code
    assert time.monotonic() - sent < 10
    assert sleepers() == []
    assert [json.loads(line) for line in out.splitlines()[:-1]] == [["sleep", "up_for_retry", 1]]
    assert out.splitlines()[-1] == "interrupted"
    assert "finally" in (var / "logs/airflow.log").read_text()
    assert list((var / "airflow/inprocess").iterdir()) == []


def test_copy_of_a_killed_process_is_swept(var: Path, dags: Path, sleeping: subprocess.Popen[str]) -> None:
    left = var / "airflow/inprocess" / f"{sleeping.pid}.db"
    assert left.exists()
    sleeping.kill()
    sleeping.wait()
    for process in sleepers():
        process.kill()
    finish(start(var, dags, "good"))
    assert not left.exists()


def test_database_is_migrated_once_with_the_pool(fresh: Path, dags: Path) -> None:
    log = (fresh / "logs/airflow-database.log").stat()
    finish(start(fresh, dags, "good"))
    assert (fresh / "logs/airflow-database.log").stat().st_mtime == log.st_mtime
    with sqlite3.connect(fresh / "airflow/airflow.db") as connection:
        assert connection.execute("SELECT slots FROM slot_pool WHERE pool = 'retrace_stages'").fetchall() == [(3,)]
