"""What a person reads before and after a request is carried out. Nothing here has seen the condition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from retrace.dvcfiles import RAW
from retrace.forgetting.find import Found
from retrace.forgetting.plan import Plan
from retrace.forgetting.purge import Purged
from retrace.versions import CHAMPION
from retrace.wording import counted

_SHOWN = 8


def plan_lines(plan: Plan, found: Found, rebuilds: Sequence[Path]) -> Iterator[str]:
    """What would be lost, and what would not although it derives from the records."""
    request = plan.request
    yield f"request {request.ticket} on {request.dataset}; what it would cost:"
    for item in plan.replacements:
        name = PurePosixPath(item.partition.path).stem
        yield f"  {name}: {counted(item.rows, 'row')} of {item.partition.rows:,} removed, the partition replaced"
    older = len(plan.partitions) - len(plan.replacements)
    if older:
        yield f"  {counted(older, 'older content')} of partitions, kept for versions, deleted"
    if plan.versions:
        yield f"  can never be rebuilt or served again: {_some(version.name for version in plan.versions)}"
        yield "    their files in MLflow are deleted, too; metrics, parameters and the entries stay"
    for name, aliases in plan.aliases.items():
        yield from _alias_lines(name, aliases)
    if plan.runs:
        yield f"  what other runs and scores made of the data: {_some(plan.runs)}"
    if rebuilds:
        yield f"  rebuilds that `reproduce --keep` left here, removed: {', '.join(map(str, rebuilds))}"
    yield f"  {counted(len(plan.stones), 'object')} deleted from cache and remote: {_kinds(plan)}"
    if plan.shared:
        yield f"    {counted(plan.shared, 'more stays', 'more stay')}: what is without the records has them, too"
    yield from _stays(plan, found)


def _alias_lines(name: str, aliases: Iterable[str]) -> Iterator[str]:
    yield f"  WARNING: {name} is {', '.join(aliases)}: serving stops until another version is promoted"
    if CHAMPION in aliases:
        yield "    retrain afterwards and promote by hand (`retrace promote`): the gate cannot score what is gone"


def _kinds(plan: Plan) -> str:
    """How many objects there are below each of the usual folders."""
    kinds = Counter(_kind(stone.path) for stone in plan.stones)
    return ", ".join(f"{number} of {kind}" for kind, number in sorted(kinds.items()))


def _kind(path: str) -> str:
    parts = PurePosixPath(path).parts
    if path.startswith(f"{RAW}/"):
        return "/".join(parts[:3])
    return "/".join(parts[:2]) if parts[0] == "data" else parts[0]


def _not_searched(found: Found) -> Iterator[str]:
    for path, md5, reason in found.unsearched:
        yield f"  NOT SEARCHED, and so not touched: {path} ({md5[:12]}): {reason}"
    if found.nowhere:
        parts = _some(f"{part.path} ({part.md5[:12]})" for part in found.nowhere)
        yield f"  not searched, being in neither cache nor remote: {parts}"


def _stays(plan: Plan, found: Found) -> Iterator[str]:
    """What the command does not reach, so that a person can."""
    yield from _not_searched(found)
    if found.in_checkout:
        yield f"  stays in this checkout until `retrace data pull`: {_some(found.in_checkout)}"
    if plan.in_git:
        yield f"  stays in git, whose history is not rewritten: {_in_git(plan.in_git)}"
        yield "    (small reports may show example rows; events of stages hold extremes of numeric columns)"
    yield "  not asked: the source about other intervals; records that it has there come with a later ingestion"
    yield "  not reached: checkouts and copies elsewhere, backups, logs, a lineage consumer, old versions in a bucket"
    yield "    other machines' caches: what has a tombstone is dropped and refused there as soon as it is to be used"


def _in_git(paths: Iterable[str]) -> str:
    """Examples for serving are rows of the data: they come first, and all of them are named."""
    known = sorted(paths, key=lambda path: (not _has_rows(path), path))
    return _some(known, max(_SHOWN, sum(map(_has_rows, known))))


def _has_rows(path: str) -> bool:
    return PurePosixPath(path).name == "serving.json"


def done_already(plan: Plan) -> str:
    """What to say when the same request was carried out before."""
    return f"request {plan.request.ticket} is done: {counted(len(plan.stones), 'tombstone')}, nothing left to do"


def done_lines(plan: Plan, commit: str | None, purged: Purged) -> Iterator[str]:
    """What was done."""
    if commit is not None:
        parts = counted(len(plan.replacements), "partition")
        yield f"{parts} of {plan.request.dataset} replaced: commit {commit[:8]} on data"
    yield (
        f"{counted(len(plan.stones), 'tombstone')}; {counted(purged.remote, 'object')} deleted from the remote, "
        f"{purged.cache:,} from this machine's cache"
    )
    if purged.unnamed:
        objects = counted(purged.unnamed, "object is", "objects are")
        yield f"{objects} left in cache or remote that no commit names, of runs that were given up or of `dvc repro` by"
        yield "  hand: whether they were made of these records cannot be known; delete what nobody needs"
    if plan.versions:
        names = _some(version.name for version in plan.versions)
        yield f"{names}: impossible to rebuild, forgotten on request {plan.request.ticket}"


def nothing_lines(plan: Plan, found: Found, searched: int) -> Iterator[str]:
    """What to say when no partition holds such records."""
    yield f"no such records in {plan.request.dataset}: {counted(searched, 'content')} of partitions searched"
    yield from _not_searched(found)


def _some(names: Iterable[str], shown: int = _SHOWN) -> str:
    known = list(dict.fromkeys(names))
    more = len(known) - shown
    return ", ".join(known[:shown]) + (f" and {more} more" if more > 0 else "")
