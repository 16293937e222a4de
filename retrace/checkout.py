"""`retrace checkout`: a version's very files, in a directory of one's own that plain git and DVC can go on with."""

from __future__ import annotations

import shutil
from pathlib import Path

from retrace import versions, workspace
from retrace.config import Settings
from retrace.errors import RetraceError
from retrace.git import Git, Mirror, without_credentials
from retrace.process import Job, run_job
from retrace.record import read_record
from retrace.stage import recorded_sha256
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
    with temporary_folder(settings, "site") as site:
        try:
            workspace.checkout(settings, mirror, version.commit, target)
            git = Git(target)
            git.out("remote", "set-url", "origin", without_credentials(settings.origin))
            _own_objects(git)
            request = {
                "operation": "bring",
                "paths": tracked,
                "sha256": recorded_sha256(mirror, version.commit, version.model),
            }
            log = settings.logs / version.model / f"checkout-v{version.number}.log"
            run_job(settings, Job(f"checkout of {version.name}", Workspace(target, version.commit, site), request, log))
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
    return (
        f"{version.name} is in {target} (commit {version.commit[:8]}, {len(tracked)} data paths, all hashes verified)"
    )


def _has_files(tree: dict[str, str], path: str) -> bool:
    return any(name.startswith(f"{path}/") for name in tree)


def _own_objects(git: Git) -> None:
    """The directory is the user's: it must not break when this machine's mirror is removed."""
    git.out("repack", "-a", "-d", "-q")
    alternates = git.directory / ".git/objects/info/alternates"
    alternates.unlink(missing_ok=True)
