"""The DVC remote as the doctor asks it: a folder directly, anything else through a process of DVC's."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from retrace.dvcfiles import object_path
from retrace.health.scope import Scope
from retrace.process import Job, run_job
from retrace.workspace import Remote, workspace


def absent(scope: Scope, remote: Remote, oids: Collection[str]) -> set[str]:
    """Which objects the remote does not have. Raises `RemoteUnavailable`, `RemoteRefused`, `RemoteFailed`."""
    if not oids:
        return set()
    if remote.folder is not None:
        return _not_in(remote.folder, oids)
    return set(_ask(scope, wanted=oids)["absent"])


def push(scope: Scope, remote: Remote, oids: Collection[str]) -> set[str]:
    """Put objects of this machine's cache into the remote; which of them are still absent. Raises as `absent` does."""
    return set(_ask(scope, wanted=oids, push=oids)["absent"]) if oids else set()


def hashes(scope: Scope, oids: Collection[str]) -> dict[str, tuple[str, str]]:
    """Object id -> md5 and sha256 of what a remote that is no folder has under it. Raises as `absent` does."""
    found = _ask(scope, wanted=oids, read=oids)["hashes"] if oids else {}
    return {oid: (md5, sha256) for oid, (md5, sha256) in found.items()}


def _not_in(folder: Path, oids: Collection[str]) -> set[str]:
    return {oid for oid in oids if not object_path(folder, oid).is_file()}


def _ask(scope: Scope, **given: Collection[str]) -> dict[str, Any]:
    assert scope.code is not None
    lists = {key: sorted(given.get(key, ())) for key in ("wanted", "push", "read")}
    request = {"operation": "objects", **lists}
    log = scope.settings.logs / "doctor.log"
    with workspace(scope.settings, scope.mirror, scope.code, "doctor") as space:
        return run_job(scope.settings, Job("the doctor's look at the remote", space, request, log), scope.follow)
