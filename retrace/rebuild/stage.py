"""One stage of a rebuild: its view, its process in a sandbox, and what came of it."""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrace.process import DiskFull, StageTimeout, end_group, last_line
from retrace.rebuild import box, view, watch
from retrace.rebuild.conditions import Conditions
from retrace.rebuild.declared import Declared
from retrace.rebuild.sandbox import Kind, Sandbox, SandboxFailed, interpreter_folders, request
from retrace.stage import stage_environment
from retrace.workspace import remove_folder

_DISK_FULL = "No space left on device"
_ROOM = 1 << 20  # bytes: with less a stage may not even have been able to say why it failed


@dataclass(frozen=True)
class Surroundings:
    """What the stages of one rebuild share: where they are, in what environment and sandbox, within what time.

    `site` is a folder of the rebuild's own beside its tree; `timeout` is in seconds.
    """

    site: Path
    environment: Path
    kind: Kind
    conditions: Conditions
    logs: Path
    timeout: float | None = None

    @property
    def views(self) -> Path:
        return self.site / self.conditions.folder

    def log(self, stage: Declared) -> Path:
        return self.logs / f"{stage.address}.log"


@dataclass(frozen=True)
class Outcome:
    """How a stage's program ended: its exit code, its last line if that is not 0, seconds, and what it asked for
    without having declared it."""

    code: int
    said: str
    seconds: float
    undeclared: tuple[str, ...]
    view: Path


def run(tree: Path, stage: Declared, around: Surroundings) -> Outcome:
    """Run a stage in a view of a tree. Raises `StageTimeout`, `DiskFull`, `SandboxFailed`, `NotThere`."""
    place = around.views / stage.address
    view.make(tree, stage, place, linked=around.kind != "view")
    sandbox, folders = _sandbox(stage, place, around)
    told = folders["watch"] / f"{stage.address}.jsonl"
    conditions = around.conditions
    variables = {
        **stage_environment(around.environment, folders["home"], folders["scratch"]),
        **conditions.variables,
        "TMPDIR": str(folders["tmp"]),
        "PYTHONPATH": str(told.parent),
        watch.VARIABLE: str(told),
    }
    asked = request(sandbox, place, stage.command, variables, conditions.umask, conditions.host, conditions.processors)
    log = around.log(stage)
    began = time.monotonic()
    code = _boxed(asked, log, around.timeout, stage)
    seconds = time.monotonic() - began
    said = last_line(log) if code != 0 else ""
    if code != 0:
        _refuse_failure_of_the_machine(stage, said, place, log)
    allowed = (*sandbox.readable, *sandbox.writable)
    undeclared = watch.undeclared(
        watch.read(told),
        place,
        [path for path in allowed if not path.is_relative_to(place)],
        (*stage.dependencies, *stage.outputs, *stage.parameters),
    )
    return Outcome(code, said, seconds, tuple(undeclared), place)


def take_over(tree: Path, stage: Declared, outcome: Outcome, linked: bool) -> bool:
    """Put what a stage made into the tree for the stages after it; whether all of it is there."""
    for path in stage.outputs:
        if not (outcome.view / path).exists():
            return False
        view.place(outcome.view / path, tree / path, linked=linked)
    return True


def _refuse_failure_of_the_machine(stage: Declared, said: str, *places: Path) -> None:
    if _DISK_FULL in said or any(shutil.disk_usage(place).free < _ROOM for place in places):
        raise DiskFull(f"no space left on this machine while {stage.address} was rebuilt; free some and run this again")
    if said.startswith(("bwrap: ", box.FAILED)):
        raise SandboxFailed(f"{stage.address} could not be shut in: {said}; see whether this machine can do it at all")


@contextmanager
def disk_full_told(var: Path) -> Iterator[None]:
    """Turn what a full disk raises, be it out of the copying of a whole folder, into `DiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC and not (isinstance(error, shutil.Error) and _DISK_FULL in str(error)):
            raise
        raise DiskFull(f"no space left on this machine; free some below {var} and run this again") from None


def _sandbox(stage: Declared, place: Path, around: Surroundings) -> tuple[Sandbox, dict[str, Path]]:
    folders = {
        "home": around.site / around.conditions.home,
        "tmp": around.views.parent / "tmp",
        "scratch": around.views.parent / "scratch",  # nothing is gone on with in a rebuild
        "watch": around.site / "watch",
    }
    for folder in folders.values():
        if folder.exists():  # what an earlier stage left in it would be an input that no stage declares
            remove_folder(folder)
        folder.mkdir(parents=True)
    (folders["watch"] / "sitecustomize.py").write_text(watch.SITE)
    outputs = dict.fromkeys((place / path).parent for path in stage.outputs)
    readable = (place, *interpreter_folders(around.environment))
    return Sandbox(around.kind, readable, (*outputs, *folders.values())), folders


def _boxed(asked: dict[str, Any], log: Path, timeout: float | None, stage: Declared) -> int:
    """The exit code of a stage's program, negative for a signal; nothing that it started is left."""
    log.parent.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(box.__file__))],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(writing,),
            start_new_session=True,
        )
    os.close(writing)
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps({**asked, "report_to": writing}).encode() + b"\n")
        process.stdin.flush()
        if not select.select([reading], [], [], timeout)[0]:
            raise StageTimeout(
                f"{stage.address} ran longer in its rebuild than the {(timeout or 0) / 60:g} minutes of its model's "
                f"timeout_minutes and was stopped; run this on a machine that is less busy; its log is {log}"
            )
        said = os.read(reading, 16)
    finally:
        end_group(process)
        os.close(reading)
    return int(said) if said else -signal.SIGKILL
