"""`retrace up` and `down`: everything starts, everything ends, whoever was killed in between."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from airflow_server import free_port
from command import copy_seed

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
from pathlib import Path
from retrace.airflow import services
from retrace.config import Settings
from retrace.errors import RetraceError

settings = Settings.load(Path(sys.argv[1]))
try:
    if sys.argv[2] == "up":
        services.up(settings)
    else:
        print("stopped" if services.down(settings) else "nothing ran")
except RetraceError as error:
    sys.exit(f"error: {error}")
"""


@dataclass(frozen=True)
class Project:
    """A project with ports of its own."""

    root: Path
    airflow_port: int
    mlflow_port: int

    def start(self, command: str) -> subprocess.Popen[str]:
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RETRACE_AIRFLOW_PORT": str(self.airflow_port),
            "RETRACE_MLFLOW_PORT": str(self.mlflow_port),
        }
        return subprocess.Popen(
            [sys.executable, "-u", "-c", PROGRAM, str(self.root), command],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str) -> tuple[int, str, str]:
        process = self.start(command)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def up(self) -> subprocess.Popen[str]:
        """Start everything and return when it says so."""
        process = self.start("up")
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Stop all"):
                return process
        raise AssertionError(f"up ended: {process.communicate()[1]}")

    def processes(self) -> list[psutil.Process]:
        """All living processes that mention the project in their environment or run below one that does."""
        found = {}
        for process in psutil.process_iter():
            try:
                if process.environ().get("RETRACE_SERVICES") == str(self.root / "var"):
                    found.update({child.pid: child for child in (process, *process.children(recursive=True))})
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return [process for process in found.values() if is_living(process)]


def is_living(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, seeded: Path) -> Path:
    """One project for the module."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "dags").mkdir()
    copy_seed(seeded, folder / "var")
    return folder


@pytest.fixture
def project(root: Path) -> Iterator[Project]:
    made = Project(root, free_port(), free_port())
    yield made
    made.run("down")


def is_refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def assert_all_gone(project: Project, seen: list[psutil.Process]) -> None:
    assert [process for process in seen if is_living(process)] == []
    assert project.processes() == []
    assert is_refused(project.airflow_port)
    assert is_refused(project.mlflow_port)


def test_up_answers_and_ctrl_c_ends_all(project: Project) -> None:
    up = project.up()
    seen = project.processes()
    assert len(seen) > 4
    for port in (project.airflow_port, project.mlflow_port):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as page:
            assert b"<html" in page.read().lower()
    listening = {
        connection.laddr.ip
        for process in seen
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    code, _, err = project.run("up")
    assert (code, err) == (
        1,
        f"error: the services of {project.root} run already; stop them with `retrace down`\n",
    )
    up.send_signal(signal.SIGINT)
    assert up.wait(60) == 0
    assert_all_gone(project, seen)


def test_down_ends_what_a_killed_up_left(project: Project) -> None:
    up = project.up()
    seen = project.processes()
    up.kill()
    up.wait()
    assert project.run("down") == (0, "stopped\n", "")
    assert_all_gone(project, seen)
    assert project.run("down") == (0, "nothing ran\n", "")


def test_stale_record_ends_nobody_else(project: Project) -> None:
    bystander = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        record = project.root / "var/run/services.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(
            f'[{{"name": "up", "pid": {bystander.pid}, "born": 1.0}}, '
            f'{{"name": "mlflow", "pid": {bystander.pid}, "born": 1.0}}]'
        )
        assert project.run("down") == (0, "nothing ran\n", "")
        assert not record.exists()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_busy_port_is_named(project: Project) -> None:
    with closing(socket.create_server(("127.0.0.1", project.mlflow_port))):
        code, _, err = project.run("up")
    assert code == 1
    assert err == (
        f"error: port {project.mlflow_port} is used by another program; stop that one, "
        "or set RETRACE_MLFLOW_PORT to a free port\n"
    )
    assert project.processes() == []


def test_a_service_that_dies_ends_the_rest(project: Project) -> None:
    up = project.up()
    seen = project.processes()
    scheduler = next(process for process in seen if "scheduler" in process.cmdline())
    scheduler.kill()
    _, err = up.communicate(timeout=60)
    assert up.returncode == 1
    assert err.startswith("error: airflow-scheduler ended by itself; see the end of ")
    deadline = time.monotonic() + 5
    while any(is_living(process) for process in seen) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert_all_gone(project, seen)
