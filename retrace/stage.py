"""Run one DVC stage of a run: the protocol of a stage task.

Given the commit that the previous task ended with: return what an earlier try already made; else check it out in a
workspace, let a child process run the stage in the environment that the commit locks, push the outputs to the DVC
remote, then commit, then move the run's ref by compare-and-swap. A failure is committed to the run's ref, too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retrace import environment, machine, manifest, preflight, stage_event
from retrace.config import Settings
from retrace.dvcfiles import LOCK, RAW, PipelineError, StageTemplate, entries_of, lock_entries, stages
from retrace.errors import RetraceError
from retrace.git import Git, Mirror, RefMoved, RefUpdate, escape_ref_part, message
from retrace.lineage import event
from retrace.process import Child, Job, run_job, waiting_child
from retrace.runs import COMPLETE, FAILED, Link, Task, chain, end_of, log_path
from retrace.workspace import Workspace, remote_of, workspace

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_FIXED = {
    **dict.fromkeys(_THREADS, "1"),
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "TZ": "UTC",
    "LC_ALL": "C.UTF-8",
    "LANG": "C.UTF-8",
    "SHELL": "/bin/sh",
}


@dataclass(frozen=True)
class StageResult:
    """Where the run stands after a stage; `executed` is false when nothing had to be done."""

    commit: str
    executed: bool


@dataclass(frozen=True)
class StageCall:
    """One stage of one run: what is run, from which commit, on which ref, within what time (seconds)."""

    task: Task
    ref: str
    commit: str
    stage: str
    timeout: float

    @property
    def model(self) -> str:
        return self.task.run.model

    @property
    def address(self) -> str:
        return f"{self.stage}@{self.model}"


def template_at(git: Git, commit: str, name: str) -> StageTemplate:
    """A stage of a commit's dvc.yaml. Raises `PipelineError`."""
    text = git.read(commit, "dvc.yaml")
    where = f"dvc.yaml of commit {commit[:8]}"
    found = {stage.name: stage for stage in stages(text.decode() if text else "", where)}
    if name not in found:
        raise PipelineError(f"{where} has no stage {name!r}; it has {', '.join(found)}")
    return found[name]


def run_stage(settings: Settings, call: StageCall, follow: Callable[[str], None] | None = None) -> StageResult:
    """Run a stage, or find that it has run or need not. `follow` hears of each phase.

    Raises the error that made it fail (`retrace.process`, `retrace.environment`), `RefMoved`, `RunUnknown`.
    """
    mirror = Mirror.open(settings.mirror, settings.origin)
    head = end_of(mirror, call.ref)
    made = next((link for link in chain(mirror, head) if link.stage == call.address and link.state == COMPLETE), None)
    if made is not None:
        return StageResult(made.commit, executed=False)
    _refuse_moved(mirror, call, head)
    if _unchanged(settings, mirror, call):
        return StageResult(call.commit, executed=False)
    began = datetime.now(UTC)
    key = f"{call.model}--{call.task.run.run_id}"
    with waiting_child(log_path(settings, call.task)) as child, workspace(settings, mirror, call.commit, key) as space:
        try:
            result = _execute(settings, mirror, call, space, child, follow)
        except RetraceError as error:
            _commit_failure(settings, mirror, call, head, space, began, error)
            raise
        if result["skipped"]:
            return StageResult(call.commit, executed=False)
        commit = _write(settings, mirror, call, head, space, result)
    made_by_now = publish(mirror, call, head, commit)
    shutil.rmtree(_run_cache(settings, call), ignore_errors=True)
    return StageResult(made_by_now, executed=True)


def _run_cache(settings: Settings, call: StageCall) -> Path:
    """Where DVC remembers what this run's tries made, until it is committed."""
    return settings.var / "runs" / escape_ref_part(call.ref)


def _unchanged(settings: Settings, mirror: Mirror, call: StageCall) -> bool:
    config = mirror.read(call.commit, ".dvc/config")
    folder = remote_of(settings, config.decode()).folder if config is not None else None
    if folder is None:
        return False
    template = template_at(mirror, call.commit, call.stage)
    return preflight.unchanged(mirror, call.commit, template, call.model, folder)


def _refuse_moved(mirror: Mirror, call: StageCall, head: str) -> None:
    """After the commit that this stage starts from there may be failures of earlier tries, and nothing else."""
    links = chain(mirror, head)
    commits = [link.commit for link in links]
    later: list[Link] = links[commits.index(call.commit) + 1 :] if call.commit in commits else links
    if call.commit not in commits or any(link.state != FAILED for link in later):
        raise RefMoved(f"{call.ref} does not continue {call.commit[:8]}: another task moved it; start a new run")


def _execute(
    settings: Settings,
    mirror: Mirror,
    call: StageCall,
    space: Workspace,
    child: Child,
    follow: Callable[[str], None] | None,
) -> dict[str, Any]:
    lock = environment.EnvironmentLock.of_commit(mirror, call.commit)
    if follow is not None and not (settings.environments / lock.digest[:16] / ".complete").exists():
        follow("environment")
    folder = environment.ensure(lock, settings.environments)
    request = {
        "operation": "stage",
        "address": call.address,
        "run_cache": str(_run_cache(settings, call)),
        "environment": stage_environment(folder, space.site_cache / "home", settings.var / "scratch"),
        "sha256": recorded_sha256(mirror, call.commit, call.model),
        "statistics": str(settings.var / "statistics"),
    }
    job = Job(call.address, space, request, log_path(settings, call.task), call.timeout)
    result = run_job(settings, job, follow, child)
    return {**result, "environment": lock.digest, "machine": machine.describe(folder)}


