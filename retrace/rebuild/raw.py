"""The raw data of a rebuild: from the remote alone, each file compared with the sha256 that git records for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from retrace import manifest, tombstones
from retrace.config import Settings
from retrace.dvcfiles import RAW, object_path, pointer_md5
from retrace.git import Mirror
from retrace.hashing import copy_and_hash, directory_oid, files_of
from retrace.process import Job, RemoteUnavailable, run_job
from retrace.workspace import Workspace, remote_of


@dataclass(frozen=True)
class Tracked:
    """An object that DVC tracks: its path, its md5 (`.dir` for a folder), its sha256 where git knows it."""

    path: str
    md5: str
    sha256: str | None = None


@dataclass(frozen=True)
class Fetched:
    """What was brought, in bytes, and what could not be: in words, each with its path and md5.

    `ticket` is the request on which some of it was forgotten.
    """

    size: int
    missing: tuple[str, ...]
    ticket: str | None = None


def tracked(tree: Path, dependencies: Iterable[str]) -> tuple[list[Tracked], list[str]]:
    """Which objects these dependencies are, by the manifests and pointers of a checkout; and the contradictions found.

    A folder above several datasets stands for all of them.
    """
    found: dict[str, Tracked] = {}
    contradictions = []
    for path in sorted(set(dependencies)):
        for pointer in _pointers(tree, path):
            name = pointer.relative_to(tree).as_posix().removesuffix(".dvc")
            md5 = pointer_md5(pointer.read_bytes(), f"{name}.dvc")
            listed = tree / f"{name}.manifest"
            if not name.startswith(f"{RAW}/") or not listed.is_file():
                found[name] = Tracked(name, md5)
                continue
            partitions = manifest.parse_manifest(listed.read_text(), f"{name}.manifest")
            inside = {PurePosixPath(item.path).relative_to(name).as_posix(): item.md5 for item in partitions}
            if directory_oid(inside) != md5:
                contradictions.append(f"{name}.manifest is not what {name}.dvc names ({md5})")
            found |= {item.path: Tracked(item.path, item.md5, item.sha256) for item in partitions}
    return list(found.values()), contradictions


def _pointers(tree: Path, path: str) -> list[Path]:
    """The `.dvc` files that a path is, lies in or holds."""
    parts = PurePosixPath(path).parts
    above = [tree / f"{PurePosixPath(*parts[:count])}.dvc" for count in range(1, len(parts) + 1)]
    inside = sorted((tree / path).rglob("*.dvc")) if (tree / path).is_dir() else []
    return [pointer for pointer in (*above, *inside) if pointer.is_file()]


def fetch(settings: Settings, tree: Workspace, wanted: Iterable[Tracked], log: Path) -> Fetched:
    """Bring objects from the remote into the checkout. Nothing is taken from, or put into, this machine's cache.

    What was forgotten on request is not brought, wherever it may still be. Raises what a remote may raise.
    """
    wanted = list(wanted)
    committed = (tree.path / ".dvc/config").read_text()
    remote = remote_of(settings, committed)
    stones = tombstones.current(Mirror.open(settings.mirror, settings.origin))
    gone = [(item, stones[item.md5]) for item in wanted if item.md5 in stones]
    if gone:
        missing = tuple(f"{_shown(item)} was removed on request {stone.ticket}" for item, stone in gone)
        return Fetched(0, missing, gone[0][1].ticket)
    if remote.folder is None:
        return _from_server(settings, tree, wanted, log)
    if not remote.folder.is_dir():
        raise RemoteUnavailable(f"the DVC remote {remote.shown} is not there; mount it, then run this again")
    return _from_folder(remote.folder, tree.path, wanted)


def _shown(item: Tracked) -> str:
    return f"{item.path} (md5 {item.md5})"


def _corrupt(item: Tracked) -> str:
    return f"{_shown(item)} is in the remote with other bytes than the record says; it was not used"


def _from_server(settings: Settings, tree: Workspace, wanted: list[Tracked], log: Path) -> Fetched:
    objects = [vars(item) for item in wanted]
    result = run_job(settings, Job("fetch of raw data", tree, {"operation": "fetch", "objects": objects}, log))
    lost = [Tracked(path, result["md5s"][path]) for path in result["missing"]]
    corrupt = [Tracked(path, result["md5s"][path]) for path in result["corrupt"]]
    for item in corrupt:
        (tree.path / item.path).unlink(missing_ok=True)
    size = sum((tree.path / item.path).stat().st_size for item in wanted if (tree.path / item.path).is_file())
    return Fetched(size, (*(f"{_shown(item)} is not in the remote" for item in lost), *map(_corrupt, corrupt)))


def _from_folder(remote: Path, tree: Path, wanted: list[Tracked]) -> Fetched:
    size, missing = 0, []
    while wanted:
        item = wanted.pop(0)
        place = object_path(remote, item.md5)
        if not place.is_file():
            missing.append(f"{_shown(item)} is not in the remote")
        elif item.md5.endswith(".dir"):
            inside = files_of(place.read_bytes(), item.md5)
            if inside is None:
                missing.append(_corrupt(item))
                continue
            wanted += [Tracked(f"{item.path}/{name}", md5) for name, md5 in inside.items()]
        else:
            target = tree / item.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(place, "rb") as source:
                found = copy_and_hash(source, target)
            size += found.size
            if found.md5 != item.md5 or item.sha256 not in (None, found.sha256):
                missing.append(_corrupt(item))
                target.unlink()
    return Fetched(size, tuple(missing))
