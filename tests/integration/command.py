"""The command `retrace` as a user starts it, on toy projects that MLflow takes and that have all their databases."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from projects import ROOT, Project, processes_of

from retrace.airflow.database import prepare_embedded

PATIENCE = 120.0


def seed(var: Path) -> None:
    """Migrate Airflow's databases."""
    prepare_embedded(var, 2)


def copy_seed(seeded: Path, var: Path) -> None:
    """Give a project its own copy of Airflow's databases that were migrated before."""
    shutil.copytree(seeded / "airflow", var / "airflow", ignore=shutil.ignore_patterns("*.lock"))


def served(root: Path, environments: Path, seeded: Path) -> Project:
    """The toy with January to March 2013 in its source; its lock pins what MLflow wants to know: a scikit-learn."""
    project = Project.make(root, environments)
    lock = (ROOT / "pipeline/requirements.txt").read_text()
    pinned = re.search(r"^scikit-learn==.*\n(?:    --hash.*\n)+", lock, re.MULTILINE)
    assert pinned is not None
    (root / "pipeline/requirements.txt").write_text(pinned[0])
    project.commit("MLflow can serve it")
    copy_seed(seeded, root / "var")
    for month in ("2013-01", "2013-02", "2013-03"):
        project.fill(month)
    return project


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


class Command:
    """A running `retrace`, in a session of its own as from a terminal."""

    def __init__(self, folder: Path, *arguments: str, stdin: int = subprocess.DEVNULL, **environ: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RETRACE_", "AIRFLOW_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "retrace.cli", *arguments],
            cwd=folder,
            env={**kept, "PYTHONPATH": str(ROOT), **environ},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def done(self) -> Done:
        """Wait for its end."""
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        return Done(self.process.returncode, out, err)

    def line(self, containing: str) -> str:
        """Read its output up to a line that contains a text."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if containing in line:
                return line
        raise AssertionError(f"ended without saying {containing!r}: {self.done()}")


def retrace(project: Project, *arguments: str, **environ: str) -> Done:
    """Run a command to its end."""
    return Command(project.root, *arguments, **environ).done()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that is sure to come, or fail."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def hold(project: Project, model: str) -> None:
    """Make stages of this model with the action `wait` wait (again)."""
    for name in (f"{model}.pid", f"{model}.go"):
        (project.settings.var / "scratch" / name).unlink(missing_ok=True)


def let_go(project: Project, model: str) -> None:
    """Let a stage that waits, and all later ones, go on."""
    (project.settings.var / "scratch" / f"{model}.go").touch()


def wait_for_stage(project: Project, model: str) -> int:
    """Wait until a stage of the model waits; its process."""
    path = project.settings.var / "scratch" / f"{model}.pid"
    until(lambda: path.exists() and path.read_text() != "", f"a waiting stage of {model}")
    return int(path.read_text())


def runs(process: int) -> bool:
    """Whether a process lives; dead ones may stay in the table until somebody asks how they ended."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left_behind(project: Project) -> list[str]:
    """Processes, workspaces and leases: what a run must not leave."""
    places = [str(path) for path in project.settings.workspaces.iterdir()]
    return processes_of(project.root) + places + [ref for ref in project.refs() if ref.startswith("refs/locks/")]
