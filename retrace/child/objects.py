"""Look after the remote's objects for the doctor: which are missing, which are corrupt, and those to be put back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from retrace.child.report import Reporter
from retrace.child.store import Store
from retrace.hashing import hash_stream

_AT_ONCE = 8
_TOLD_EVERY = 50


def look_after(repo: Any, store: Store, request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """`push` from this machine's cache, then say which of `wanted` are absent, then what `read` hashes to."""
    with store.reached():
        for oid in request["push"]:
            store.remote.add(store.cache.oid_to_path(oid), store.cache.fs, oid)
        absent = store.absent(store.remote, set(request["wanted"]))
        present = [oid for oid in request["read"] if oid not in absent]
        hashes = {}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for number, (oid, found) in enumerate(pool.map(lambda oid: _hash(store, oid), present), start=1):
                hashes[oid] = found
                if number % _TOLD_EVERY == 0:
                    reporter.phase(f"{number:,} of {len(present):,} objects of the remote read")
    return {"absent": sorted(absent), "hashes": hashes}


def _hash(store: Store, oid: str) -> tuple[str, list[str]]:
    """The md5 and sha256 of what the remote keeps under a name."""
    with store.remote.fs.open(store.remote.oid_to_path(oid), "rb") as source:
        found = hash_stream(source)
    return oid, [found.md5, found.sha256]
