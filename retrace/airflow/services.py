"""Airflow's scheduler and UI and MLflow's UI on this machine: started together, stopped together, nothing left.

A service is a tree of processes, and not all of it stays below the process that was started: servers fork workers,
tasks start sessions of their own, and whoever is killed leaves orphans. So a service is known by the session that it
was started in, and every process below it carries a mark in its environment. Both are written down in `var/run`, with
the start time of each process, since process numbers come round again.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import psutil

from retrace.airflow.database import database_log, migrate, prepare_embedded
from retrace.airflow.embedded import embedded_database, environment, keys, sqlite_url
from retrace.config import Settings
from retrace.errors import RetraceError

LOOPBACK = "127.0.0.1"
_MARK = "RETRACE_SERVICES"
_START_SECONDS = 180.0
_GRACE_SECONDS = 8.0
_CLOCK_SECONDS = 5.0  # a start time is computed from the machine's clock, which may have been set meanwhile


class PortBusy(RetraceError):
    """Another program listens on a port that a service needs."""


class AlreadyUp(RetraceError):
    """The services of this project are running."""


class ServiceFailed(RetraceError):
    """A service ended by itself, or did not get ready."""


@dataclass(frozen=True)
class Started:
    """A process by number and start time: together they name one process for good."""

    name: str
    pid: int
    born: float

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        born = _born(self.pid)
        return born is not None and abs(born - self.born) < _CLOCK_SECONDS

    def is_replaced(self) -> bool:
        """Whether another process has this number now."""
        return _born(self.pid) is not None and not self.is_alive()


@dataclass(frozen=True)
class Service:
    """A program to start, how to see that it is ready, and where a user finds it."""

    name: str
    command: Sequence[str]
    is_ready: Callable[[], bool]


def _born(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def up(settings: Settings, out: TextIO | None = None) -> None:
    """Start the services, tell where they are, and stay until Ctrl-C, SIGTERM or `down`; then stop all of them.

    Raises `PortBusy`, `AlreadyUp` or `ServiceFailed`; in every case nothing is left running.
    """
    out = out or sys.stdout
    with _owned(settings), _stopped_by_signals() as is_stopped:
        started = [Started("up", os.getpid(), psutil.Process().create_time())]
        try:
            _start(settings, started, is_stopped, out)
            while not is_stopped():
                _check_alive(settings, started)
                time.sleep(0.5)
        finally:
            print("stopping ...", file=out, flush=True)
            _end_all(settings, started)


def down(settings: Settings) -> bool:
    """Stop the services from wherever they were started, also when `up` itself was killed. Whether any were running."""
    record = _read_record(settings)
    owner = next((started for started in record if started.name == "up"), None)
    found = bool(_living(settings, record))
    if owner is not None and owner.is_alive():
        found = True
        os.kill(owner.pid, signal.SIGTERM)
        deadline = time.monotonic() + 2 * _GRACE_SECONDS
        while owner.is_alive() and time.monotonic() < deadline:
            time.sleep(0.1)
    _end_all(settings)
    return found


@contextmanager
def _owned(settings: Settings) -> Iterator[None]:
    """Be the only `up` of this project; what an earlier one that was killed left behind is ended first."""
    folder = _run_folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "services.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyUp(f"the services of {settings.root} run already; stop them with `retrace down`") from None
        _end_all(settings)
        yield


@contextmanager
def _stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """Take Ctrl-C, SIGTERM and a closed terminal as the wish to stop; a second one changes nothing."""
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, remember) for number in signals}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(settings: Settings, started: list[Started], is_stopped: Callable[[], bool], out: TextIO) -> None:
    """Start every service, adding it to `started`, and wait until it is ready or a signal asks to stop."""
    environ = _environment(settings)
    _prepare_database(settings, environ)
    services = _services(settings)
    _write_record(settings, started)
    print("starting Airflow and MLflow ...", file=out, flush=True)
    for service in services:
        started.append(_spawn(settings, service, environ))
        _write_record(settings, started)
    deadline = time.monotonic() + _START_SECONDS
    for service in services:
        while not is_stopped() and not service.is_ready():
            _check_alive(settings, started)
            if time.monotonic() > deadline:
                raise ServiceFailed(
                    f"{service.name} was not ready after {_START_SECONDS:.0f} s; see {_log(settings, service.name)}"
                )
            time.sleep(0.3)
    if not is_stopped():
        print(_addresses(settings), file=out, flush=True)


def _addresses(settings: Settings) -> str:
    return (
        f"Airflow  http://{LOOPBACK}:{settings.airflow_port}  (no login: reachable from this machine only)\n"
        f"MLflow   {_mlflow_address(settings)}\n"
        "Stop all with Ctrl-C here, or `retrace down` anywhere."
    )


def _mlflow_address(settings: Settings) -> str:
    return settings.mlflow if _has_server(settings) else f"http://{LOOPBACK}:{settings.mlflow_port}"


def _has_server(settings: Settings) -> bool:
    """Whether MLflow is a server of the user's own, which needs no UI of ours."""
    return settings.mlflow.startswith(("http://", "https://"))


def _environment(settings: Settings) -> dict[str, str]:
    address = f"http://{LOOPBACK}:{settings.airflow_port}"
    more = {
        **keys(settings.var),
        "AIRFLOW__API__BASE_URL": address,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
    }
    environ = environment(settings.var, settings.root / "dags", os.environ, more=more)
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(settings.root), environ.get("PYTHONPATH")]))
    environ[_MARK] = _mark(settings)
    environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # ten processes for features of no use here
    return environ


