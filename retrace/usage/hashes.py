"""Hashes and outputs: what had some md5 or sha256, as raw data, as what a stage read, or as what it made.

Text is searched before anything is parsed: a thousand locks or events are read in less time than ten are parsed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from retrace.dvcfiles import LOCK, RAW, entries_of, lock_entries
from retrace.lineage.event import facts_of
from retrace.usage.answer import SHORT, Answer, Content, Use, counted
from retrace.usage.holdings import Holdings
from retrace.usage.raw import dataset_answer, partition_answer
from retrace.usage.raw_data import RawData

_READ, _MADE = "read by", "made by"

Wanted = Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True, order=True)
class Role:
    """What a file or folder was to a stage."""

    path: str
    md5: str
    verb: str
    stage: str


def about_hash(holdings: Holdings, value: str) -> Answer:
    """The answer about an md5 (a folder's with or without `.dir`) or a sha256, in lower case."""
    bare = value.removesuffix(".dir")
    asked = {"kind": "md5" if len(bare) == 32 else "sha256", "hash": value}
    raw = RawData(holdings)
    needle = f" {bare} ".encode()
    found = raw.contents(lambda line: needle in line) if bare == value else {}
    if found:
        of = " and ".join(sorted({partition.path for partition in found}))
        return partition_answer(f"{value} is {of}", asked, raw, found)
    pointers = [oid for oid, content in holdings.contents(raw.pointers) if bare.encode() in content]
    if pointers:
        datasets = " and ".join(sorted({f"{RAW}/{raw.pointers[oid]}" for oid in pointers}))
        return dataset_answer(f"{value} is {datasets}", asked, raw, pointers)
    roles = _roles(holdings, bare, lambda item: bare in (str(item.get("md5")).removesuffix(".dir"), item.get("sha256")))
    uses = [Use(holdings.named[name], _told(own, with_path=True), _facts(own)) for name, own in roles.items()]
    paths = sorted({role.path for own in roles.values() for role in own})
    title = f"{value} is {paths[0]}" if len(paths) == 1 else value
    return Answer(title, asked, uses, notes=[] if uses else [_NOWHERE])


_NOWHERE = "no manifest or pointer of the raw data has this hash, and no stage of any version read or made a file of it"


def about_output(holdings: Holdings, path: str) -> Answer | None:
    """The answer about a path that stages make and git does not hold, with all its contents; None if there is none."""
    roles = _roles(holdings, path, lambda item: item.get("path") == path)
    if not roles:
        return None
    uses = [Use(holdings.named[name], _told(own, with_path=False), _facts(own)) for name, own in roles.items()]
    by_content: dict[str, list[str]] = defaultdict(list)
    for name, own in roles.items():
        for md5 in sorted({role.md5 for role in own}):
            by_content[md5].append(name)
    contents = [Content(f"md5 {md5}", {"md5": md5}, tuple(found)) for md5, found in by_content.items()]
    title = path if len(contents) == 1 else f"{path}, {counted(len(contents), 'content')}"
    return Answer(title, {"kind": "output", "path": path}, uses, contents)


def _told(roles: Iterable[Role], *, with_path: bool) -> str:
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for role in sorted(roles, key=lambda role: (role.path, role.verb != _MADE, role.stage, role.md5)):
        grouped[role.path, role.md5].append(f"{role.verb} {role.stage}")
    return "; ".join(
        f"{path if with_path else f'md5 {md5[:SHORT]}'} ({', '.join(dict.fromkeys(verbs))})"
        for (path, md5), verbs in grouped.items()
    )


def _facts(roles: Iterable[Role]) -> dict[str, Any]:
    return {"files": [vars(role) for role in sorted(roles)]}


def _roles(holdings: Holdings, needle: str, wanted: Wanted) -> dict[str, set[Role]]:
    """Version name -> what wanted things were to its stages, by their events, and by the lock for what these leave out.

    An event lists the files of a folder that its stage read, not the folder itself. One that was carried over counts:
    the version is made of what that stage made.
    """
    events = _events(holdings)
    told: dict[str, set[Role]] = {}
    for oid, content in holdings.contents(_alike(events.values())):
        if needle.encode() in content:
            told[oid] = {role for role, item in _of_event(content) if wanted(item)}
    locks = holdings.at(LOCK)
    locked = {oid: content for oid, content in holdings.contents(locks.values()) if needle.encode() in content}
    found = {}
    for name, version in holdings.named.items():
        roles = {role for oid in events[name].values() for role in told.get(oid, ())}
        lock = locked.get(locks.get(name, ""))
        if lock is not None and all(role.md5.endswith(".dir") for role in roles):
            roles |= {role for role, item in _of_lock(lock, version.model) if wanted(item)}
        if roles:
            found[name] = roles
    return found


def _events(holdings: Holdings) -> dict[str, dict[str, str]]:
    """Version name -> file name -> id of the events of its stages."""
    folders = holdings.folders([f"{version.commit}:lineage/{version.model}" for version in holdings.versions])
    return {
        name: {file: oid for file, oid in folder.items() if file.endswith(".json")}
        for name, folder in zip(holdings.named, folders, strict=True)
    }


def _alike(events: Collection[Mapping[str, str]]) -> Iterator[str]:
    """The ids of events, stage by stage: git reads an object that is like the one before in a fraction of the time."""
    for file in sorted({file for own in events for file in own}):
        yield from (own[file] for own in events if file in own)


def _of_event(content: bytes) -> Iterator[tuple[Role, Mapping[str, Any]]]:
    facts = facts_of(content)
    stage = str(facts.get("stage", "")).partition("@")[0]
    for item in facts.get("inputs", ()):
        yield _role(item, _READ, stage), item
    for output in facts.get("outputs", ()):
        for item in (output, *output.get("files", ())):
            yield _role(item, _MADE, stage), item


def _of_lock(content: bytes, model: str) -> Iterator[tuple[Role, Mapping[str, Any]]]:
    for address, entry in entries_of(lock_entries(content), model).items():
        stage = address.partition("@")[0]
        for key, verb in (("deps", _READ), ("outs", _MADE)):
            for item in entry.get(key, ()):
                yield _role(item, verb, stage), item


def _role(item: Mapping[str, Any], verb: str, stage: str) -> Role:
    return Role(str(item.get("path")), str(item.get("md5")), verb, stage)
