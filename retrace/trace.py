"""What a version was made of and what became of it: jobs and versions of datasets, from git alone.

The committed events say which run read what, and which run had made that (`reads`). A stage that a run did not do again
has the event of the older run that did it, so that the way leads on from that run's own commits. Only what is asked for
is read: one tag, the version's own events, and of all other versions the directory of their events, not its content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from retrace import versions
from retrace.dvcfiles import RAW
from retrace.errors import RetraceError
from retrace.git import Git, Mirror, is_commit_id, trailer
from retrace.lineage import event
from retrace.lineage.event import Read
from retrace.manifest import LINE, Partition, parse_manifest
from retrace.runs import INGEST_EVENT
from retrace.versions import Assignment, Version

Dataset = tuple[str, str]  # name and version
_RAW = re.compile(rf"{RAW}/[A-Za-z0-9_]+")


class NoLineage(RetraceError):
    """A version whose commits lack the events that every version has, or have others."""


@dataclass(frozen=True)
class Job:
    """A finished run of a job, as its event tells it; `event` is what `git show` shows it by.

    `run` is OpenLineage's, `made_in` the retrain's. `carried_from` is the version whose retrain did it, where that is
    an older one. `outputs` maps each dataset to its path, md5 and files; `columns` to the source columns of each of its
    own.
    """

    name: str
    run: str
    event: str
    started: str
    ended: str
    made_in: str
    reads: tuple[Read, ...]
    outputs: Mapping[Dataset, Mapping[str, Any]]
    columns: Mapping[Dataset, Mapping[str, Sequence[Dataset]]]
    facts: Mapping[str, Any]
    carried_from: str | None = None

    @property
    def short_name(self) -> str:
        """The name without the model."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Snapshot:
    """The code and the data that met at the beginning of a retrain."""

    code: str
    subject: str
    data: str
    data_subject: str
    through: datetime
    backfill: bool


@dataclass(frozen=True)
class Raw:
    """A raw dataset as a snapshot has it, by its manifest; `data` is the commit on the branch data."""

    data: str
    where: str
    manifest: str

    @cached_property
    def partitions(self) -> tuple[Partition, ...]:
        """Every partition. Raises `ManifestError`."""
        return parse_manifest(self.manifest, self.where)

    @cached_property
    def summary(self) -> tuple[int, str, int]:
        """How many partitions, the names of the first and the last, all rows: without a thousand objects for it."""
        lines = [LINE.fullmatch(line) for line in self.manifest.splitlines()]
        found = [line for line in lines if line is not None]
        if len(found) != len(lines):
            raise NoLineage(f"{self.where} is not a manifest: which partitions there were is not known")
        ends = [PurePosixPath(line["path"]).stem for line in (found[0], found[-1])] if found else ["none"]
        return len(found), " .. ".join(dict.fromkeys(ends)), sum(int(line["rows"]) for line in found)


@dataclass(frozen=True)
class Origin:
    """What brought a partition: the commit on the branch data, and its event's run."""

    commit: str
    run: str
    interval: str
    ended: str


@dataclass(frozen=True)
class Sources:
    """What a version was made of.

    `jobs` has, by run, all that led to it, and what its retrain did besides; `snapshots` and `raw` are the datasets
    where it begins.
    """

    registration: Job
    jobs: Mapping[str, Job]
    snapshots: Mapping[Dataset, Snapshot]
    raw: Mapping[Dataset, Raw]

    @property
    def own(self) -> Snapshot:
        """The snapshot of the version's own retrain."""
        return next(
            self.snapshots[dataset]
            for job in self.jobs.values()
            for dataset in job.outputs
            if dataset in self.snapshots and job.made_in == self.registration.made_in
        )

    def maker(self, read: Read) -> Job | None:
        """The job that made what was read, unless it is an ingestion, or not known."""
        return self.jobs.get(read.run) if read.run is not None else None


