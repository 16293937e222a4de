"""A run: one retrain, a ref with one commit per stage. Its first commit is the snapshot where code and data meet.

The snapshot's tree is the code's, with `data/raw` from the branch `data`; its parents are the two. It carries the
newest version's entries of dvc.lock (with metrics, plots and events) for every model, so that stages whose inputs did
not change are recognised, and a tag's `dvc checkout` finds every output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retrace import manifest
from retrace.config import Params, Settings, parse_params
from retrace.dvcfiles import (
    LOCK,
    RAW,
    check_parameters,
    entries_of,
    lock_entries,
    lock_text,
    output_md5s,
    pointer_md5,
    stages,
)
from retrace.errors import RetraceError
from retrace.git import ABSENT, Git, GitError, Mirror, RefMoved, RefUpdate, escape_ref_part, message, trailer
from retrace.lineage import event
from retrace.lineage.jobs import documentation
from retrace.lineage.project import project_at
from retrace.verdicts import forgotten
from retrace.versions import versions

DATA_BRANCH = "refs/heads/data"
INGEST_EVENT = f"{RAW}/ingest.json"  # of the commit that holds it
THROUGH = "Data-Through"
SNAPSHOT = "snapshot"
COMPLETE, FAILED = "complete", "failed"


class NoData(RetraceError):
    """The branch `data` has nothing for what is asked."""


class CodeIsARun(RetraceError):
    """What is to be trained is a commit of a run, not of people's code."""


class RunUnknown(RetraceError):
    """The origin has no such run."""


@dataclass(frozen=True)
class Run:
    """One retrain of a model; `run_id` is Airflow's."""

    model: str
    run_id: str

    @property
    def ref(self) -> str:
        return f"refs/runs/{self.model}/{escape_ref_part(self.run_id)}"


@dataclass(frozen=True)
class Task:
    """One try of one task: what Airflow calls it, for events and records."""

    run: Run
    job: str
    lineage_run_id: str
    attempt: int = 1
    parent: event.Parent | None = None

    @property
    def lineage_job(self) -> str:
        """What lineage calls the job: Airflow's DAG and task."""
        return f"{self.run.model}.{self.job}"


def log_path(settings: Settings, task: Task) -> Path:
    """The log of a task on this machine."""
    return settings.logs / task.run.model / escape_ref_part(task.run.run_id) / f"{task.job}.log"


@dataclass(frozen=True)
class Link:
    """One commit of a run."""

    commit: str
    stage: str
    state: str


def end_of(mirror: Mirror, ref: str) -> str:
    """The last commit of a run. Raises `RunUnknown`."""
    head = mirror.fetch_ref(ref)
    if head is None:
        raise RunUnknown(f"the origin has no {ref}; the run's snapshot is missing: start the run again")
    return head


def chain(git: Git, head: str) -> list[Link]:
    """The commits of a run, from its snapshot to `head`."""
    form = (
        "%H%x1f%(trailers:key=Retrace-Stage,valueonly,separator=)%x1f%(trailers:key=Retrace-State,valueonly,separator=)"
    )
    links = []
    for line in git.out("log", "--first-parent", f"--format={form}", head, "--").splitlines():
        commit, stage, state = line.split("\x1f")
        if not stage:
            break
        links.append(Link(commit, stage, state))
        if stage == SNAPSHOT:
            break
    return links[::-1]


def code_commit(settings: Settings, mirror: Mirror) -> str:
    """The commit that is trained: the origin's HEAD, or what RETRACE_CODE_REF names there. Raises `GitError`."""
    if settings.code_ref == "HEAD":
        mirror.fetch("+HEAD:refs/retrace/head")
        found = mirror.resolve("refs/retrace/head")
    else:
        names = (f"refs/heads/{settings.code_ref}", f"refs/tags/{settings.code_ref}", settings.code_ref)
        found = next((commit for commit in map(mirror.resolve, names) if commit), None)
    if found is None:
        raise GitError(f"{settings.code_ref} names no commit in the origin; set RETRACE_CODE_REF to a branch or tag")
    return found


