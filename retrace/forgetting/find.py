"""Where the records are: every content that a dataset's partitions ever had, searched; and the source, asked again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from retrace.config import IngestSettings, Settings
from retrace.dvcfiles import object_path
from retrace.errors import RetraceError, TransientError
from retrace.git import Mirror
from retrace.hashing import hash_file
from retrace.ingest import Fetch
from retrace.intervals import Interval, intervals
from retrace.manifest import Partition
from retrace.process import Job, run_job
from retrace.search import Hit, Place, search
from retrace.sources.sql import EmptyInterval
from retrace.workspace import workspace

_AHEAD = timedelta(days=3660)  # no data is of later than that


class SourceStillHas(RetraceError):
    """The source would bring the records back."""


class SourceNotAsked(RetraceError):
    """Whether the source would bring the records back cannot be known."""


class SourceUnknownForNow(SourceNotAsked, TransientError):
    """The source does not answer; it may do so later."""


@dataclass(frozen=True)
class Found:
    """The partitions that hold records, the files of all that could be read, and why others could not be searched.

    `unsearched` is (path, md5, reason), `nowhere` what neither this machine's cache nor the remote has, `in_checkout`
    the files with records in the user's own checkout.
    """

    hits: tuple[Hit, ...]
    files: dict[str, Path]
    unsearched: tuple[tuple[str, str, str], ...]
    nowhere: tuple[Partition, ...]
    in_checkout: tuple[str, ...]


def find(
    settings: Settings, mirror: Mirror, code: str, partitions: Sequence[Partition], condition: str, folder: Path
) -> Found:
    """Search partitions by the condition; what this machine's cache lacks is brought into `folder` first.

    Raises `ConditionRefused`, and what reading the remote may raise.
    """
    files = {part.md5: place for part in partitions if (place := _cached(settings, part)) is not None}
    absent = [part for part in {part.md5: part for part in partitions}.values() if part.md5 not in files]
    brought, corrupt = _bring(settings, mirror, code, absent, folder) if absent else ({}, set())
    files |= brought
    places = [Place(part.path, part.md5, files[part.md5]) for part in partitions if part.md5 in files]
    searched = search(condition, places)
    damaged = [
        (part.path, part.md5, "is damaged in the remote and not in this machine's cache")
        for part in absent
        if part.md5 in corrupt
    ]
    nowhere = tuple(part for part in absent if part.md5 not in files and part.md5 not in corrupt)
    hit = {(found.path, found.md5) for found in searched.hits}
    own = tuple(path for path, md5 in sorted(hit) if _is(settings.root / path, md5))
    return Found(searched.hits, files, (*searched.unsearchable, *damaged), nowhere, own)


def _is(place: Path, md5: str) -> bool:
    return place.is_file() and hash_file(place).md5 == md5


def _cached(settings: Settings, part: Partition) -> Path | None:
    """The partition in this machine's cache, if its bytes are what git says."""
    place = object_path(settings.cache, part.md5)
    return place if place.is_file() and hash_file(place).sha256 == part.sha256 else None


def _bring(
    settings: Settings, mirror: Mirror, code: str, parts: Sequence[Partition], folder: Path
) -> tuple[dict[str, Path], set[str]]:
    """(md5 -> file of what the remote has, the md5s of what is damaged there); no cache is touched."""
    targets = {part.md5: folder / part.md5 for part in parts}
    objects = [{"path": str(targets[part.md5]), "md5": part.md5, "sha256": part.sha256} for part in parts]
    with workspace(settings, mirror, code, "forget") as space:
        log = settings.logs / "forget" / "search.log"
        result = run_job(settings, Job("the search", space, {"operation": "fetch", "objects": objects}, log))
    bad = {*result["missing"], *result["corrupt"]}
    sound = {md5: target for md5, target in targets.items() if str(target) not in bad}
    return sound, {md5 for md5, target in targets.items() if str(target) in result["corrupt"]}


def ask_source(
    ingest: IngestSettings, dataset: str, names: Iterable[str], condition: str, fetch: Fetch, folder: Path
) -> None:
    """Refuse while the source's own query still gives records that match, in any of the intervals.

    Raises `SourceStillHas`, or `SourceNotAsked` where it cannot be known.
    """
    still = [
        (name, rows) for name in sorted(names) if (rows := _in_source(ingest, dataset, name, condition, fetch, folder))
    ]
    if still:
        shown = ", ".join(f"{rows:,} such rows in {name}" for name, rows in still)
        raise SourceStillHas(
            f"the source still has {shown} for {dataset}, as asked through the Connection {ingest.connection}, and the "
            "next ingestion would bring them back; delete them there first, then run this again"
        )


def _in_source(ingest: IngestSettings, dataset: str, name: str, condition: str, fetch: Fetch, folder: Path) -> int:
    path = f"source/{name}.parquet"
    try:
        part = fetch(ingest, dataset, _interval(ingest, name), folder, path)
    except EmptyInterval:
        return 0
    except RetraceError as error:
        kind = SourceUnknownForNow if isinstance(error, TransientError) else SourceNotAsked
        raise kind(
            f"whether the source would bring the records of {name} back is not known, so nothing is changed: {error}"
        ) from None
    searched = search(condition, [Place(path, part.md5, folder / path)])
    (folder / path).unlink()
    if searched.unsearchable:
        reason = searched.unsearchable[0][2]
        raise SourceNotAsked(f"whether the source still has the records of {name} is not known: what it gives {reason}")
    return sum(hit.rows for hit in searched.hits)


def _interval(ingest: IngestSettings, name: str) -> Interval:
    """The interval that a partition of this name stands for. Raises `SourceNotAsked`."""
    for interval in intervals(ingest.start, datetime.now(UTC) + _AHEAD, ingest.every):
        if interval.name == name:
            return interval
        if interval.name > name:
            break
    raise SourceNotAsked(
        f"{name} is no {ingest.every} from ingest.start on in params.yaml, so that the source cannot be asked for it"
    )