def _mark(settings: Settings) -> str:
    return str(settings.var)


def _prepare_database(settings: Settings, environ: Mapping[str, str]) -> None:
    prepare_embedded(settings.var, settings.stage_slots)
    if environ.get("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN") != sqlite_url(embedded_database(settings.var)):
        migrate(environ, settings.stage_slots, database_log(settings.var))


def _services(settings: Settings) -> list[Service]:
    """What is started. No triggerer: no task of ours defers."""
    airflow, mlflow = (str(Path(sys.executable).with_name(name)) for name in ("airflow", "mlflow"))
    port, mlflow_port = str(settings.airflow_port), str(settings.mlflow_port)
    _check_port(settings.airflow_port, "RETRACE_AIRFLOW_PORT")
    health = f"http://{LOOPBACK}:{port}/api/v2/monitor/health"
    services = [
        Service(
            "airflow-api-server",
            [airflow, "api-server", "--host", LOOPBACK, "--port", port, "--workers", "1"],
            lambda: _get(health) is not None,
        ),
        Service(
            "airflow-scheduler",
            [airflow, "scheduler", "--skip-serve-logs"],  # the API server reads the files themselves
            lambda: _is_healthy(health, "scheduler"),
        ),
        Service("airflow-dag-processor", [airflow, "dag-processor"], lambda: _is_healthy(health, "dag_processor")),
    ]
    if not _has_server(settings):
        _check_port(settings.mlflow_port, "RETRACE_MLFLOW_PORT")
        command = [mlflow, "server", "--host", LOOPBACK, "--port", mlflow_port, "--workers", "1"]
        command += ["--backend-store-uri", settings.mlflow]
        if settings.mlflow_artifacts is not None:
            command += ["--default-artifact-root", settings.mlflow_artifacts]
        address = f"http://{LOOPBACK}:{mlflow_port}/health"
        services.append(Service("mlflow", command, lambda: _get(address) is not None))
    return services


def _check_port(port: int, setting: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            raise PortBusy(
                f"port {port} is used by another program; stop that one, or set {setting} to a free port"
            ) from None


def _get(address: str) -> bytes | None:
    """What the address answers; None while it does not."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=5) as response:
            return bytes(response.read())
    except (urllib.error.URLError, OSError):
        return None


def _is_healthy(address: str, component: str) -> bool:
    answer = _get(address)
    return answer is not None and json.loads(answer)[component]["status"] == "healthy"


def _log(settings: Settings, name: str) -> Path:
    return settings.logs / "services" / f"{name}.log"


def _spawn(settings: Settings, service: Service, environ: Mapping[str, str]) -> Started:
    log = _log(settings, service.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            service.command,
            cwd=settings.var,  # not the project: what a library finds in the current folder must not change a service
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Started(service.name, process.pid, psutil.Process(process.pid).create_time())


def _check_alive(settings: Settings, started: Sequence[Started]) -> None:
    for service in started:
        if not service.is_alive():
            raise ServiceFailed(f"{service.name} ended by itself; see the end of {_log(settings, service.name)}")


def are_running(settings: Settings) -> bool:
    """Whether any of the servers that `retrace up` started lives, or what one of them started."""
    return bool(_living(settings, _read_record(settings)))


def _run_folder(settings: Settings) -> Path:
    return settings.var / "run"


def _record(settings: Settings) -> Path:
    return _run_folder(settings) / "services.json"


def _write_record(settings: Settings, started: Sequence[Started]) -> None:
    draft = _record(settings).with_suffix(".new")
    draft.write_text(json.dumps([asdict(service) for service in started], indent=1))
    draft.replace(_record(settings))


def _read_record(settings: Settings) -> list[Started]:
    try:
        entries: list[dict[str, Any]] = json.loads(_record(settings).read_text())
    except FileNotFoundError:
        return []
    return [Started(**entry) for entry in entries]


def _end_all(settings: Settings, known: Sequence[Started] = ()) -> None:
    """End every process of the services, recorded or known, and forget them: politely first, then without asking."""
    services = {*known, *_read_record(settings)}
    deadline = time.monotonic() + _GRACE_SECONDS
    asked: set[psutil.Process] = set()
    while living := _living(settings, services):
        overdue = time.monotonic() > deadline
        for process in living:
            if overdue:
                _send(process, signal.SIGKILL)
            elif process not in asked:
                asked.add(process)
                _send(process, signal.SIGTERM)
        psutil.wait_procs(living, timeout=0.2)
    _record(settings).unlink(missing_ok=True)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _living(settings: Settings, services: Iterable[Started]) -> list[psutil.Process]:
    """Every process of the services: those in one of their sessions, those that carry the mark, and all below them.

    The mark alone is not enough: a server that shows a title of its own overwrites its environment with it.
    """
    sessions = {one.pid for one in services if one.name != "up" and not one.is_replaced()}
    mark = _mark(settings)
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if _session(process) in sessions or _carries(process, mark):
                found.update({child.pid: child for child in (process, *process.children(recursive=True))})
        except psutil.NoSuchProcess:
            continue
    return [process for process in found.values() if process.pid != os.getpid() and _born(process.pid) is not None]


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except (ProcessLookupError, PermissionError):
        return None


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return bool(process.environ().get(_MARK) == mark)
    except (psutil.AccessDenied, psutil.ZombieProcess):
        return False