def params_at(git: Git, commit: str) -> Params:
    """params.yaml of a commit, checked, also against its dvc.yaml.

    Raises `ConfigError`, `PipelineError` or `GitError`.
    """
    where = f"of commit {commit[:8]}"
    text, pipeline = git.read_many([f"{commit}:params.yaml", f"{commit}:dvc.yaml"])
    if text is None or pipeline is None:
        raise GitError(f"commit {commit[:8]} has no {'params.yaml' if text is None else 'dvc.yaml'}")
    params = parse_params(text.decode(), f"params.yaml {where}")
    check_parameters(params, stages(pipeline.decode(), f"dvc.yaml {where}"), f"params.yaml {where}")
    return params


def project_of(settings: Settings, git: Git, commit: str, model: str) -> event.Project:
    """The project as the events of a model name it at a commit. Raises what `params_at` does, `UnknownModel`."""
    return project_at(settings, git, commit, params_at(git, commit).model(model).owner)


@dataclass(frozen=True)
class DataCommit:
    """A commit on the branch `data`: what was known up to `through` (exclusive end of its newest interval)."""

    commit: str
    through: datetime


def data_commits(git: Git) -> list[DataCommit]:
    """The data's history, newest commit first."""
    if git.resolve(DATA_BRANCH) is None:
        return []
    form = f"%H%x1f%(trailers:key={THROUGH},valueonly,separator=)"
    lines = (
        line.split("\x1f") for line in git.out("log", "--first-parent", f"--format={form}", DATA_BRANCH).splitlines()
    )
    return [DataCommit(commit, datetime.fromisoformat(through)) for commit, through in lines if through]


def data_as_of(git: Git, as_of: datetime | None) -> DataCommit:
    """The newest data, or the newest that does not go beyond a date. Raises `NoData`."""
    known = data_commits(git)
    if not known:
        raise NoData("there is no data yet: the branch data does not exist; run `retrace ingest --until DATE` first")
    found = (
        known[0]
        if as_of is None
        else max((data for data in known if data.through <= as_of), key=lambda data: data.through, default=None)
    )
    if found is None:
        first = min(data.through for data in known)
        raise NoData(f"no data was known as of {as_of:%Y-%m-%d}: the first commit on data goes to {first:%Y-%m-%d}")
    return found


def raw_files(git: Git, commit: str) -> dict[str, str]:
    """Path -> blob id of the pointers and manifests of the raw datasets in a commit."""
    files = git.files(commit, f"{RAW}/")
    return {path: blob for path, blob in files.items() if path.endswith((".dvc", ".manifest"))}


def with_data(git: Git, code: str, data: str | None) -> dict[str, bytes | str | None]:
    """The changes that make the tree of `code` carry exactly the raw data of `data`."""
    changes: dict[str, bytes | str | None] = dict.fromkeys(raw_files(git, code))
    if data is not None:
        changes |= raw_files(git, data)
    return changes


def _carried(git: Git, params: Params, own: str, data: str) -> dict[str, bytes | str | None]:
    """dvc.lock and the files in git that belong to it, from every model's newest version that still has its files.

    For the model that is trained (`own`), a version of the very data comes first: a backfill finds what it did before.
    """
    known = versions(git)
    gone = forgotten(git, known)
    kept = [version for version in known if version.name not in gone]
    newest = {version.model: version for version in kept}
    for version in kept:
        if version.model == own and version.data == data:
            newest[own] = version
    entries: dict[str, dict[str, Any]] = {}
    changes: dict[str, bytes | str | None] = {}
    for model, version in newest.items():
        if model not in params.models:
            continue
        found = entries_of(lock_entries(git.read(version.commit, LOCK)), model)
        entries |= found
        outputs = tuple(output_md5s(found))
        for path, blob in git.files(version.commit).items():
            made = any(path == output or path.startswith(f"{output}/") for output in outputs)
            if made or path.startswith(f"lineage/{model}/"):
                changes[path] = blob
        changes.pop(event.path(model, "gate"), None)
    changes[LOCK] = lock_text(entries) if entries else None
    return changes


