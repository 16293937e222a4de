"""What versions are made of, object by object, read from git: raw partitions, and what their stages made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retrace import manifest
from retrace.dvcfiles import LOCK, RAW, entries_of, lock_entries, output_md5s, overlap, pointer_md5
from retrace.git import Git
from retrace.health.scope import NEWEST_DATA, Scope, object_ids
from retrace.lineage import event
from retrace.runs import SNAPSHOT


@dataclass
class Needed:
    """An object that versions need; `by` names them. What is `raw` cannot be made again, the rest can."""

    oid: str
    path: str
    raw: bool
    sha256: str | None
    by: list[str] = field(default_factory=list)


@dataclass
class Needs:
    """Object id -> who needs it; and (version, what its commit lacks)."""

    objects: dict[str, Needed] = field(default_factory=dict)
    lacks: list[tuple[str, str]] = field(default_factory=list)

    def add(self, by: str, oid: str, path: str, *, raw: bool, sha256: str | None = None) -> None:
        needed = self.objects.setdefault(oid, Needed(oid, path, raw, sha256))
        if raw and not needed.raw:
            needed.raw, needed.path = True, path
        needed.sha256 = needed.sha256 or sha256
        if not needed.by or needed.by[-1] != by:
            needed.by.append(by)


@dataclass(frozen=True)
class _Made:
    """A version's part of its dvc.lock."""

    name: str
    model: str
    commit: str
    entries: Mapping[str, dict[str, Any]]

    @property
    def events(self) -> list[str]:
        jobs = [SNAPSHOT, *(address.partition("@")[0] for address in self.entries)]
        return [event.path(self.model, job) for job in jobs]

    def reads(self, dataset: str) -> bool:
        """Whether a stage depends on a raw dataset, a part of it, or a folder that holds it."""
        paths = (str(dep["path"]) for entry in self.entries.values() for dep in entry.get("deps", ()))
        return any(overlap(path, dataset) for path in paths)


def needs(scope: Scope) -> Needs:
    """What every version, and the newest data, needs of the DVC remote."""
    git, found = scope.mirror, Needs()
    locks = git.read_many([f"{version.commit}:{LOCK}" for version in scope.versions])
    made = [
        _Made(version.name, version.model, version.commit, entries_of(lock_entries(lock), version.model))
        for version, lock in zip(scope.versions, locks, strict=True)
    ]
    found.lacks += [(item.name, LOCK) for item in made if not item.entries]
    blobs = object_ids(git, _places(made, scope.data))
    raw = _RawFolders(git)
    for item in made:
        for dataset, files in raw.datasets(blobs.get(f"{item.commit}:{RAW}")):
            if item.reads(dataset):
                _add_raw(found, item.name, dataset, files)
    if scope.data is not None:
        for dataset, files in raw.datasets(blobs.get(f"{scope.data}:{RAW}")):
            _add_raw(found, NEWEST_DATA, dataset, files)
    _add_outputs(git, found, made, blobs)
    return found


def _places(made: Iterable[_Made], data: str | None) -> Iterator[str]:
    for item in made:
        for path in (RAW, *output_md5s(item.entries), *item.events):
            yield f"{item.commit}:{path}"
    if data is not None:
        yield f"{data}:{RAW}"


_Files = list[tuple[str, str, str | None]]  # object id, path, sha256


class _RawFolders:
    """`data/raw` of many commits; versions of the same data share a tree, and it is read once."""

    def __init__(self, git: Git) -> None:
        self._git = git
        self._known: dict[str, list[tuple[str, _Files]]] = {}

    def datasets(self, tree: str | None) -> list[tuple[str, _Files]]:
        """(dataset's path, its objects) for each dataset of a tree."""
        if tree is None:
            return []
        if tree not in self._known:
            self._known[tree] = list(self._read(tree))
        return self._known[tree]

    def _read(self, tree: str) -> Iterator[tuple[str, _Files]]:
        listed = (line.split("\t", 1) for line in self._git.out("ls-tree", tree).splitlines())
        blobs = {name: head.split()[2] for head, name in listed}
        names = [name.removesuffix(".dvc") for name in blobs if name.endswith(".dvc")]
        for name in names:
            where = f"{RAW}/{name}"
            pointer, rows = self._git.read_many([blobs[f"{name}.dvc"], blobs.get(f"{name}.manifest", "")])
            assert pointer is not None
            parts = manifest.parse_manifest(rows.decode(), f"{where}.manifest") if rows is not None else ()
            files: _Files = [(part.md5, part.path, part.sha256) for part in parts]
            yield where, [(pointer_md5(pointer, f"{where}.dvc"), where, None), *files]


def _add_raw(found: Needs, by: str, dataset: str, files: _Files) -> None:
    for oid, path, sha256 in files:
        found.add(by, oid, path, raw=True, sha256=sha256)


def _add_outputs(git: Git, found: Needs, made: Sequence[_Made], blobs: Mapping[str, str]) -> None:
    """What stages made and git does not hold: by dvc.lock, and for the files of a folder by the stages' events."""
    events = list({blobs[place] for item in made for place in _event_places(item) if place in blobs})
    told = {blob: _files_told(content) for blob, content in zip(events, git.read_many(events), strict=True)}
    for item in made:
        files: dict[str, _Files] = {}
        whole = True
        for path, place in zip(item.events, _event_places(item), strict=True):
            own = told[blobs[place]] if place in blobs else None
            if own is None:
                whole = False
                found.lacks.append((item.name, path))
            else:
                files |= own
        for path, oid in output_md5s(item.entries).items():
            if f"{item.commit}:{path}" in blobs:
                continue
            if whole and oid not in files:
                found.lacks.append((item.name, f"event that tells of {path} (md5 {oid})"))
            found.add(item.name, oid, path, raw=False)
            for file_oid, name, sha256 in files.get(oid, []):
                found.add(item.name, file_oid, name, raw=False, sha256=sha256)


def _event_places(item: _Made) -> list[str]:
    return [f"{item.commit}:{path}" for path in item.events]


def _files_told(content: bytes | None) -> dict[str, _Files] | None:
    """Output's md5 -> its files, as a stage's event tells them; None for an event that cannot be read."""
    try:
        outputs = event.facts_of(content or b"").get("outputs", ())
        return {
            str(output["md5"]): [(str(file["md5"]), str(file["path"]), str(file["sha256"])) for file in output["files"]]
            for output in outputs
        }
    except (ValueError, KeyError, TypeError):
        return None
