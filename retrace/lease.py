"""One retrain of a model at a time: a lease kept as a ref of the origin, so that it holds across machines.

`refs/locks/<model>` points to a commit that names the run, when the lease ends, and for a run in one process that
process. It is taken and renewed by compare-and-swap. A lease is free when its time is over; one with a process of this
machine is free when that process is dead, and not before.
"""

from __future__ import annotations

import json
import os
import platform
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from retrace.errors import TransientError
from retrace.git import ABSENT, Mirror, RefMoved, RefUpdate

_PUBLICATION_MINUTES = 15.0
IN_PROCESS = "retrace_process"  # the key in a DAG run's conf that says that the run lives in a single process


class ModelBusy(TransientError):
    """Another retrain of the model is under way."""


@dataclass(frozen=True)
class Lease:
    """Who retrains a model until when; `process` (host, id, start) for a run that lives in a single process."""

    run_id: str
    until: str
    process: str | None = None

    def free(self) -> bool:
        """Whether nobody is behind it any more, as far as this machine can tell."""
        if self.process is not None and self.process.startswith(f"{platform.node()} "):
            return not _alive(self.process)
        return datetime.fromisoformat(self.until) < datetime.now(UTC)


def this_process() -> str:
    """The identity of this process: host, id and start time, so that a reused id is not taken for it."""
    return f"{platform.node()} {os.getpid()} {_start_time(os.getpid())}"


def _start_time(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "0"


def _alive(process: str) -> bool:
    _, pid, start = process.rsplit(" ", 2)
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _start_time(int(pid)) == start


def _ref(model: str) -> str:
    return f"refs/locks/{model}"


def holder(mirror: Mirror, model: str) -> tuple[str, Lease] | None:
    """The lease on a model and the commit that it is kept in, or None."""
    commit = mirror.fetch_ref(_ref(model))
    if commit is None:
        return None
    return commit, Lease(**json.loads(mirror.message(commit)))


def take(mirror: Mirror, model: str, run_id: str, minutes: float, process: str | None = None) -> None:
    """Take the lease for a run for so many minutes, or renew it, unless that would give it less than a tenth more.

    Raises `ModelBusy` while another run holds it.
    """
    until = datetime.now(UTC) + timedelta(minutes=minutes)
    held = holder(mirror, model)
    old = ABSENT
    if held is not None:
        old, lease = held
        other = lease.run_id != run_id or (process is not None and lease.process not in (None, process))
        if other and not lease.free():
            raise ModelBusy(f"{model} is being retrained by {lease.run_id}; wait for it to end")
        process = process or (lease.process if lease.run_id == run_id else None)
        more = until - datetime.fromisoformat(lease.until)
        if (lease.run_id, lease.process) == (run_id, process) and timedelta(0) <= more < timedelta(
            minutes=minutes / 10
        ):
            return
    lease = Lease(run_id, until.isoformat(timespec="seconds"), process)
    commit = mirror.write_commit(None, {}, [], json.dumps(asdict(lease)) + "\n")
    try:
        mirror.push([RefUpdate(_ref(model), commit, old)])
    except RefMoved:
        raise ModelBusy(f"{model} is being retrained by another run, which was faster; wait for it to end") from None


@contextmanager
def publication(mirror: Mirror, model: str) -> Iterator[None]:
    """Hold the right to write a model's versions to MLflow: two writers at once could burn a version number.

    Raises `ModelBusy`.
    """
    name, writer = f"{model}.publish", str(uuid.uuid4())
    try:
        take(mirror, name, writer, _PUBLICATION_MINUTES, this_process())
    except ModelBusy:
        raise ModelBusy(
            f"the versions of {model} are being written to MLflow by another process; wait for it to end"
        ) from None
    try:
        yield
    finally:
        release(mirror, name, writer)


def release(mirror: Mirror, model: str, run_id: str) -> None:
    """Give the lease up if this run holds it."""
    held = holder(mirror, model)
    if held is None or held[1].run_id != run_id:
        return
    try:
        mirror.push([RefUpdate(_ref(model), ABSENT, held[0])])
    except RefMoved:
        return
