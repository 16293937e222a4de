"""What is left on this machine below var/: workspaces, temporary folders, environments, caches of past runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from retrace import workspace
from retrace.environment import PYTHON_VERSION, REQUIREMENTS, EnvironmentFailed, EnvironmentLock
from retrace.git import escape_ref_part
from retrace.health.left import Left, size_below, touched, touched_below
from retrace.health.scope import Scope, local_refs, object_ids
from retrace.reproduce import PARTIAL, REBUILDS

TEMPORARY = ("site", "dags", "views", "forget")  # the names that `temporary_folder` is called with
_ENVIRONMENT = re.compile(r"[0-9a-f]{16}")
_IDLE = timedelta(days=1)
_SETTLED = timedelta(seconds=5)  # between the last byte of a copy and its renaming nobody has it open


def workspaces(scope: Scope) -> Iterator[Left]:
    """Checkouts whose process has ended: the kernel has freed their lock."""
    for lock in workspace.orphans(scope.settings):
        left = workspace.orphan_of(lock)
        yield Left(left.path.name, touched(lock), _orphan(lock), size_below(left.path, left.site_cache))


def _orphan(lock: Path) -> Callable[[], bool]:
    return lambda: workspace.remove_orphan(lock)


def temporary_folders(scope: Scope) -> Iterator[Left]:
    """Folders of processes that were killed; they bear its number."""
    for name in TEMPORARY:
        for folder in sorted(scope.settings.var.glob(f"{name}-*")):
            if _is_dead(folder.name.removeprefix(f"{name}-")):
                yield Left(folder.name, touched(folder), _removal(folder), size_below(folder))


def _is_dead(process: str) -> bool:
    return process.isdecimal() and not workspace.lives(int(process))


def _removal(*places: Path) -> Callable[[], bool]:
    def remove() -> bool:
        for place in places:
            if place.is_dir():
                workspace.remove_folder(place)
            else:
                place.unlink(missing_ok=True)
        return True

    return remove


def logs(scope: Scope) -> Iterator[Left]:
    """Logs of rebuilds and checks that were killed before they could say whether anybody needs them."""
    marks = [mark for depth in ("*", "*/*") for mark in scope.settings.logs.glob(f"{depth}/{workspace.UNFINISHED}*")]
    for mark in sorted(marks):
        if _is_dead(mark.name.removeprefix(workspace.UNFINISHED)):
            yield Left(mark.parent.name, touched(mark), _removal(mark.parent), size_below(mark.parent))


def partial_rebuilds(scope: Scope) -> Iterator[Left]:
    """Rebuilds whose process was killed while it put them where they were to stay; they bear its number."""
    for folder in sorted((scope.settings.var / REBUILDS).glob(f"*{PARTIAL}")):
        if _is_dead(folder.stem.rpartition("-")[2]):
            yield Left(folder.name, touched(folder), _removal(folder), size_below(folder))


def kept_rebuilds(scope: Scope) -> list[Path]:
    """Rebuilds that somebody asked to keep."""
    return sorted(path for path in (scope.settings.var / REBUILDS).glob("*--*") if path.suffix != PARTIAL)


def environments(scope: Scope) -> Iterator[Left]:
    """Environments that a crash left half-made, and those of a lock that no version, run, scoring or branch has.

    Those of versions stay, however old: one may be the last place that has a package.
    """
    folder = scope.settings.environments
    names = {path.stem for path in folder.glob("*") if _ENVIRONMENT.fullmatch(path.stem) and path.suffix != ".lock"}
    used = _used(scope) if names else set()
    for name in sorted(names):
        place, text, lock = folder / name, folder / f"{name}.txt", folder / f"{name}.lock"
        if (place / ".complete").exists() and name in used:
            continue
        lock.touch()
        with workspace.tried_lock(lock) as free:
            if not free:
                continue  # it is being made
        there = place if place.exists() else text
        yield Left(name, touched(there), _unless_held(lock, _removal(place, text)), size_below(place, text))


def _unless_held(lock: Path, remove: Callable[[], bool]) -> Callable[[], bool]:
    def removed() -> bool:
        with workspace.tried_lock(lock) as free:
            return free and remove()

    return removed


def _used(scope: Scope) -> set[str]:
    """The names of the environments of every lock that a ref leads to, or that the checkout here has."""
    refs = [ref for kind in ("heads", "runs", "scores") for ref in local_refs(scope.mirror, f"refs/{kind}/").values()]
    commits = [*refs, *(version.commit for version in scope.versions), *([scope.code] if scope.code else [])]
    places = (f"{commit}:{path}" for commit in commits for path in (REQUIREMENTS, PYTHON_VERSION))
    ids = object_ids(scope.mirror, places)
    distinct = {
        (ids.get(f"{commit}:{REQUIREMENTS}"), ids.get(f"{commit}:{PYTHON_VERSION}")): commit for commit in commits
    }
    used = set()
    for commit in distinct.values():
        with suppress(EnvironmentFailed):
            used.add(EnvironmentLock.of_commit(scope.mirror, commit).digest[:16])
    with suppress(EnvironmentFailed):
        used.add(EnvironmentLock.of_folder(scope.settings.root).digest[:16])
    return used


def scratch(scope: Scope) -> Iterator[Left]:
    """What interrupted trainings keep to go on from: left when nothing has run here for a day."""
    if _works(scope):
        return
    for place in sorted((scope.settings.var / "scratch").glob("*")):
        since = touched_below(place)
        if since < datetime.now(UTC) - _IDLE:
            yield Left(place.name, since, _removal(place), size_below(place))


def _works(scope: Scope) -> bool:
    """Whether a process of this machine holds a workspace."""
    locks = set(scope.settings.workspaces.glob("*.lock"))
    return bool(locks - set(workspace.orphans(scope.settings)))


def run_caches(scope: Scope) -> Iterator[Left]:
    """What DVC remembers of a run's tries, of runs that have become a version or are gone."""
    if scope.origin_refs is None:
        return
    over = {version.run_ref for version in scope.versions}
    under_way = {escape_ref_part(ref) for ref in scope.origin_refs if ref not in over}
    for place in sorted((scope.settings.var / "runs").glob("*")):
        since = touched_below(place)
        if place.name not in under_way and since < scope.looked:
            yield Left(place.name, since, _removal(place), size_below(place))


def partial_copies(scope: Scope) -> Iterator[Left]:
    """Copies that a killed DVC left in the cache under a name of its own: no process has them open."""
    copies = sorted((scope.settings.cache / "files/md5").glob("*/*.tmp"))
    settled = [place for place in copies if touched(place) < datetime.now(UTC) - _SETTLED]
    written = _open_files() if settled else set()
    for place in settled:
        if str(place.resolve()) not in written:
            yield Left(place.name, touched(place), _removal(place), size_below(place))


def _open_files() -> set[str]:
    import psutil

    found: set[str] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            found |= {file.path for file in process.open_files()}
    return found