def stage_environment(environment: Path, home: Path, scratch: Path) -> dict[str, str]:
    """The variables that a stage's program sees: fixed where they could change a result, and no secret among them.

    `scratch` is where a stage may keep what lets it go on after an interruption.
    """
    home.mkdir(parents=True, exist_ok=True)
    workers = os.environ.get("RETRACE_WORKERS") or str(os.cpu_count() or 1)
    return {
        **_FIXED,
        "PATH": f"{environment / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "RETRACE_SCRATCH": str(scratch),
        "RETRACE_WORKERS": workers,
    }


def recorded_sha256(git: Git, commit: str, model: str) -> dict[str, str]:
    """File path -> sha256 of raw partitions (manifests) and of all that the model's stages made (their events)."""
    known: dict[str, str] = {}
    files = git.files(commit)
    manifests = [path for path in files if path.startswith(f"{RAW}/") and path.endswith(".manifest")]
    events = [path for path in files if path.startswith(f"lineage/{model}/")]
    contents = git.read_many([files[path] for path in (*manifests, *events)])
    for path, content in zip((*manifests, *events), contents, strict=True):
        assert content is not None
        if path in manifests:
            known |= {row.path: row.sha256 for row in manifest.parse_manifest(content.decode(), path)}
        else:
            for output in event.facts_of(content).get("outputs", ()):
                known |= {file["path"]: file["sha256"] for file in output["files"]}
    return known


def _write(
    settings: Settings, mirror: Mirror, call: StageCall, head: str, space: Workspace, result: dict[str, Any]
) -> str:
    """Commit what a stage made: its lock entry, its outputs that live in git, its event."""
    changes: dict[str, bytes | str | None] = {LOCK: (space.path / LOCK).read_bytes()}
    for path in result["uncached"]:
        changes |= _files_below(space.path, path)
    template = template_at(mirror, call.commit, call.stage)
    told = stage_event.completed(settings, mirror, call, template, space, result)
    changes[event.path(call.model, call.stage)] = told
    seconds = result["ended"] - result["started"]
    text = message(
        f"{call.address}: ran in {seconds:.1f} s",
        {"Retrace-Stage": call.address, "Retrace-State": COMPLETE, "Retrace-Run": call.task.run.run_id},
    )
    return mirror.write_commit(call.commit, changes, [head], text)


def _files_below(root: Path, path: str) -> dict[str, bytes | str | None]:
    place = root / path
    names = [name for name in place.rglob("*") if name.is_file()] if place.is_dir() else [place]
    return {name.relative_to(root).as_posix(): name.read_bytes() for name in names if name.is_file()}


def publish(mirror: Mirror, call: StageCall, head: str, commit: str) -> str:
    """Move the run's ref from `head`; the commit that has the stage's result then.

    Whoever lost the race to an equal result takes the winner's. Raises `RefMoved` when the winner's differs.
    """
    try:
        mirror.push([RefUpdate(call.ref, commit, head)])
    except RefMoved:
        now = end_of(mirror, call.ref)
        links = chain(mirror, now)
        winner = next((link for link in links if link.stage == call.address and link.state == COMPLETE), None)
        if winner is not None and _lock(mirror, winner.commit, call.model) == _lock(mirror, commit, call.model):
            return winner.commit
        if links[-1].state != FAILED or head not in [link.commit for link in links]:
            raise
        # An earlier try told of its failure meanwhile: that is part of the history and no result.
        return publish(mirror, call, now, mirror.write_commit(commit, {}, [now], mirror.message(commit)))
    return commit


def _lock(git: Git, commit: str, model: str) -> dict[str, dict[str, Any]]:
    return entries_of(lock_entries(git.read(commit, LOCK)), model)


def _commit_failure(
    settings: Settings,
    mirror: Mirror,
    call: StageCall,
    head: str,
    space: Workspace,
    started: datetime,
    error: RetraceError,
) -> None:
    """Keep a failure on the run's ref: the FAIL event, and the reports that the stage wrote before it failed."""
    changes: dict[str, bytes | str | None] = {}
    template = template_at(mirror, call.commit, call.stage)
    for path in template.uncached:
        changes |= _files_below(space.path, path.replace("${key}", call.model))
    told = stage_event.failed(settings, mirror, call, template, space, started, error)
    changes[event.path(call.model, call.stage)] = told
    trace = event.trace_of(told)
    if trace is not None:
        error.add_note(trace)
    text = message(
        f"{call.address}: failed",
        {
            "Retrace-Stage": call.address,
            "Retrace-State": FAILED,
            "Retrace-Run": call.task.run.run_id,
            "Retrace-Error": str(error).replace(str(settings.var), "var"),
        },
    )
    try:
        mirror.push([RefUpdate(call.ref, mirror.write_commit(call.commit, changes, [head], text), head)])
    except RetraceError as second:
        error.add_note(f"and the failure could not be kept on {call.ref}: {second}")
