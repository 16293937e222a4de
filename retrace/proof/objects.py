"""Whether the DVC remote holds the very bytes that the signed commit lists, by sha256: two files can share an md5."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrace.config import Settings
from retrace.dvcfiles import object_path
from retrace.git import Mirror
from retrace.hashing import hash_file
from retrace.process import Job, RemoteFailed, RemoteRefused, RemoteUnavailable, run_job
from retrace.proof.finding import Finding, fails, holds, unchecked
from retrace.proof.tracked import RecordedFile, Tracked
from retrace.tombstones import tombstones
from retrace.versions import Version
from retrace.workspace import NoRemote, remote_of, workspace

CHECK = "objects"


@dataclass(frozen=True)
class Departure:
    """An object that the remote lacks, or has otherwise."""

    md5: str
    missing: bool
    text: str


def check_objects(settings: Settings, mirror: Mirror, version: Version, things: Sequence[Tracked]) -> Iterator[Finding]:
    """What the remote lacks or has otherwise, one finding each (of what was forgotten: one for each request), or that
    all of it is there."""
    in_git = mirror.files(version.commit)
    in_remote = [thing for thing in things if not any(file.path in in_git for file in thing.files)]
    config = mirror.read(version.commit, ".dvc/config")
    try:
        remote = remote_of(settings, config.decode() if config is not None else "")
        if remote.folder is None:
            found = list(_fetched(settings, mirror, version, in_remote))
        elif remote.folder.is_dir():
            found = [departure for thing in in_remote for departure in _in_folder(remote.folder, thing)]
        else:
            raise RemoteUnavailable(f"the DVC remote {remote.shown} is not there")
    except (NoRemote, RemoteUnavailable, RemoteRefused, RemoteFailed) as error:
        yield unchecked(CHECK, f"no object was checked: {error}")
        return
    forgotten = tombstones(mirror) if found else {}
    tickets = []
    for departure in found:
        stone = forgotten.get(departure.md5) if departure.missing else None
        if stone is None:
            yield fails(CHECK, departure.text)
        else:
            tickets.append(stone.ticket)
    for ticket in dict.fromkeys(tickets):
        yield unchecked(CHECK, f"{version.name} was forgotten on request {ticket}: its files are gone", ticket)
    if not found:
        count = sum(len(thing.files) for thing in in_remote)
        yield holds(CHECK, f"{count} files in the DVC remote have the recorded sha256")


def _in_folder(folder: Path, thing: Tracked) -> Iterator[Departure]:
    if thing.md5.endswith(".dir"):
        listing = object_path(folder, thing.md5)
        if not listing.is_file():
            yield _of_list(thing, lost=True)
        elif listing.read_bytes() != thing.directory_object:
            yield _of_list(thing, lost=False)
    for file in thing.files:
        yield from _compare(object_path(folder, file.md5), file)


def _of_list(thing: Tracked, *, lost: bool) -> Departure:
    what = "is not" if lost else "is another one"
    return Departure(
        thing.md5, lost, f"the list of the files of {thing.path} (md5 {thing.md5}) {what} in the DVC remote"
    )


def _fetched(settings: Settings, mirror: Mirror, version: Version, things: Sequence[Tracked]) -> Iterator[Departure]:
    """The same of a remote that is no folder: everything is downloaded past the cache, compared and dropped."""
    objects = [{"path": thing.path, "md5": thing.md5, "sha256": None} for thing in things]
    with workspace(settings, mirror, version.commit, f"{version.model}--verify-v{version.number}") as space:
        log = settings.logs / version.model / f"verify-v{version.number}.log"
        job = Job(f"verification of {version.name}", space, {"operation": "fetch", "objects": objects}, log)
        found = run_job(settings, job)
        for thing in things:
            if thing.md5.endswith(".dir") and thing.path in (*found["missing"], *found["corrupt"]):
                yield _of_list(thing, lost=thing.path in found["missing"])
                continue
            for file in thing.files:
                yield from _compare(space.path / file.path, file)


def _compare(place: Path, file: RecordedFile) -> Iterator[Departure]:
    if not place.is_file():
        yield Departure(file.md5, True, f"{file.path} (md5 {file.md5}) is not in the DVC remote")
        return
    found = hash_file(place)
    if found.sha256 != file.sha256:
        same = ", though its md5 is the same: somebody made a collision" if found.md5 == file.md5 else ""
        yield Departure(
            file.md5,
            False,
            f"{file.path} in the DVC remote is another file: sha256 {found.sha256[:12]}…, recorded "
            f"{file.sha256[:12]}…{same}",
        )
