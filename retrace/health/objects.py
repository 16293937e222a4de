"""Whether the DVC remote has every object that a version needs; what only this machine has can be put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from retrace.dvcfiles import object_path
from retrace.errors import RetraceError
from retrace.hashing import hash_file
from retrace.health import remote as asked
from retrace.health.finding import Finding, Section, State, named
from retrace.health.needs import Needed, Needs
from retrace.health.scope import NEWEST_DATA, REMOTE, Scope
from retrace.wording import counted
from retrace.workspace import Remote

_SECTION = "objects"


def objects(scope: Scope, needs: Needs, forgotten: Mapping[str, str], *, fix: bool) -> Section:
    """Ask the remote for every object by name: DVC takes a directory whose list is there for complete.

    `forgotten` is object id -> the ticket on whose request it was removed. With `fix`, sound objects that only this
    machine's cache has are pushed.
    """
    try:
        remote = scope.remote()
        if remote is None:
            return Section(_SECTION, "not looked at: the code that names the remote is not here")
        if remote.folder is not None and needs.objects and not remote.folder.is_dir():
            scope.silent[REMOTE] = f"the folder {remote.folder} is not there; mount it or set RETRACE_REMOTE"
            return Section(_SECTION, f"{counted(len(needs.objects), 'object')} needed; the remote does not answer")
        scope.asked.append(REMOTE)
        missing = asked.absent(scope, remote, needs.objects)
        return _told(scope, remote, needs, forgotten, missing, fix=fix)
    except RetraceError as error:
        scope.silent[REMOTE] = str(error)
        return Section(_SECTION, f"{counted(len(needs.objects), 'object')} needed; the remote does not answer")


def _told(
    scope: Scope, remote: Remote, needs: Needs, forgotten: Mapping[str, str], missing: set[str], *, fix: bool
) -> Section:
    lost = missing - forgotten.keys()
    here = {oid for oid in lost if in_cache(scope, needs.objects[oid])}
    findings = []
    if fix and here:
        still = asked.push(scope, remote, here)
        findings += list(_pushed(remote, _grouped(needs, here - still)))
        lost, here = lost - (here - still), here & still
    findings += [_lost(remote, group, here=False) for group in _grouped(needs, lost - here)]
    findings += [_lost(remote, group, here=True) for group in _grouped(needs, here)]
    findings += list(_forgotten(needs, missing & forgotten.keys(), forgotten))
    needed = counted(len(needs.objects), "object")
    summary = f"{needed}, all in the remote" if not missing else f"{needed}, {len(missing):,} not in the remote"
    return Section(_SECTION, summary, tuple(findings))


def in_cache(scope: Scope, needed: Needed) -> bool:
    """Whether this machine's cache has the object, and its bytes are what the record says."""
    place = object_path(scope.settings.cache, needed.oid)
    if not place.is_file():
        return False
    found = hash_file(place)
    return found.md5 == needed.oid.removesuffix(".dir") and needed.sha256 in (None, found.sha256)


def _grouped(needs: Needs, oids: Iterable[str]) -> list[list[Needed]]:
    """Objects that the same versions need for the same purpose, together: a lost folder is one finding."""
    groups: dict[tuple[bool, tuple[str, ...]], list[Needed]] = {}
    for oid in oids:
        needed = needs.objects[oid]
        groups.setdefault((needed.raw, tuple(needed.by)), []).append(needed)
    return [sorted(group, key=lambda item: item.path) for _, group in sorted(groups.items(), reverse=True)]


def shown(group: list[Needed]) -> str:
    """The first of some objects by path and md5, and how many more there are."""
    more = f" and {counted(len(group) - 1, 'more object')}" if len(group) > 1 else ""
    return f"{group[0].path} (md5 {group[0].oid}){more}"


def consequence(group: list[Needed]) -> str:
    """What cannot be done without these objects."""
    own = [name for name in group[0].by if name != NEWEST_DATA]
    if not group[0].raw:
        return f"{named(own)} cannot be checked out, but can be rebuilt"
    parts = [f"{named(own)} cannot be rebuilt"] if own else []
    parts += ["the next retrain will fail"] if NEWEST_DATA in group[0].by else []
    return ", ".join(parts)


def facts(group: list[Needed]) -> dict[str, object]:
    """The group for programs."""
    return {
        "versions": [name for name in group[0].by if name != NEWEST_DATA],
        "newestData": NEWEST_DATA in group[0].by,
        "raw": group[0].raw,
        "objects": [{"path": item.path, "md5": item.oid} for item in group],
    }


def _lost(remote: Remote, group: list[Needed], *, here: bool) -> Finding:
    where = "are" if len(group) > 1 else "is"
    way_out = (
        "this machine's cache has it: `retrace doctor --fix` pushes it back"
        if here
        else "push it from a machine that has it"
    )
    text = f"{consequence(group)}: {shown(group)} {where} missing in the remote {remote.shown}; {way_out}"
    return Finding("object-missing", text, facts={**facts(group), "inCache": here})


def _pushed(remote: Remote, groups: Iterable[list[Needed]]) -> Iterator[Finding]:
    for group in groups:
        text = f"{shown(group)} of {named(group[0].by)} pushed back to {remote.shown} from this machine's cache"
        yield Finding("object-missing", text, "fixed", {**facts(group), "inCache": True})


def _forgotten(needs: Needs, oids: Iterable[str], tickets: Mapping[str, str]) -> Iterator[Finding]:
    by_ticket: dict[str, list[Needed]] = {}
    for oid in sorted(oids):
        by_ticket.setdefault(tickets[oid], []).append(needs.objects[oid])
    state: State = "noted"
    for ticket, group in sorted(by_ticket.items()):
        versions = sorted({name for item in group for name in item.by})
        text = f"forgotten on request {ticket}: {shown(group)}, of {named(versions)}"
        objects = [{"path": item.path, "md5": item.oid} for item in group]
        yield Finding("object-forgotten", text, state, {"ticket": ticket, "versions": versions, "objects": objects})
