"""One process with DVC loaded, for as long as a session lasts: each stage's child is forked from it in milliseconds.

Where many stages run in one process (`retrace retrain`, `retrace demo`) DVC is imported once instead of once a stage.
The session says in RETRACE_FORKSERVER_FD where its server listens; elsewhere, as on a worker, a child is a new process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from retrace.errors import RetraceError

VARIABLE = "RETRACE_FORKSERVER_FD"
_PAUSE = 0.001


class ForkserverGone(RetraceError):
    """The server has ended before its session."""


class Forked:
    """A child of the server's, with as much of `subprocess.Popen` as is needed of it."""

    def __init__(self, server: socket.socket, process: int, stdin: BinaryIO) -> None:
        self._server, self.pid = server, process
        self.stdin: BinaryIO | None = stdin
        self.returncode: int | None = None

    def wait(self) -> None:
        """Return when the child, which has been killed, is gone. Its number is its own until then."""
        if self.returncode is None:
            self._server.sendall(json.dumps({"reap": self.pid}).encode())
            while _is_there(self.pid):
                time.sleep(_PAUSE)
            self.returncode = -signal.SIGKILL
            self._server.close()


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def forkserver(environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """Start a server for this process; at the end of the block it is gone, with its children."""
    own, given = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output, own:
        with given:
            server = subprocess.Popen(
                [sys.executable, "-P", "-m", "retrace.child.server"],
                env=dict(environment),
                stdin=given.fileno(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        os.environ[VARIABLE] = str(own.fileno())
        try:
            yield
        finally:
            del os.environ[VARIABLE]
            with suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGKILL)
            server.wait()


def serves() -> bool:
    """Whether this process has a server."""
    return VARIABLE in os.environ


def fork(environment: Mapping[str, str], folder: Path, reports: int, log: BinaryIO) -> Forked:
    """A child of this process's server that reports to `reports`, on `retrace.child.server.REPORT_TO`."""
    server = socket.socket(fileno=os.dup(int(os.environ[VARIABLE])))
    reading, writing = os.pipe()
    request = json.dumps({"folder": str(folder), "environment": dict(environment)}).encode()
    try:
        socket.send_fds(server, [request], [reading, reports, log.fileno()])
        answer = server.recv(32)
    except ConnectionError:
        answer = b""
    finally:
        os.close(reading)
    if not answer:
        os.close(writing)
        server.close()
        raise ForkserverGone("the process that starts the stages of this session was killed; run this again")
    return Forked(server, int(answer), os.fdopen(writing, "wb"))
