"""`--rehash`: read every object of cache and remote again. DVC trusts a name; here the bytes are asked."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from retrace.dvcfiles import object_path
from retrace.errors import RetraceError
from retrace.hashing import hash_file
from retrace.health import remote as asked
from retrace.health.finding import Finding, Section, named
from retrace.health.needs import Needed, Needs
from retrace.health.objects import in_cache
from retrace.health.scope import NEWEST_DATA, REMOTE, Scope
from retrace.wording import counted
from retrace.workspace import Remote

_SECTION = "hashes"
_OID = re.compile(r"[0-9a-f]{32}(\.dir)?")
_TOLD_EVERY = 50


def rehash(scope: Scope, needs: Needs, *, fix: bool) -> Section:
    """Compare what each object hashes to with its name, and with the sha256 that git records of it.

    Of a cache or remote that is a folder every object is read, of another remote those that versions need. With `fix`
    corrupt objects are removed from the cache, whose next user fetches them again; never from the remote.
    """
    cached = _of_folder(scope, scope.settings.cache, "this machine's cache")
    findings = [_in_cache(scope, needs, oid, fix=fix) for oid in sorted(_corrupt(needs, cached))]
    read = f"{counted(len(cached), 'object')} of the cache"
    remote = scope.remote() if REMOTE not in scope.silent else None
    if remote is not None:
        try:
            kept = _of_remote(scope, remote, needs)
        except RetraceError as error:
            scope.silent[REMOTE] = str(error)
        else:
            findings += [_in_remote(scope, remote, needs, oid) for oid in sorted(_corrupt(needs, kept))]
            read += f" and {len(kept):,} of the remote"
    sound = "" if findings else ", all are what their names say"
    return Section(_SECTION, f"{read} read{sound}", tuple(findings))


def _of_remote(scope: Scope, remote: Remote, needs: Needs) -> dict[str, tuple[str, str]]:
    if remote.folder is not None:
        return _of_folder(scope, remote.folder, "the remote")
    return asked.hashes(scope, needs.objects)


def _of_folder(scope: Scope, folder: Path, where: str) -> dict[str, tuple[str, str]]:
    """Object id -> md5 and sha256 of all that a folder has, hashed on all cores."""
    oids = sorted(_listed(folder))
    found = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        hashed = pool.map(_hasher(folder), oids)
        for number, (oid, hashes) in enumerate(zip(oids, hashed, strict=True), start=1):
            if hashes is not None:
                found[oid] = hashes
            if number % _TOLD_EVERY == 0:
                scope.follow(f"{number:,} of {len(oids):,} objects of {where} read")
    return found


def _hasher(folder: Path) -> Callable[[str], tuple[str, str] | None]:
    def hashes(oid: str) -> tuple[str, str] | None:
        try:
            found = hash_file(object_path(folder, oid))
        except FileNotFoundError:
            return None  # removed by somebody in the meantime
        return found.md5, found.sha256

    return hashes


def _listed(folder: Path) -> Iterator[str]:
    for prefix in (folder / "files/md5").glob("[0-9a-f][0-9a-f]"):
        for entry in prefix.iterdir():
            if _OID.fullmatch(prefix.name + entry.name):
                yield prefix.name + entry.name


def _corrupt(needs: Needs, hashed: dict[str, tuple[str, str]]) -> Iterable[str]:
    for oid, (md5, sha256) in hashed.items():
        needed = needs.objects.get(oid)
        recorded = needed.sha256 if needed is not None else None
        if md5 != oid.removesuffix(".dir") or recorded not in (None, sha256):
            yield oid


def _what(needed: Needed | None, oid: str) -> str:
    return f"{needed.path} (md5 {oid}, of {named(needed.by)})" if needed else f"md5 {oid}, which no version needs,"


def _facts(needed: Needed | None, oid: str, where: str) -> dict[str, object]:
    by = needed.by if needed is not None else []
    versions = [name for name in by if name != NEWEST_DATA]
    return {"where": where, "md5": oid, "path": needed.path if needed is not None else None, "versions": versions}


def _in_cache(scope: Scope, needs: Needs, oid: str, *, fix: bool) -> Finding:
    needed = needs.objects.get(oid)
    said, told = f"{_what(needed, oid)} is corrupt in this machine's cache", _facts(needed, oid, "cache")
    if not fix:
        return Finding("object-corrupt", f"{said}: `retrace doctor --rehash --fix` removes it there", facts=told)
    object_path(scope.settings.cache, oid).unlink(missing_ok=True)
    return Finding("object-corrupt", f"{said}: removed there, the next use fetches it again", "fixed", told)


def _in_remote(scope: Scope, remote: Remote, needs: Needs, oid: str) -> Finding:
    """Told, and left to a person: what is in the remote may be the only trace of what happened."""
    needed = needs.objects.get(oid)
    sound = needed is not None and in_cache(scope, needed)
    way_out = _from_cache(scope, remote, oid) if sound else "replace it from a good copy"
    place = f"at {object_path(remote.folder, oid)}" if remote.folder is not None else f"in {remote.shown}"
    text = f"{_what(needed, oid)} is corrupt in the remote, {place}; {way_out}"
    return Finding("object-corrupt", text, facts={**_facts(needed, oid, "remote"), "inCache": sound})


def _from_cache(scope: Scope, remote: Remote, oid: str) -> str:
    """How a person puts the sound copy in its place: DVC itself replaces nothing that is there."""
    sound = "this machine's cache has a sound copy"
    if remote.folder is None:
        return f"{sound}: delete it there, then `retrace doctor --fix` pushes that copy"
    places = (object_path(scope.settings.cache, oid), object_path(remote.folder, oid))
    return f"{sound}: {shlex.join(['cp', '-f', *map(str, places)])}"
