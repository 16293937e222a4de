"""Records: which partitions of a raw dataset have rows of some condition, and the versions that these went into.

The condition may be personal data: no message, answer, log or file holds any of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from retrace import tombstones
from retrace.config import Settings
from retrace.dvcfiles import RAW, object_path
from retrace.errors import RetraceError
from retrace.git import Mirror
from retrace.hashing import hash_file
from retrace.manifest import Partition
from retrace.process import Job, run_job
from retrace.runs import code_commit
from retrace.search import ConditionRefused, Hit, Place, Searched, search
from retrace.usage.answer import SHORT, Answer, Content, UnknownThing, Use, counted
from retrace.usage.holdings import Holdings
from retrace.usage.raw_data import RawData
from retrace.workspace import remote_of, workspace

_AT_ONCE = 64  # partitions that are on this machine only for the search


class DatasetUnclear(RetraceError):
    """Which dataset a condition is about was not said."""


def about_records(settings: Settings, holdings: Holdings, condition: str, dataset: str | None) -> Answer:
    """The answer about the rows for which a condition holds, in every partition that any version or the data has.

    Raises `ConditionRefused`, `DatasetUnclear`, `UnknownThing`, and what a remote may raise.
    """
    raw = RawData(holdings)
    name = _chosen(raw, dataset)
    everything = raw.contents(None, name)
    searched = _search(settings, holdings, condition, list(everything))
    rows = {(hit.path, hit.md5): hit.rows for hit in searched.hits}
    held = raw.held({item: manifests for item, manifests in everything.items() if (item.path, item.md5) in rows})
    matching: dict[str, int] = defaultdict(int)
    partitions: dict[str, int] = defaultdict(int)
    contents = []
    for item in held:
        part, count = item.partition, rows[item.partition.path, item.partition.md5]
        for version in item.versions:
            matching[version] += count
            partitions[version] += 1
        text = f"{part.path}  md5 {part.md5}  {count:,} of {part.rows:,} rows"
        text += "  (in the newest data)" if item.in_newest else ""
        contents.append(Content(text, item.facts | {"matching": count}, item.versions))
    uses = [
        Use(
            version,
            f"{counted(matching[name], 'row')} of {counted(partitions[name], 'partition')}",
            {"rows": matching[name], "partitions": partitions[name]},
        )
        for name, version in holdings.named.items()
        if name in partitions
    ]
    title = f"records of {RAW}/{name}: {counted(sum(rows.values()), 'row')} in {counted(len(rows), 'partition')}"
    title += f" of {len(everything)}"
    return Answer(
        title,
        {"kind": "records", "dataset": name},
        uses,
        contents,
        [f"not searched: {path} md5 {md5[:SHORT]}: {why}" for path, md5, why in searched.unsearchable],
        {"unsearchable": [{"path": path, "md5": md5, "why": why} for path, md5, why in searched.unsearchable]},
    )


def _chosen(raw: RawData, dataset: str | None) -> str:
    known = raw.datasets
    name = dataset.removeprefix(f"{RAW}/").rstrip("/") if dataset is not None else None
    if not known:
        raise UnknownThing("there is no raw data yet; run `retrace ingest --until DATE` first")
    if name is None and len(known) > 1:
        raise DatasetUnclear(f"say which dataset the condition is about: --dataset with one of {', '.join(known)}")
    if name is not None and name not in known:
        raise UnknownThing(f"no dataset {name}; there are {', '.join(known)}")
    return name or known[0]


def _search(settings: Settings, holdings: Holdings, condition: str, partitions: Sequence[Partition]) -> Searched:
    """Search what is here, then what only the remote has, some files at a time."""
    hits: list[Hit] = []
    unsearchable: list[tuple[str, str, str]] = []
    refused: ConditionRefused | None = None
    read = False
    for places, absent in _batches(settings, holdings, partitions):
        unsearchable += absent
        try:
            searched = _sound(search(condition, places), condition, partitions, _stores(settings))
        except ConditionRefused as error:
            refused = error
            unsearchable += [(place.path, place.md5, str(error)) for place in places]
            continue
        read = read or bool(places)
        hits += searched.hits
        unsearchable += searched.unsearchable
    if refused is not None and not read:
        raise refused
    return Searched(tuple(hits), tuple(sorted(unsearchable)))


def _sound(searched: Searched, condition: str, partitions: Sequence[Partition], stores: Sequence[Path]) -> Searched:
    """The same, once more where a file is not what git says: by another store's copy, or told as damaged.

    Only what has rows or cannot be read is hashed: to hash every file would take longer than the search.
    """
    met = {hit.md5 for hit in searched.hits} | {md5 for _, md5, _ in searched.unsearchable}
    looked_at = {item.md5: item for item in partitions if item.md5 in met}
    copies = {md5: _copies(stores, item) for md5, item in looked_at.items()}
    damaged = {md5 for md5, files in copies.items() if files and not _is(files[0], looked_at[md5])}
    if not damaged:
        return searched
    other = {md5: next((file for file in copies[md5][1:] if _is(file, looked_at[md5])), None) for md5 in damaged}
    again = [Place(item.path, item.md5, file) for item in partitions if (file := other.get(item.md5)) is not None]
    found = search(condition, again)
    hits = [hit for hit in searched.hits if hit.md5 not in damaged]
    rest = [told for told in searched.unsearchable if told[1] not in damaged]
    lost = [(item.path, item.md5, _DAMAGED) for item in partitions if item.md5 in damaged and other[item.md5] is None]
    return Searched((*hits, *found.hits), (*rest, *found.unsearchable, *lost))


def _is(file: Path, item: Partition) -> bool:
    return hash_file(file).sha256 == item.sha256


def _copies(stores: Sequence[Path], item: Partition) -> list[Path]:
    return [file for store in stores if (file := object_path(store, item.md5)).is_file()]


def _stores(settings: Settings) -> list[Path]:
    """Where objects are that can be read in place: this machine's cache, and the remote if it is a folder."""
    remote = remote_of(settings, (settings.root / ".dvc/config").read_text())
    return [settings.cache] if remote.folder is None else [settings.cache, remote.folder]


