"""Projects in temporary folders for the engine's tests: the toy domain, real git, real DVC, a real SQLite source."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from retrace import gate, ingest, register, runs, stage
from retrace.config import IngestSettings, Settings
from retrace.git import Git, Mirror
from retrace.intervals import Interval
from retrace.manifest import Partition
from retrace.runs import Run, Task
from retrace.sources.sql import fetch_partition
from retrace.versions import Version

ROOT = Path(__file__).resolve().parents[1]
TOY = Path(__file__).resolve().parent / "toy"
STAGES = ("validate", "features", "train", "evaluate")


def day(text: str) -> datetime:
    """A date as a moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def write_blob(repository: Git, content: bytes) -> str:
    """Store a file's bytes; the blob's id."""
    return repository.out("hash-object", "-w", "--stdin", stdin=content)


def git(folder: Path, *arguments: str) -> str:
    """Run git as a user would, with an identity of the test's own."""
    identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@dataclass
class Project:
    """A checkout that is its own origin, with a source database of events."""

    root: Path
    settings: Settings

    @classmethod
    def make(cls, root: Path, environments: Path) -> Project:
        """The toy project, committed; environments are shared by all tests of a session."""
        shutil.copytree(TOY, root)
        for name in (".dvc", ".dvcignore", ".gitignore", "data", "dags"):
            source = ROOT / name
            ignore = shutil.ignore_patterns("tmp", "cache", "config.local", "__pycache__", "*.dvc", "*.manifest")
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=ignore)
            else:
                shutil.copy(source, root / name)
        for name in ("features", "predictions"):
            shutil.rmtree(root / "data" / name, ignore_errors=True)
        git(root, "init", "-q", "-b", "main")
        (root / "var").mkdir()
        (root / "var/environments").symlink_to(environments)
        project = cls.at(root)
        project.commit("project")
        return project

    @classmethod
    def at(cls, root: Path) -> Project:
        """The project that was made in a folder."""
        return cls(root, Settings.load(root, {}))

    def copy(self, root: Path) -> Project:
        """The same project with all its state in another folder."""
        shutil.copytree(self.root, root, symlinks=True)
        return Project.at(root)

    @property
    def mirror(self) -> Mirror:
        mirror = Mirror.open(self.settings.mirror, self.settings.origin)
        mirror.fetch_record()
        return mirror

    @property
    def git(self) -> Git:
        return Git(self.root)

    @property
    def params(self) -> dict[str, Any]:
        return dict(json.loads((self.root / "params.yaml").read_text()))

    def commit(self, text: str = "change") -> str:
        """Commit everything that is not ignored."""
        git(self.root, "add", "-A")
        git(self.root, "commit", "-q", "--allow-empty", "-m", text)
        return git(self.root, "rev-parse", "HEAD")

    def edit_params(self, change: Callable[[dict[str, Any]], None], text: str = "params") -> str:
        """Change params.yaml and commit it."""
        params = self.params
        change(params)
        (self.root / "params.yaml").write_text(json.dumps(params, indent=1))
        return self.commit(text)

    def act(self, model: str, stage_name: str, action: str | None) -> str:
        """Make a stage of the toy do something wrong, or (None) right again."""
        return self.edit_params(lambda params: params["models"][model][stage_name].update(action=action))

    def report(self, model: str, report: dict[str, Any], fails: bool) -> str:
        """Make the toy's validation write this report, and fail or not."""
        action = "exit" if fails else None
        return self.edit_params(lambda params: params["models"][model]["validate"].update(report=report, action=action))

    @property
    def source(self) -> Path:
        return self.settings.var / "source.db"

    def fill(self, month: str, rows: int = 10, size: float = 1.0) -> None:
        """Put a month of events into the source, in place of what was there for it."""
        with sqlite3.connect(self.source) as database:
            database.execute("CREATE TABLE IF NOT EXISTS events (moment TEXT, name TEXT, size REAL)")
            database.execute("DELETE FROM events WHERE moment LIKE ?", (f"{month}%",))
            values = [(f"{month}-{1 + n % 28:02d} 00:00:00", f"event {n}", size * n) for n in range(rows)]
            database.executemany("INSERT INTO events VALUES (?, ?, ?)", values)

    def fetch(self, settings: IngestSettings, name: str, interval: Interval, root: Path, path: str) -> Partition:
        """How ingestion reads this project's source, without Airflow."""
        url = URL.create("sqlite", database=str(self.source))
        return fetch_partition(url, settings.datasets[name], interval.start, interval.end, root, path)

    def ingest(self, until: str, since: str | None = None) -> list[ingest.Ingested]:
        """Bring the branch data up to a date."""
        call = ingest.IngestCall(day(until), day(since) if since else None, f"ingest {until}", str(uuid.uuid4()))
        return ingest.ingest(self.settings, call, self.fetch, lambda _: None)

    def task(self, model: str, run_id: str, job: str, attempt: int = 1) -> Task:
        """A task as Airflow would name it; the lineage run id is derived from the rest."""
        name = f"{model}/{run_id}/{job}/{attempt}"
        return Task(Run(model, run_id), job, str(uuid.uuid5(uuid.NAMESPACE_URL, name)), attempt)

    def snapshot(self, model: str, run_id: str, as_of: str | None = None, backfill: bool = False) -> str:
        task = self.task(model, run_id, "snapshot")
        return runs.snapshot(self.settings, task, as_of=day(as_of) if as_of else None, backfill=backfill)

    def stage(
        self, model: str, run_id: str, name: str, commit: str, timeout: float = 300.0, attempt: int = 1
    ) -> stage.StageResult:
        task = self.task(model, run_id, name, attempt)
        call = stage.StageCall(task=task, ref=task.run.ref, commit=commit, stage=name, timeout=timeout)
        return stage.run_stage(self.settings, call)

    def stages(self, model: str, run_id: str, as_of: str | None = None, backfill: bool = False) -> str:
        """Snapshot and all stages; the last commit."""
        commit = self.snapshot(model, run_id, as_of, backfill)
        for name in STAGES:
            commit = self.stage(model, run_id, name, commit).commit
        return commit

    def retrain(
        self, model: str, run_id: str, as_of: str | None = None, backfill: bool = False
    ) -> tuple[Version, gate.Decision | None]:
        """A whole retrain by the engine alone: the version, and what the gate said."""
        commit = self.stages(model, run_id, as_of, backfill)
        version = register.register(self.settings, self.task(model, run_id, "register"), commit).version
        return version, gate.gate(self.settings, self.task(model, run_id, "gate"), version.commit)

    def refs(self) -> dict[str, str]:
        """Every ref of the origin."""
        lines = git(self.root, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
        return dict(line.split() for line in lines)


def processes_of(folder: Path) -> list[str]:
    """The command lines of processes whose working directory lies below a folder: what a run left behind."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            cwd, line = os.readlink(place / "cwd"), (place / "cmdline").read_bytes()
        except OSError:
            continue
        if Path(cwd.removesuffix(" (deleted)")).is_relative_to(folder):
            found.append(line.replace(b"\0", b" ").decode())
    return found
