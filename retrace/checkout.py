"""`retrace checkout`: a version's very files, in a directory of one's own that plain git and DVC can go on with."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from retrace import versions, workspace
from retrace.config import Settings
from retrace.dvcfiles import object_path
from retrace.errors import RetraceError
from retrace.git import Git, Mirror, without_credentials
from retrace.hashing import hash_file
from retrace.links import link
from retrace.process import Job, run_job
from retrace.record import Record, read_record
from retrace.stage import recorded_sha256
from retrace.tombstones import forbidden, tombstones
from retrace.versions import Version
from retrace.workspace import Workspace, temporary_folder


class DirectoryTaken(RetraceError):
    """The directory to check out into is not empty."""


def checkout_version(settings: Settings, name: str, directory: Path | None) -> str:
    """Check a version out with all its files, each verified against the record; says where.

    Without a directory it goes beside the project: a clone inside would be dirt in it.
    Raises `UnknownVersion`, `DirectoryTaken` and what a remote may raise; then nothing is left.
    """
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    version = versions.find(mirror, name)
    target = (directory or settings.root.parent / version.name).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DirectoryTaken(f"{target} exists already; name a directory that does not")
    record = read_record(mirror, version)
    tracked = [f"data/raw/{dataset.name}" for dataset in record.datasets]
    in_git = mirror.files(version.commit)
    tracked += [path for path in record.outputs() if path not in in_git and not _has_files(in_git, path)]
    try:
        workspace.checkout(settings, mirror, version.commit, target, shared=False)
        Git(target).out("remote", "set-url", "origin", without_credentials(settings.origin))
        if not _from_cache(settings, mirror, record, in_git, target):
            _from_remote(settings, mirror, version, tracked, target)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return (
        f"{version.name} is in {target} (commit {version.commit[:8]}, {len(tracked)} data paths, all hashes verified)"
    )


def _from_cache(settings: Settings, mirror: Mirror, record: Record, in_git: Mapping[str, str], target: Path) -> bool:
    """Link every file that this machine's cache has; whether it had all of them, sound and not to be forgotten."""
    wanted = {part.path: (part.md5, part.sha256) for dataset in record.datasets for part in dataset.partitions}
    wanted |= {path: (file["md5"], file["sha256"]) for path, file in record.files().items() if path not in in_git}
    objects = {path: object_path(settings.cache, md5) for path, (md5, _) in wanted.items()}
    gone = forbidden(tombstones(mirror), target).keys()
    if any(md5 in gone for md5, _ in wanted.values()) or not all(place.is_file() for place in objects.values()):
        return False
    for path, place in objects.items():
        link(place, target / path)
        if hash_file(target / path).sha256 != wanted[path][1]:
            return False
    return True


def _from_remote(settings: Settings, mirror: Mirror, version: Version, tracked: list[str], target: Path) -> None:
    """Let DVC bring the files, through this machine's cache."""
    request = {
        "operation": "bring",
        "paths": tracked,
        "sha256": recorded_sha256(mirror, version.commit, version.model),
    }
    log = settings.logs / version.model / f"checkout-v{version.number}.log"
    with temporary_folder(settings, "site") as site:
        run_job(settings, Job(f"checkout of {version.name}", Workspace(target, version.commit, site), request, log))


def _has_files(tree: dict[str, str], path: str) -> bool:
    return any(name.startswith(f"{path}/") for name in tree)