@dataclass(frozen=True)
class Tenure:
    """An alias that was held: the assignment, the one that ended it, and the job that a person ran for it."""

    assignment: Assignment
    until: Assignment | None
    until_version: str | None
    job: str | None
    run: str | None


@dataclass(frozen=True)
class Carrier:
    """A version that has some results of another because its own retrain did not need to make them again."""

    version: str
    jobs: tuple[str, ...]


@dataclass(frozen=True)
class Consequences:
    """What became of a version: what the gate said, the aliases that it held, the versions that carry its results."""

    gate: Mapping[str, Any] | None
    tenures: tuple[Tenure, ...]
    carriers: tuple[Carrier, ...]


@dataclass(frozen=True)
class Trace:
    """The lineage of a version; a direction that was not asked for is None."""

    version: Version
    aliases: tuple[str, ...]
    sources: Sources | None
    consequences: Consequences | None


def trace(git: Git, name: str, *, up: bool = True, down: bool = True) -> Trace:
    """The lineage of a version. Raises `UnknownVersion`, `NoLineage`."""
    model = name.partition("@")[0]
    given = versions.assignments(git, model) if _is_model(model) else []
    archive = _Archive(git, model)
    version = versions.find(git, name)
    told = git.message(version.ref)
    holders = {assignment.alias: assignment.commit for assignment in given}
    own = _events(git, archive, version.commit, version.name)
    return Trace(
        version,
        tuple(sorted(alias for alias, commit in holders.items() if commit == version.commit)),
        _sources(git, archive, version, told, own) if up else None,
        _consequences(git, archive, version, given, own) if down else None,
    )


def _is_model(name: str) -> bool:
    """Whether a text may name a model: nothing else is handed to git as a pattern."""
    return re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None


class _Archive:
    """All versions of a model by their commits, and the directories of their events; read when first asked for."""

    def __init__(self, git: Git, model: str) -> None:
        self.git, self.model = git, model

    @cached_property
    def commits(self) -> dict[str, str]:
        """Version -> commit, oldest version first; annotated tags are those that are peeled."""
        listing = self.git.run("show-ref", "--tags", "--dereference").stdout.decode()
        found = re.findall(rf"^([0-9a-f]+) refs/tags/{re.escape(self.model)}@v([1-9][0-9]*)\^\{{\}}$", listing, re.M)
        return {f"{self.model}@v{number}": commit for number, commit in sorted((int(n), c) for c, n in found)}

    @cached_property
    def directories(self) -> dict[str, bytes]:
        """Version -> the git tree of its events, in which the entry of an event that was carried over is the same."""
        names = [f"{commit}:lineage/{self.model}" for commit in self.commits.values()]
        return {
            name: tree for name, tree in zip(self.commits, self.git.read_many(names), strict=True) if tree is not None
        }

    def having(self, entry: bytes) -> Iterator[str]:
        """The versions that have this entry, oldest first."""
        return (name for name, tree in self.directories.items() if entry in tree)


