"""Start DVC's work in a process group of its own, follow it, and end the whole group whatever happens."""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from retrace import tombstones
from retrace.child.server import REPORT_TO
from retrace.config import Settings
from retrace.errors import RetraceError, TransientError
from retrace.forkserver import Forked, fork, serves
from retrace.git import Mirror
from retrace.workspace import Remote, Workspace, remote_of


class StageFailed(RetraceError):
    """The stage's program ended with an error."""


class StageTimeout(RetraceError):
    """The stage ran longer than params.yaml allows."""


class InputEdited(RetraceError):
    """The stage changed something that it reads."""


class UndeclaredWrite(RetraceError):
    """The stage wrote outside its declared outputs."""


class OutputMissing(RetraceError):
    """The stage's program ended well and did not write what dvc.yaml declares."""


class DependencyMissing(RetraceError):
    """A dependency is in no commit and is made by nothing."""


class ObjectLost(RetraceError):
    """An object that the record names is in neither cache nor remote."""


class Forgotten(RetraceError):
    """An object that a person's request removed for good."""


class ObjectCorrupt(RetraceError):
    """An object's bytes are not what the record says."""


class RemoteUnavailable(TransientError):
    """The DVC remote does not answer."""


class RemoteRefused(RetraceError):
    """The DVC remote answers and refuses."""


class RemoteFailed(TransientError):
    """The DVC remote failed in a way that may pass."""


class DiskFull(RetraceError):
    """No space is left on this machine."""


class ChildDied(RetraceError):
    """DVC's process ended without a result."""


_MESSAGES: dict[str, tuple[type[RetraceError], str]] = {
    "input-edited": (InputEdited, "{what} changed its own input {path}; a stage may only write its outs in dvc.yaml"),
    "undeclared-write": (
        UndeclaredWrite,
        "{what} wrote {path}, which is none of its outs in dvc.yaml; declare it there",
    ),
    "output-missing": (
        OutputMissing,
        "{what} did not write {path}, which dvc.yaml declares; write it, or take it out there",
    ),
    "dependency-missing": (
        DependencyMissing,
        "{what} depends on {path}, which no commit holds and no stage has made; add it to git, or to the outs of a "
        "stage in dvc.yaml",
    ),
    "object-lost": (
        ObjectLost,
        "{path} (md5 {md5}) is neither in this machine's cache nor in the DVC remote {remote}; {count} missing in all; "
        "push it from a machine that has it",
    ),
    "forgotten": (
        Forgotten,
        "{what}: {path} (md5 {md5}) was removed on request {ticket} and must not come back; go on with data, or with a "
        "version, that is without it",
    ),
    "object-corrupt": (
        ObjectCorrupt,
        "{path} (md5 {md5}) in {where} is not what the record says and was not used; replace it from a good copy",
    ),
    "not-deleted": (
        RemoteRefused,
        "the DVC remote {remote} still has {count} objects (md5 {md5} is one) after they were deleted; check that it "
        "allows to delete, then run this again",
    ),
    "remote-unavailable": (
        RemoteUnavailable,
        "the DVC remote {remote} does not answer ({reason}); check that it is up, then run this again",
    ),
    "remote-refused": (
        RemoteRefused,
        "the DVC remote {remote} refused ({reason}); check the credentials in the environment or .dvc/config.local",
    ),
    "remote-failed": (RemoteFailed, "the DVC remote {remote} failed: {reason}"),
    "disk-full": (DiskFull, "no space left on this machine ({reason}); free some below {var} and run this again"),
    "unexpected": (ChildDied, "{what} could not be run: {reason}; the full log is {log}"),
}


_DVC_LINES = re.compile(r"ERROR: failed|Running stage|(Updating|Generating) lock file|Use `dvc push`|> |--- ")


@dataclass(frozen=True)
class Job:
    """What a child process is to do in a workspace, and how its failures are told."""

    what: str
    workspace: Workspace
    request: Mapping[str, Any]
    log: Path
    timeout: float | None = None