Absent = list[tuple[str, str, str]]


def _batches(
    settings: Settings, holdings: Holdings, partitions: Sequence[Partition]
) -> Iterator[tuple[list[Place], Absent]]:
    """Files to search at once, each with those that could not be had; first all that are on this machine."""
    forgotten = tombstones.tombstones(holdings.git)
    stores = _stores(settings)
    here: list[Place] = []
    absent: Absent = []
    elsewhere: list[Partition] = []
    for item in partitions:
        file = next((file for store in stores if (file := object_path(store, item.md5)).is_file()), None)
        if item.md5 in forgotten:
            absent.append((item.path, item.md5, f"was forgotten on request {forgotten[item.md5].ticket}"))
        elif file is not None:
            here.append(Place(item.path, item.md5, file))
        elif len(stores) > 1:
            absent.append((item.path, item.md5, _LOST))
        else:
            elsewhere.append(item)
    yield here, absent
    for start in range(0, len(elsewhere), _AT_ONCE):
        with _brought(settings, elsewhere[start : start + _AT_ONCE]) as batch:
            yield batch


_LOST = "is neither in this machine's cache nor in the DVC remote; push it from a machine that has it"
_DAMAGED = "has other bytes on this machine than the record says; `retrace doctor --rehash` says where"
_CORRUPT = "is in the DVC remote with other bytes than the record says; replace it from a good copy"


@contextmanager
def _brought(settings: Settings, partitions: Sequence[Partition]) -> Iterator[tuple[list[Place], Absent]]:
    """Partitions from the remote, as files in a workspace that is dropped at the end of the block."""
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    # The code's configuration of DVC is today's; an old version's may name a remote that is no more.
    with workspace(settings, mirror, code_commit(settings, mirror), "impact") as space:
        paths = {item.md5: f"searched/{item.md5}" for item in partitions}
        objects = [{"path": paths[item.md5], "md5": item.md5, "sha256": item.sha256} for item in partitions]
        result = run_job(
            settings, Job("search of records", space, {"operation": "fetch", "objects": objects}, _log(settings))
        )
        why = dict.fromkeys(result["missing"], _LOST) | dict.fromkeys(result["corrupt"], _CORRUPT)
        yield (
            [
                Place(item.path, item.md5, space.path / paths[item.md5])
                for item in partitions
                if paths[item.md5] not in why
            ],
            [(item.path, item.md5, why[paths[item.md5]]) for item in partitions if paths[item.md5] in why],
        )


def _log(settings: Settings) -> Path:
    return settings.logs / "impact.log"
