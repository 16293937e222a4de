"""Versions forged of the toy's first one: another program, another lock, in milliseconds and without a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from projects import Project

from retrace import versions, yaml12
from retrace.dvcfiles import LOCK
from retrace.hashing import md5_of
from retrace.versions import Version

PROGRAM = "pipeline/stage.py"
Changes = Mapping[str, bytes | str | None]


def forge(project: Project, changes: Changes) -> Version:
    """alpha@v2: the commit of alpha@v1 with files changed, and nothing made good elsewhere."""
    mirror = project.mirror
    first = versions.find(mirror, "alpha@v1")
    commit = mirror.write_commit(first.commit, changes, [first.commit], "by hand")
    trailers = {"Retrace-Run": first.run_id, "Retrace-Run-Ref": first.run_ref, "Retrace-Data": first.data}
    return versions.create(mirror, "alpha", commit, "by hand", trailers)


def with_files(project: Project, files: Mapping[str, bytes]) -> Version:
    """alpha@v2: with other dependencies than alpha@v1, which dvc.lock knows; what was made of them stays recorded."""
    mirror = project.mirror
    commit = versions.find(mirror, "alpha@v1").commit
    lock = mirror.read(commit, LOCK) or b""
    for path, content in files.items():
        before = md5_of(mirror.read(commit, path) or b"").encode()
        assert before in lock
        lock = lock.replace(before, md5_of(content).encode())
    return forge(project, {**files, LOCK: lock})


def with_program(project: Project, stage: str, line: str) -> Version:
    """alpha@v2: a version whose stage begins with this line."""
    return with_files(project, {PROGRAM: beginning(project, stage, line)})


def beginning(project: Project, stage: str, line: str) -> bytes:
    """The toy's program with a line at the beginning of a stage."""
    code = (project.root / PROGRAM).read_text()
    head = f"def {stage}(model: str) -> None:\n"
    assert head in code
    return code.replace(head, f"{head}    {line}\n").encode()


def lock_of(project: Project) -> dict[str, Any]:
    """dvc.lock of alpha@v1."""
    mirror = project.mirror
    text = mirror.read(versions.find(mirror, "alpha@v1").commit, LOCK) or b""
    return dict(yaml12.load(text.decode()))


def with_lock(project: Project, change: Callable[[dict[str, Any]], object]) -> Version:
    """alpha@v2: somebody edited the stages in dvc.lock."""
    lock = lock_of(project)
    change(lock["stages"])
    return forge(project, {LOCK: yaml12.dump(lock).encode()})


def with_event(project: Project, stage: str, change: Callable[[dict[str, Any]], object]) -> Version:
    """alpha@v2: somebody edited the facts in the event of a stage."""
    mirror, path = project.mirror, f"lineage/alpha/{stage}.json"
    told = json.loads(mirror.read(versions.find(mirror, "alpha@v1").commit, path) or b"")
    change(told["run"]["facets"]["retrace"])
    return forge(project, {path: json.dumps(told).encode()})


def stored(project: Project, md5: str) -> Path:
    """An object of the DVC remote."""
    return project.settings.var / "remote/files/md5" / md5[:2] / md5[2:]


def partition(project: Project, month: str) -> tuple[str, str]:
    """The path and the md5 of a partition."""
    text = (project.mirror.read("refs/heads/data", "data/raw/events.manifest") or b"").decode()
    path, md5 = next(line.split()[:2] for line in text.splitlines() if f"/{month}." in line)
    return path, md5
