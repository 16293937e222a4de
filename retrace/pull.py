"""`retrace data pull`: the newest raw data in a developer's checkout, verified like a version's."""

from __future__ import annotations

import os

from retrace import manifest
from retrace.config import Settings
from retrace.errors import RetraceError
from retrace.git import Git, Mirror
from retrace.process import Job, run_job
from retrace.runs import data_as_of, raw_files
from retrace.workspace import Workspace, temporary_folder


class OwnData(RetraceError):
    """The checkout has pointers of its own in git: it is of a version."""


def pull_data(settings: Settings) -> list[str]:
    """Give a developer's checkout the files of the newest raw data, which `dvc repro` needs.

    The pointers stay only as long as DVC needs them: `main` has none, and one left behind would be dirt there (DVC
    refuses an ignored one) and stand in the way of `git checkout` of a version, which has its own. Returns the paths
    of the datasets. Raises `NoData` when there is none, and `OwnData` in a checkout of a version.
    """
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    data = data_as_of(mirror, None)
    files = raw_files(mirror, data.commit)
    if tracked := Git(settings.root).out("ls-files", "--", *files):
        raise OwnData(
            f"{settings.root} has data of its own in git ({tracked.splitlines()[0]}); `dvc checkout` brings it, or "
            "`git switch main` first for the newest"
        )
    contents = {path: mirror.read(data.commit, path) or b"" for path in files}
    pointers = {path: content for path, content in contents.items() if path.endswith(".dvc")}
    shas = {
        row.path: row.sha256
        for path in contents.keys() - pointers.keys()
        for row in manifest.parse_manifest(contents[path].decode(), path)
    }
    paths = sorted(path.removesuffix(".dvc") for path in pointers)
    request = {"operation": "bring", "paths": paths, "sha256": shas}
    log = settings.logs / f"pull-{os.getpid()}.log"
    with temporary_folder(settings, "site") as site:
        try:
            for path, content in pointers.items():
                (settings.root / path).write_bytes(content)
            run_job(settings, Job("pull of data", Workspace(settings.root, data.commit, site), request, log))
        finally:
            for path in pointers:
                (settings.root / path).unlink(missing_ok=True)
    return paths
