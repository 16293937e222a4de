"""What is left in the origin: leases of the dead, runs that made no version, scorings. Versions' refs never are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from retrace.git import ABSENT, RefMoved, RefUpdate, escape_ref_part
from retrace.health.left import Left
from retrace.health.scope import Scope
from retrace.lease import Lease

_LOCKS, _RUNS, _SCORES = "refs/locks/", "refs/runs/", "refs/scores/"


def leases(scope: Scope) -> Iterator[Left]:
    """Leases whose time is over, or whose process on this machine is dead."""
    for ref, (commit, since) in _dated(scope, _LOCKS).items():
        lease = _lease(scope, commit)
        if lease is not None and lease.free():
            yield Left(ref.removeprefix(_LOCKS), since, _removal(scope, ref, commit))


def _lease(scope: Scope, commit: str) -> Lease | None:
    with suppress(ValueError, TypeError):
        return Lease(**json.loads(scope.mirror.message(commit)))
    return None


def runs(scope: Scope) -> Iterator[Left]:
    """Runs that failed or made nothing new, older than params.yaml says, unless they are still under way."""
    kept = {version.run_ref for version in scope.versions}
    yield from _old(scope, _RUNS, kept | _under_way(scope))


def _under_way(scope: Scope) -> set[str]:
    """The refs of runs that hold their model's lease."""
    held = set()
    for ref, (commit, _) in _dated(scope, _LOCKS).items():
        lease = _lease(scope, commit)
        if lease is not None and not lease.free():
            held.add(f"{_RUNS}{ref.removeprefix(_LOCKS)}/{escape_ref_part(lease.run_id)}")
    return held


def scores(scope: Scope) -> Iterator[Left]:
    """How old versions did on newer data: made again when somebody asks."""
    yield from _old(scope, _SCORES, set())


def _old(scope: Scope, prefix: str, kept: set[str]) -> Iterator[Left]:
    oldest = datetime.now(UTC) - timedelta(days=scope.schedule.keep_runs_days)
    for ref, (commit, since) in _dated(scope, prefix).items():
        if ref not in kept and since < oldest:
            yield Left(ref.removeprefix(prefix), since, _removal(scope, ref, commit))


def _dated(scope: Scope, prefix: str) -> dict[str, tuple[str, datetime]]:
    """Ref -> its commit and when that was made, of what the origin has; nothing while it does not answer."""
    if scope.origin_refs is None:
        return {}
    form = "--format=%(refname) %(objectname) %(committerdate:iso-strict)"
    lines = (line.split(" ") for line in scope.mirror.out("for-each-ref", form, prefix).splitlines())
    return {ref: (commit, datetime.fromisoformat(date)) for ref, commit, date in lines}


def _removal(scope: Scope, ref: str, commit: str) -> Callable[[], bool]:
    def remove() -> bool:
        try:
            scope.mirror.push([RefUpdate(ref, ABSENT, commit)])
        except RefMoved:
            return False
        scope.mirror.out("update-ref", "-d", ref, commit)
        if scope.origin_refs is not None:
            scope.origin_refs.pop(ref, None)
        return True

    return remove
