"""What crashed runs left behind, and what nobody needs any more; `--fix` removes it.

Nothing that a process holds is touched: locks, process numbers and leases are asked, not clocks alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from retrace.health import left_files, left_refs
from retrace.health.finding import Finding, Section, size_of
from retrace.health.left import Left, size_below
from retrace.health.scope import Scope
from retrace.wording import counted

_SECTION = "leftovers"
_SHOWN = 3


@dataclass(frozen=True)
class _Kind:
    """What is left of one kind, and why it is known to be left."""

    noun: str
    why: str
    find: Callable[[Scope], Iterable[Left]]


# Refs first: an environment or a run cache that only an old run named is left, too, once that is gone.
_KINDS = (
    _Kind("lease", "that nobody holds any more", left_refs.leases),
    _Kind("run", "that made no version, older than doctor.keep_runs_days", left_refs.runs),
    _Kind("scoring", "older than doctor.keep_runs_days", left_refs.scores),
    _Kind("workspace", "that no process holds", left_files.workspaces),
    _Kind("temporary folder", "of processes that have ended", left_files.temporary_folders),
    _Kind("log folder", "of rebuilds and checks that were killed", left_files.logs),
    _Kind("half-moved rebuild", "of `retrace reproduce --keep`", left_files.partial_rebuilds),
    _Kind("environment", "half-made, or of no version, run or branch", left_files.environments),
    _Kind("scratch folder", "of trainings that ended long ago", left_files.scratch),
    _Kind("run cache", "of runs that are over", left_files.run_caches),
    _Kind("half-made copy", "in the cache that nobody writes", left_files.partial_copies),
)


def leftovers(scope: Scope, *, fix: bool) -> Section:
    """Find what is left, kind by kind, and remove it with `fix`."""
    findings = [finding for kind in _KINDS for finding in _of_kind(scope, kind, fix=fix)]
    return Section(_SECTION, "" if findings else "none", (*findings, *_kept(scope)))


def _kept(scope: Scope) -> Iterator[Finding]:
    """Rebuilds that somebody asked to keep are not left behind, but nothing else tells of them."""
    kept = left_files.kept_rebuilds(scope)
    if kept:
        size = size_below(*kept)
        told = f"{counted(len(kept), 'rebuild')} kept by `retrace reproduce --keep`, {size_of(size)}"
        text = f"{told}: remove from {kept[0].parent} what nobody needs any more"
        yield Finding("rebuild-kept", text, "noted", {"names": [folder.name for folder in kept], "size": size})


def _of_kind(scope: Scope, kind: _Kind, *, fix: bool) -> Iterator[Finding]:
    scope.follow(f"looks for what is left: {kind.noun}")
    left = list(kind.find(scope))
    kept = left
    if fix and left:
        gone = [item for item in left if item.remove()]
        kept = [item for item in left if item not in gone]
        if gone:
            yield Finding("leftover", f"removed {_told(kind, gone)}", "fixed", _facts(kind, gone))
    if kept:
        way_out = "in use again: left alone" if fix else "`retrace doctor --fix` removes them"
        yield Finding("leftover", f"{_told(kind, kept)}; {way_out}", facts=_facts(kind, kept))


def _told(kind: _Kind, left: list[Left]) -> str:
    names = ", ".join(_with_age(item) for item in left[:_SHOWN]) + (", ..." if len(left) > _SHOWN else "")
    size = sum(item.size or 0 for item in left)
    return f"{counted(len(left), kind.noun)} {kind.why}: {names}{f'; {size_of(size)}' if size else ''}"


def _with_age(item: Left) -> str:
    days = (datetime.now(UTC) - item.since).days
    return f"{item.name} ({counted(days, 'day')} old)" if days else item.name


def _facts(kind: _Kind, left: list[Left]) -> dict[str, object]:
    items = [{"name": item.name, "size": item.size, "since": item.since.isoformat(timespec="seconds")} for item in left]
    return {"what": kind.noun, "items": items}