def snapshot(settings: Settings, task: Task, *, as_of: datetime | None = None, backfill: bool = False) -> str:
    """Make the first commit of a run, or return the one that an earlier try made.

    Raises `NoData`, `UnknownModel`, `ConfigError`, `CodeIsARun`, `OriginUnavailable`.
    """
    from retrace.lineage.facets import as_json  # the client of OpenLineage is slow to import

    mirror = Mirror.open(settings.mirror, settings.origin)
    run = task.run
    head = mirror.fetch_ref(run.ref)
    if head is not None:
        return chain(mirror, head)[0].commit
    started = datetime.now(UTC)
    mirror.fetch_record()
    code = code_commit(settings, mirror)
    if trailer(mirror.message(code), "Retrace-Stage"):
        raise CodeIsARun(
            f"{settings.code_ref} of {settings.origin} is {code[:8]}, a commit of an earlier run or of a version, with "
            "data and results in it; `git switch main`, or set RETRACE_CODE_REF to a branch of code"
        )
    params = params_at(mirror, code)
    params.model(run.model)
    data = data_as_of(mirror, as_of)
    current = data.commit == data_commits(mirror)[0].commit
    datasets = params.models[run.model].datasets
    pointers = raw_files(mirror, data.commit)
    for name in datasets:
        if f"{RAW}/{name}.dvc" not in pointers:
            raise NoData(f"the data of {run.model} lacks the dataset {name}; run `retrace ingest` for it first")
    facts = {
        "model": run.model,
        "run": run.run_id,
        "code": code,
        "data": data.commit,
        "dataThrough": data.through.isoformat(),
        "backfill": backfill or not current,
    }
    told = event.Event(
        "COMPLETE",
        task.lineage_run_id,
        task.lineage_job,
        started,
        datetime.now(UTC),
        inputs=_raw_reads(mirror, data.commit, datasets),
        outputs=[_snapshot_dataset(mirror, run.model, facts, datasets)],
        facts=facts,
        parent=task.parent,
        documentation=documentation(run.model, SNAPSHOT),
        code="params.yaml",
        commit=code,
    )
    changes = {
        **with_data(mirror, code, data.commit),
        **_carried(mirror, params, run.model, data.commit),
        event.path(run.model, SNAPSHOT): as_json(
            told, project_at(settings, mirror, code, params.models[run.model].owner)
        ),
    }
    text = message(
        f"{run.model}: code {code[:8]} meets data {data.commit[:8]} (through {data.through:%Y-%m-%d})",
        {"Retrace-Stage": SNAPSHOT, "Retrace-State": COMPLETE, "Retrace-Model": run.model, "Retrace-Run": run.run_id},
    )
    commit = mirror.write_commit(code, changes, [code, data.commit], text)
    try:
        mirror.push([RefUpdate(run.ref, commit, ABSENT)])
    except RefMoved:
        head = mirror.fetch_ref(run.ref)
        if head is None:
            raise
        return chain(mirror, head)[0].commit
    return commit


def _raw_reads(git: Git, data: str, datasets: Iterable[str]) -> list[event.Read]:
    """The raw datasets of a data commit, each with the run that brought its newest partition."""
    reads = []
    for name in datasets:
        path = f"{RAW}/{name}.dvc"
        brought = git.out("log", "-1", "--format=%H", data, "--", path)
        pointer, told = git.read_many([f"{data}:{path}", f"{brought}:{INGEST_EVENT}"])
        assert pointer is not None
        run = event.run_id_of(told) if told is not None else None
        reads.append(event.Read(f"{RAW}/{name}", pointer_md5(pointer, path), run))
    return reads


def _snapshot_dataset(git: Git, model: str, facts: Mapping[str, Any], datasets: Iterable[str]) -> event.Output:
    """The dataset `snapshot/<model>`, which is no file: what it is stands in a facet of its own, and in a line."""
    code, data = str(facts["code"]), str(facts["data"])
    spans = (manifest.span(git.read(data, f"{RAW}/{name}.manifest")) for name in datasets)
    return event.Output(
        f"snapshot/{model}",
        f"{code[:12]}+{data[:12]}",
        essentials={key: facts[key] for key in ("code", "data", "dataThrough", "backfill")},
        documentation=f"code {code[:8]}, data {data[:8]} ({next(spans, '')})",
    )


def discard(mirror: Mirror, run: Run) -> None:
    """Remove the ref of a run that was broken off before it became a version."""
    head = mirror.fetch_ref(run.ref)
    if head is None or any(version.run_id == run.run_id for version in versions(mirror, run.model)):
        return
    try:
        mirror.push([RefUpdate(run.ref, ABSENT, head)])
    except RefMoved:
        return
