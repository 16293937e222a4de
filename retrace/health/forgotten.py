"""Whether raw data that was forgotten on request has come back, as an old cache can bring it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from retrace.dvcfiles import object_path
from retrace.errors import RetraceError
from retrace.health import remote as asked
from retrace.health.finding import Finding, Section
from retrace.health.scope import REMOTE, Scope
from retrace.tombstones import Tombstone
from retrace.wording import counted

_SECTION = "forgotten"


def forgotten(scope: Scope, stones: Mapping[str, Tombstone], *, fix: bool) -> Section:
    """Look for the tombstones' raw objects in cache and remote; with `fix` they are removed from the cache.

    What was derived from them may have been made again without them, and is not looked for.
    """
    raw = {md5 for md5, stone in stones.items() if stone.raw}
    findings = [*_in_cache(scope, raw, stones, fix=fix), *_in_remote(scope, raw, stones)]
    summary = counted(len(raw), "raw object")
    return Section(_SECTION, summary if findings else f"{summary}, none has come back", tuple(findings))


def _in_cache(scope: Scope, raw: Collection[str], stones: Mapping[str, Tombstone], *, fix: bool) -> Iterator[Finding]:
    for md5 in sorted(raw):
        place = object_path(scope.settings.cache, md5)
        if not place.is_file():
            continue
        said = f"{_what(stones[md5])} is in this machine's cache"
        if fix:
            place.unlink(missing_ok=True)
            yield Finding("forgotten-returned", f"{said}: removed there", "fixed", _facts(stones[md5], "cache"))
        else:
            text = f"{said}: `retrace doctor --fix` removes it there"
            yield Finding("forgotten-returned", text, facts=_facts(stones[md5], "cache"))


def _in_remote(scope: Scope, raw: Collection[str], stones: Mapping[str, Tombstone]) -> Iterator[Finding]:
    if REMOTE in scope.silent:
        return
    try:
        remote = scope.remote()
        back = set(raw) - asked.absent(scope, remote, raw) if remote is not None else set()
    except RetraceError as error:
        scope.silent[REMOTE] = str(error)
        return
    for md5 in sorted(back):
        text = f"{_what(stones[md5])} is in the remote again; repeat that `retrace forget`, it purges it"
        yield Finding("forgotten-returned", text, facts=_facts(stones[md5], "remote"))


def _what(stone: Tombstone) -> str:
    return f"{stone.path} (md5 {stone.md5}), forgotten on request {stone.ticket},"


def _facts(stone: Tombstone, where: str) -> dict[str, object]:
    return {"where": where, "md5": stone.md5, "path": stone.path, "ticket": stone.ticket}