def _endpoint(remote: Remote) -> str | None:
    """The HTTP address whose silence means that the remote is down; None for a folder."""
    if not remote.url.startswith("s3://"):
        return None
    if "endpointurl" in remote.options:
        return remote.options["endpointurl"]
    region = remote.options.get("region", os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
    return (
        os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or f"https://s3.{region}.amazonaws.com"
    )


@dataclass(frozen=True)
class Child:
    """DVC's process, which waits for its job on standard input; `reports` is where it says what it does."""

    process: subprocess.Popen[bytes] | Forked
    reports: int
    report_to: int


@contextmanager
def waiting_child(log: Path) -> Iterator[Child]:
    """Start DVC's process; at the end of the block nothing of it is left.

    A new one imports DVC while others go on; the server of a session forks one that has it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    try:
        with open(log, "ab") as output:
            if serves():
                child = Child(fork(child_environment(), log.parent, writing, output), reading, REPORT_TO)
            else:
                child = Child(_started(log.parent, writing, output), reading, writing)
    finally:
        os.close(writing)
    try:
        yield child
    finally:
        end_group(child.process)
        os.close(reading)


def _started(folder: Path, writing: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "retrace.child"],
        cwd=folder,
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        pass_fds=(writing,),
        start_new_session=True,
    )


def run_job(
    settings: Settings, job: Job, follow: Callable[[str], None] | None = None, child: Child | None = None
) -> dict[str, Any]:
    """Run a job to its end, by a child that waits for it or a new one; its result. `follow` hears of each phase.

    Raises the error that its failure is, after everything that it started has ended.
    """
    if child is None:
        with waiting_child(job.log) as child:
            return run_job(settings, job, follow, child)
    committed = (job.workspace.path / ".dvc/config").read_text()
    remote = remote_of(settings, committed)
    request = {
        **job.request,
        "workspace": str(job.workspace.path),
        "site_cache": str(job.workspace.site_cache),
        "report_to": child.report_to,
        "remote": {"shown": remote.shown, "endpoint": _endpoint(remote)},
        "forgotten": tombstones.forbidden(_tombstones(settings), job.workspace.path),
    }
    try:
        assert child.process.stdin is not None
        with suppress(BrokenPipeError):  # it died at once: what it reports, nothing, says so
            child.process.stdin.write(json.dumps(request).encode() + b"\n")
            child.process.stdin.flush()
        message = _follow(child.reports, job, follow)
    finally:
        end_group(child.process)
    if "done" in message:
        return dict(message["done"])
    raise _error(settings, job, message)


def _tombstones(settings: Settings) -> dict[str, tombstones.Tombstone]:
    """As the origin has them at this moment: this machine's cache may hold what another one has just removed."""
    return tombstones.current(Mirror.open(settings.mirror, settings.origin))


def child_environment() -> dict[str, str]:
    """What DVC's process finds in its environment: its secrets, too; a stage's program sees none of it."""
    package = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": package, "DVC_NO_ANALYTICS": "1", "SHELL": "/bin/sh"}


def _follow(reading: int, job: Job, follow: Callable[[str], None] | None) -> dict[str, Any]:
    """Read messages until the result; a stage's time counts while its program runs, not while data moves."""
    pending = b""
    deadline: float | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while True:
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not selector.select(wait):
                return {"error": "timeout"}
            block = os.read(reading, 1 << 16)
            if not block:
                return {"error": "died"}
            *lines, pending = (pending + block).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "phase" not in message:
                    return dict(message)
                if follow is not None:
                    follow(message["phase"])
                running = message["phase"] == "run" and job.timeout is not None
                deadline = time.monotonic() + job.timeout if running and job.timeout is not None else None


def end_group(child: subprocess.Popen[bytes] | Forked) -> None:
    """Kill the child and all that it started, and return when none of them runs any more."""
    if child.returncode is not None:
        return  # done before; its number may be another's by now
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    if child.stdin is not None:
        with suppress(BrokenPipeError):
            child.stdin.close()
    child.wait()
    while _runs(child.pid):
        time.sleep(0.01)


def _runs(group: int) -> bool:
    """Whether a process of the group lives; one that is dead and waits for its parent to look does not."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


_TRACEBACK = "Traceback (most recent call last):"
_TRACE_BYTES = 65536


def last_line(log: Path) -> str:
    """The last line in a log that says something, shortened; what a stage's program ended with."""
    if not log.exists():
        return "no output"
    with open(log, "rb") as handle:
        handle.seek(max(0, log.stat().st_size - 65536))
        lines = [line.strip() for line in handle.read().decode(errors="replace").splitlines()]
    said = [line for line in lines if line and not _DVC_LINES.match(line)]
    return said[-1][:600] if said else "no output"


def traceback_of(log: Path, address: str) -> str | None:
    """What a stage's program told of its error in its last run, from the traceback on; None if it told of none."""
    with open(log, "rb") as handle:
        handle.seek(max(0, log.stat().st_size - _TRACE_BYTES))
        said = handle.read().decode(errors="replace").rpartition(f"--- {address}\n")[2]
    _, found, rest = said.partition(_TRACEBACK)
    if not found:
        return None
    lines = [line for line in rest.splitlines() if not _DVC_LINES.match(line.strip())]
    return "\n".join([found, *lines[1:]]).rstrip()


def _error(settings: Settings, job: Job, message: dict[str, Any]) -> RetraceError:
    kind = message["error"]
    if kind == "timeout":
        minutes = (job.timeout or 0) / 60
        return StageTimeout(
            f"{job.what} ran longer than {minutes:g} minutes and was stopped; raise its model's timeout_minutes in "
            f"params.yaml or make it faster; its log is {job.log}"
        )
    if kind == "stage-failed":
        code = int(message["code"])
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return StageFailed(f"{job.what} {ended}: {last_line(job.log)} (the full log is {job.log})")
    if kind == "died":
        return ChildDied(f"{job.what} was killed before it finished; its log is {job.log}")
    raised, text = _MESSAGES[kind]
    facts = {"what": job.what, "log": str(job.log), "var": str(settings.var), **message}
    return raised(text.format(**facts))