def _job(content: bytes | str, where: str) -> Job:
    """The job that an event tells of. Raises `NoLineage`."""
    try:
        told = json.loads(content)
        facts = told["run"]["facets"]["retrace"]
        files = {event.dataset_name(item["path"]): item for item in facts.get("outputs", ())}
        outputs, columns = {}, {}
        for output in told["outputs"]:
            dataset = (str(output["name"]), str(output["facets"]["version"]["datasetVersion"]))
            outputs[dataset] = files.get(output["name"], {})
            fields = output["facets"].get("columnLineage", {}).get("fields")
            if fields:
                columns[dataset] = {
                    str(column): [(str(item["name"]), str(item["field"])) for item in body["inputFields"]]
                    for column, body in fields.items()
                }
        return Job(
            name=str(told["job"]["name"]),
            run=str(told["run"]["runId"]),
            event=where,
            started=str(facts["startedAt"]),
            ended=str(told["eventTime"]),
            made_in=str(facts.get("run", "")),
            reads=tuple(Read(read["dataset"], read["version"], read["run"]) for read in facts["reads"]),
            outputs=outputs,
            columns=columns,
            facts=facts,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NoLineage(f"{where} is not an event that Retrace wrote ({error!r}): its lineage is not known") from None


def _events(git: Git, archive: _Archive, commit: str, shown: str) -> list[tuple[Job, bytes]]:
    """The jobs that a commit of a run has the events of, each with its entry in git's directory. Raises `NoLineage`."""
    folder = f"lineage/{archive.model}/"
    if not is_commit_id(commit):
        raise NoLineage(f"an event of {shown!r} names {commit[:50]!r} as a commit: its lineage is not known")
    files = {path: blob for path, blob in git.files(commit, folder).items() if not path.endswith("/gate.json")}
    if not files:
        raise NoLineage(f"{shown} has no events in {folder}: it is not a version that Retrace made")
    jobs = []
    for (path, blob), content in zip(files.items(), git.read_many(list(files.values())), strict=True):
        assert content is not None
        entry = path.removeprefix(folder).encode() + b"\0" + bytes.fromhex(blob)
        jobs.append((_job(content, f"{shown}:{path}"), entry))
    return jobs


def _sources(git: Git, archive: _Archive, version: Version, told: str, own: Sequence[tuple[Job, bytes]]) -> Sources:
    line = trailer(told, event.EVENT)
    if line is None:
        raise NoLineage(f"the tag {version.name} has no {event.EVENT}: it is not a version that Retrace made")
    registration = _job(line, version.ref)
    jobs = {job.run: _with_origin(archive, version, job, entry) for job, entry in own}
    jobs[registration.run] = registration
    asked: set[tuple[str, str]] = set()
    while True:
        unknown = {
            (str(job.facts.get("commit")), job.carried_from or str(job.facts.get("commit")))
            for job in jobs.values()
            for read in job.reads
            if read.run is not None and read.run not in jobs and not read.name.startswith(f"{RAW}/")
        } - asked
        if not unknown:
            break
        asked |= unknown
        for commit, shown in sorted(unknown):
            for job, entry in _events(git, archive, commit, shown):
                jobs.setdefault(job.run, _with_origin(archive, version, job, entry))
    return Sources(registration, jobs, *_beginnings(git, jobs.values()))


def _with_origin(archive: _Archive, version: Version, job: Job, entry: bytes) -> Job:
    """The job with the version whose retrain did it, if that is another."""
    if job.made_in == version.run_id:
        return job
    first = next(archive.having(entry), version.name)
    return replace(job, carried_from=first if first != version.name else None)


def _beginnings(git: Git, jobs: Iterable[Job]) -> tuple[dict[Dataset, Snapshot], dict[Dataset, Raw]]:
    """The snapshots that jobs made, and the raw datasets that those read."""
    makers = {dataset: job for job in jobs for dataset in job.outputs if dataset[0].startswith("snapshot/")}
    commits = sorted({_commit(job, key) for job in makers.values() for key in ("code", "data")})
    data = {
        (read.name, read.version): _commit(job, "data")
        for job in makers.values()
        for read in job.reads
        if _RAW.fullmatch(read.name)
    }
    manifests = [f"{commit}:{name}.manifest" for (name, _), commit in data.items()]
    contents = git.read_many([*commits, *manifests])
    subjects = {commit: _subject(body or b"") for commit, body in zip(commits, contents, strict=False)}
    snapshots = {dataset: _snapshot(job, subjects) for dataset, job in makers.items()}
    raw = {}
    for (dataset, commit), where, text in zip(data.items(), manifests, contents[len(commits) :], strict=True):
        if text is None:
            raise NoLineage(f"there is no {where}: which partitions {dataset[0]} had is not known")
        raw[dataset] = Raw(commit, where, text.decode())
    return snapshots, raw


def _commit(job: Job, key: str) -> str:
    """The commit that an event names. Raises `NoLineage` if that is something else: git would take it for an option."""
    commit = str(job.facts.get(key))
    if not is_commit_id(commit):
        raise NoLineage(f"{job.event} names {commit[:50]!r} as a commit: its lineage is not known")
    return commit


def _snapshot(job: Job, subjects: Mapping[str, str]) -> Snapshot:
    code, data = job.facts["code"], job.facts["data"]
    try:
        through, backfill = datetime.fromisoformat(job.facts["dataThrough"]), bool(job.facts["backfill"])
    except (KeyError, TypeError, ValueError) as error:
        raise NoLineage(f"{job.event} does not say up to when its data went ({error!r})") from None
    return Snapshot(code, subjects[code], data, subjects[data], through, backfill)


def _subject(commit: bytes) -> str:
    """The first line of a commit's message; empty for a commit that is not here."""
    return commit.decode(errors="replace").partition("\n\n")[2].partition("\n")[0]


def origins(git: Git, data: str) -> dict[tuple[str, str], Origin]:
    """(path, md5) of each partition that a data commit or one before it brought -> which did so last.

    Every event of an ingestion up to then is read, so that this takes longer than all the rest.
    """
    commits = git.out("rev-list", "--first-parent", "--reverse", data, "--").splitlines()
    found = {}
    contents = git.read_many([f"{commit}:{INGEST_EVENT}" for commit in commits])
    for commit, content in zip(commits, contents, strict=True):
        if content is None:
            continue
        job = _job(content, f"{commit}:{INGEST_EVENT}")
        for part in job.facts.get("partitions", ()):
            brought = Origin(commit, job.run, str(job.facts.get("interval", "")), job.ended)
            found[str(part["path"]), str(part["md5"])] = brought
    return found


def _consequences(
    git: Git, archive: _Archive, version: Version, given: Sequence[Assignment], own: Sequence[tuple[Job, bytes]]
) -> Consequences:
    held = [assignment for assignment in given if assignment.commit == version.commit]
    head = git.fetch_ref(version.run_ref) if isinstance(git, Mirror) else version.run_ref
    path = event.path(version.model, "gate")
    gate, *tags = git.read_many([f"{head}:{path}", *(f"refs/tags/{assignment.name}" for assignment in held)])
    return Consequences(
        _gate(gate, f"{version.run_ref}:{path}", version) if head and gate is not None else None,
        tuple(_tenure(archive, given, assignment, tag) for assignment, tag in zip(held, tags, strict=True)),
        tuple(_carriers(archive, version, own)),
    )


def _gate(content: bytes, where: str, version: Version) -> Mapping[str, Any] | None:
    """What the gate said of the version. Raises `NoLineage`."""
    job = _job(content, where)
    if job.facts.get("version") != version.name:
        return None  # that of an older version, before the gate has spoken
    try:
        return {"run": job.run, **{key: job.facts[key] for key in ("passed", "promoted", "champion", "findings")}}
    except KeyError as error:
        raise NoLineage(f"{where} does not say {error}: what the gate said is not known") from None


def _tenure(archive: _Archive, given: Sequence[Assignment], assignment: Assignment, tag: bytes | None) -> Tenure:
    later = (item for item in given if item.alias == assignment.alias and item.number > assignment.number)
    until = next(later, None)
    names = {commit: name for name, commit in archive.commits.items()} if until is not None else {}
    line = trailer(tag.decode(), event.EVENT) if tag is not None else None
    job = _job(line, f"refs/tags/{assignment.name}") if line is not None else None
    after = names.get(until.commit) if until is not None else None
    return Tenure(assignment, until, after, job.name if job else None, job.run if job else None)


def _carriers(archive: _Archive, version: Version, own: Sequence[tuple[Job, bytes]]) -> Iterator[Carrier]:
    """The other versions that have events of this version's own retrain."""
    made = [(job.short_name, entry) for job, entry in own if job.made_in == version.run_id]
    found: dict[str, list[str]] = {}
    for job, entry in made:
        for name in archive.having(entry):
            if name != version.name:
                found.setdefault(name, []).append(job)
    return (Carrier(name, tuple(found[name])) for name in archive.commits if name in found)
