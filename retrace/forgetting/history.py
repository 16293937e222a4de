"""All that git ever knew of a raw dataset and of what was made of it: whatever some ref of the origin leads to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from retrace import versions
from retrace.dvcfiles import RAW, pointer_md5
from retrace.forgetting.derived import Made, made_by
from retrace.git import Git, Mirror
from retrace.manifest import Partition, parse_manifest
from retrace.versions import Version

_EVENT = re.compile(r"lineage/(?P<model>[a-z][a-z0-9_]*)/(?P<job>[A-Za-z0-9_]+)\.json")
_POINTER = re.compile(rf"{RAW}/(?P<dataset>[a-z][a-z0-9_]*)\.dvc")
_REFS = ("heads", "runs", "scores")


@dataclass(frozen=True)
class RawState:
    """A raw dataset as some commit had it: DVC's list of its partitions, and the partitions."""

    dataset: str
    md5: str
    partitions: tuple[Partition, ...]


@dataclass(frozen=True)
class Carrier:
    """A commit that a name leads to, and the event files that it has; `version` where it is one."""

    name: str
    commit: str
    events: Mapping[str, str]
    version: Version | None


@dataclass(frozen=True)
class History:
    """Every state of the raw datasets, every event by its blob, and every name with what it carries."""

    states: tuple[RawState, ...]
    events: Mapping[str, Made]
    carriers: tuple[Carrier, ...]

    def named(self) -> set[str]:
        """The md5 of every object that some commit names."""
        found = {state.md5 for state in self.states}
        found |= {part.md5 for state in self.states for part in state.partitions}
        return found | {md5 for made in self.events.values() for md5 in made.objects}


def fetch_all(mirror: Mirror) -> None:
    """Bring every run and score into the mirror, not only the record. Raises `OriginUnavailable`."""
    mirror.fetch_record()
    mirror.fetch(*(f"+refs/{name}/*:refs/{name}/*" for name in ("runs", "scores")), "--prune")


def history(git: Git) -> History:
    """What there is, from git alone. Raises `ManifestError`, `PipelineError`."""
    paths = _paths(git)
    blobs = {blob: path for blob, path in paths if _EVENT.fullmatch(path)}
    made = zip(blobs, map(_made, git.read_many(list(blobs))), strict=True)
    events = {blob: event for blob, event in made if event is not None}
    datasets = sorted({match["dataset"] for _, path in paths if (match := _POINTER.fullmatch(path))})
    states = [state for dataset in datasets for state in _states(git, dataset)]
    return History(tuple(dict.fromkeys(states)), events, tuple(_carriers(git, set(blobs.values()))))


def _made(content: bytes | None) -> Made | None:
    return made_by(content) if content is not None else None


def _paths(git: Git) -> list[tuple[str, str]]:
    """(object, path) of everything that the refs lead to."""
    lines = git.out("rev-list", "--objects", "--all").splitlines()
    return [(oid, path) for oid, _, path in (line.partition(" ") for line in lines) if path]


def _states(git: Git, dataset: str) -> Iterable[RawState]:
    """The states of a dataset in every commit that changed one of its two files."""
    pointer, manifest = f"{RAW}/{dataset}.dvc", f"{RAW}/{dataset}.manifest"
    commits = git.out("rev-list", "--all", "--full-history", "--", pointer, manifest).splitlines()
    contents = git.read_many([f"{commit}:{path}" for commit in commits for path in (pointer, manifest)])
    for (text, rows), commit in zip(_pairs(contents), commits, strict=True):
        if text is not None and rows is not None:
            partitions = parse_manifest(rows.decode(), f"{manifest} of {commit[:8]}")
            yield RawState(dataset, pointer_md5(text, pointer), partitions)


def _pairs(items: Sequence[bytes | None]) -> list[tuple[bytes | None, bytes | None]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _carriers(git: Git, event_paths: Iterable[str]) -> list[Carrier]:
    """Versions, runs, scores and branches, with the events that their commits carry."""
    tagged = {version.commit: version for version in versions.versions(git)}
    names = {version.commit: version.name for version in tagged.values()}
    form = "%(objectname) %(refname)"
    for line in git.out("for-each-ref", f"--format={form}", *(f"refs/{name}/" for name in _REFS)).splitlines():
        commit, ref = line.split(" ", 1)
        names.setdefault(commit, ref)
    files = _blobs(git, list(names), sorted(event_paths))
    return [Carrier(name, commit, files[commit], tagged.get(commit)) for commit, name in names.items()]


def _blobs(git: Git, commits: Sequence[str], paths: Sequence[str]) -> dict[str, dict[str, str]]:
    """Commit -> path -> blob, of those of the paths that the commit has."""
    wanted = [(commit, path) for commit in commits for path in paths]
    found: dict[str, dict[str, str]] = {commit: {} for commit in commits}
    for (commit, path), oid in zip(wanted, object_ids(git, [f"{c}:{p}" for c, p in wanted]), strict=True):
        if oid is not None:
            found[commit][path] = oid
    return found


def object_ids(git: Git, names: Sequence[str]) -> list[str | None]:
    """The ids of many objects, in one process; None for those that are missing."""
    request = "".join(f"{name}\n" for name in names).encode()
    listing = git.out("cat-file", "--batch-check=%(objectname)", "--buffer", stdin=request).splitlines()
    return [None if line.endswith(" missing") else line for line in listing]
