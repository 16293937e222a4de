"""Delete objects from the remote and from this machine's cache, for good."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from retrace.child.report import Failure, Reporter
from retrace.child.store import Store

_AT_ONCE = 8


def purge(repo: Any, store: Store, request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Delete `request["objects"]` (md5s) where they are; how many there were in cache and remote, and how many objects
    are there that are not in `request["named"]`.

    Lists of files (`.dir`) go first: DVC takes a folder whose list is there for complete.
    """
    oids = set(request["objects"])
    lists = {oid for oid in oids if oid.endswith(".dir")}
    deleted = 0
    with store.reached(), ThreadPoolExecutor(_AT_ONCE) as pool:
        for group in (lists, oids - lists):
            present = group - store.absent(store.remote, group)
            reporter.phase(f"delete {len(present):,} objects from the remote")
            list(pool.map(lambda oid: _delete(store, oid), present))
            deleted += len(present)
        left = oids - store.absent(store.remote, oids)
        unnamed = set(store.remote.all()) - set(request["named"])
    if left:
        raise Failure("not-deleted", remote=store.shown, md5=min(left), count=str(len(left)))
    cleared = _clear(store, oids)
    unnamed |= set(store.cache.all()) - set(request["named"])
    return {"remote": deleted, "cache": cleared, "unnamed": len(unnamed)}


def _delete(store: Store, oid: str) -> None:
    with suppress(FileNotFoundError):
        store.remote.delete(oid)


def _clear(store: Store, oids: set[str]) -> int:
    places = [Path(store.cache.oid_to_path(oid)) for oid in oids]
    present = [place for place in places if place.exists()]
    for place in present:
        place.unlink(missing_ok=True)
    return len(present)
