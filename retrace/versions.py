"""Versions and assignments: annotated tags in GTO's grammar. Everything here is read from tags alone, and is fast.

`<model>@v<N>` is a version; `<model>#<alias>#<N>` says who holds an alias since then. N counts up by one. A tag is
created by compare-and-swap and never moved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from retrace.config import UnknownModel
from retrace.dvcfiles import LOCK, entries_of, lock_entries, output_md5s
from retrace.errors import RetraceError
from retrace.git import ABSENT, Git, Mirror, RefMoved, RefUpdate, message, trailer
from retrace.lineage.event import EVENT

CHAMPION = "champion"
VERSION_NAME = re.compile(r"(?P<model>[a-z][a-z0-9_]*)@v(?P<number>[1-9][0-9]*)")
ASSIGNMENT_NAME = re.compile(r"(?P<model>[a-z][a-z0-9_]*)#(?P<alias>[a-z][a-z0-9_-]*)#(?P<number>[1-9][0-9]*)")
_FIELDS = (
    "%(refname:strip=2)%1f%(objectname)%1f%(*objectname)%1f%(taggerdate:iso-strict)%1f%(taggername)%1f%(contents)%1e"
)


class UnknownVersion(RetraceError):
    """No such version."""


class NothingToRollBackTo(RetraceError):
    """The alias has been held by one version only."""


@dataclass(frozen=True)
class Version:
    """A model version: a tag and what its message sums up."""

    model: str
    number: int
    tag_object: str
    commit: str
    created: datetime
    run_id: str
    run_ref: str
    data: str
    through: datetime | None
    metrics: dict[str, float]

    @property
    def name(self) -> str:
        return f"{self.model}@v{self.number}"

    @property
    def ref(self) -> str:
        return f"refs/tags/{self.name}"


@dataclass(frozen=True)
class Assignment:
    """An alias given to a version."""

    model: str
    alias: str
    number: int
    commit: str
    created: datetime
    by: str
    because: str

    @property
    def name(self) -> str:
        return f"{self.model}#{self.alias}#{self.number}"


def _tags(git: Git, *pattern: str) -> Iterable[list[str]]:
    listing = git.out("for-each-ref", f"--format={_FIELDS}", *pattern)
    for entry in listing.split("\x1e"):
        fields = entry.lstrip("\n").split("\x1f")
        if len(fields) == 6 and fields[2]:
            yield fields


def versions(git: Git, model: str | None = None) -> list[Version]:
    """All versions (of one model), oldest first."""
    return _versions(git, f"refs/tags/{model or '*'}@v*")


def _versions(git: Git, *pattern: str) -> list[Version]:
    found = []
    for name, tag_object, commit, created, _, text in _tags(git, *pattern):
        match = VERSION_NAME.fullmatch(name)
        if match is None:
            continue
        told = _trailers(text)
        through = told.get("Data-Through")
        found.append(
            Version(
                model=match["model"],
                number=int(match["number"]),
                tag_object=tag_object,
                commit=commit,
                created=datetime.fromisoformat(created),
                run_id=told.get("Retrace-Run", ""),
                run_ref=told.get("Retrace-Run-Ref", ""),
                data=told.get("Retrace-Data", ""),
                through=datetime.fromisoformat(through) if through else None,
                metrics=json.loads(told.get("Retrace-Metrics") or "{}"),
            )
        )
    return sorted(found, key=lambda version: (version.model, version.number))


def _trailers(text: str) -> dict[str, str]:
    """All trailers of a message, of one key the first. Looked up one by one, each would search the event in it, too."""
    parted = (line.partition(": ") for line in reversed(text.split("\n")))
    return {key: value for key, colon, value in parted if colon}


def versions_of(git: Git, model: str) -> list[Version]:
    """The versions of a model that has some, oldest first. Raises `UnknownModel`."""
    known = versions(git)
    own = [version for version in known if version.model == model]
    if not own:
        names = ", ".join(sorted({version.model for version in known})) or "none yet; run `retrace retrain MODEL`"
        raise UnknownModel(f"no versions of {model!r}; there are versions of {names}")
    return own


def newest_versions(git: Git) -> dict[str, Version]:
    """Model -> its newest version."""
    return {version.model: version for version in versions(git)}


def find(git: Git, name: str) -> Version:
    """The version of a name such as `late_arrival@v3`; `late_arrival@champion` and `late_arrival@latest` work too.

    Reads the tags that are asked for, not all. Raises `UnknownVersion`.
    """
    model, _, rest = name.partition("@")
    named = re.fullmatch(r"[a-z][a-z0-9_]*", model) is not None
    if VERSION_NAME.fullmatch(name):
        found = next(iter(_versions(git, f"refs/tags/{name}")), None)
    elif named and rest == "latest":
        found = _newest(git, model)
    else:
        found = _holder(git, model, _given(git, model).get(rest, ())) if named else None
    if found is None:
        own = versions(git, model) if named else []
        known = f"it has v1 to v{own[-1].number}" if own else "`retrace log` lists what there is"
        if own and not rest:
            known += f"; name one of them, {model}@latest or {model}@{CHAMPION}"
        raise UnknownVersion(f"no version {name!r}: {known}")
    return found


def _newest(git: Git, model: str) -> Version | None:
    names = git.out("for-each-ref", "--format=%(refname:strip=2)", f"refs/tags/{model}@v*").splitlines()
    numbers = sorted((int(match["number"]) for match in map(VERSION_NAME.fullmatch, names) if match), reverse=True)
    found = (_versions(git, f"refs/tags/{model}@v{number}") for number in numbers)
    return next((own[0] for own in found if own), None)


def _given(git: Git, model: str) -> dict[str, list[str]]:
    """Alias -> the commits that it was given to, the newest last."""
    found: dict[str, list[str]] = {}
    for assignment in assignments(git, model):
        found.setdefault(assignment.alias, []).append(assignment.commit)
    return found


def _holder(git: Git, model: str, given: Sequence[str]) -> Version | None:
    """The version at the newest of the commits that an alias was given to."""
    found = (_versions(git, f"--points-at={commit}", f"refs/tags/{model}@v*") for commit in reversed(given))
    return next((own[-1] for own in found if own), None)


def assignments(git: Git, model: str | None = None) -> list[Assignment]:
    """All assignments (of one model), oldest first."""
    found = []
    for name, _, commit, created, by, text in _tags(git, f"refs/tags/{model or '*'}#*"):
        match = ASSIGNMENT_NAME.fullmatch(name)
        if match is None:
            continue
        found.append(
            Assignment(
                model=match["model"],
                alias=match["alias"],
                number=int(match["number"]),
                commit=commit,
                created=datetime.fromisoformat(created),
                by=by,
                because=trailer(text, "Retrace-Because") or "",
            )
        )
    return sorted(found, key=lambda assignment: (assignment.model, assignment.alias, assignment.number))


def champions(git: Git, known: Iterable[Version] | None = None) -> dict[tuple[str, str], Version]:
    """(model, alias) -> the version that holds it now."""
    by_commit = {(version.model, version.commit): version for version in (versions(git) if known is None else known)}
    holders = {}
    for assignment in assignments(git):
        version = by_commit.get((assignment.model, assignment.commit))
        if version is not None:
            holders[assignment.model, assignment.alias] = version
    return holders


def aliases_of(git: Git, version: Version) -> list[str]:
    """The aliases that a version holds now, without reading the tags of all others."""
    ever = {alias: given for alias, given in _given(git, version.model).items() if version.commit in given}
    return sorted(alias for alias, given in ever.items() if _holder(git, version.model, given) == version)


def same_outputs(git: Git, model: str, commit: str, known: Iterable[Version]) -> Version | None:
    """The newest of the versions whose entries in dvc.lock equal this commit's, if any."""
    own = entries_of(lock_entries(git.read(commit, LOCK)), model)
    needles = [md5.encode() for md5 in output_md5s(own).values()]
    candidates = sorted((version for version in known if version.model == model), key=lambda item: -item.number)
    locks = git.read_many([f"{version.commit}:{LOCK}" for version in candidates])
    for version, lock in zip(candidates, locks, strict=True):
        recalls = lock is not None and all(needle in lock for needle in needles)
        if recalls and entries_of(lock_entries(lock), model) == own:
            return version
    return None


def _next_name(git: Git, prefix: str, grammar: re.Pattern[str]) -> str:
    """The name after the last that is taken, be it by a tag that is not annotated and so stands for nothing."""
    taken = git.out("for-each-ref", "--format=%(refname:strip=2)", f"refs/tags/{prefix}*").splitlines()
    numbers = [int(match["number"]) for match in map(grammar.fullmatch, taken) if match]
    return f"{prefix}{max(numbers, default=0) + 1}"


def event_of(git: Git, ref: str) -> dict[str, Any] | None:
    """The lineage event that an annotated tag tells, if it tells one."""
    text = trailer(git.message(ref), EVENT)
    return dict(json.loads(text)) if text is not None else None


def create(
    mirror: Mirror,
    model: str,
    commit: str,
    title: str,
    trailers: dict[str, str],
    tell: Callable[[str], str] | None = None,
    sign: Callable[[bytes], bytes] | None = None,
) -> Version:
    """Tag a commit as the model's next version. Safe against others who do the same at the same time.

    `tell` makes the lineage event of a version of that name, one line; `sign` the signature of the tag object.
    """
    while True:
        mirror.fetch_record()
        own = versions(mirror, model)
        existing = next((version for version in own if version.commit == commit), None)
        if existing is not None:
            return existing
        name = _next_name(mirror, f"{model}@v", VERSION_NAME)
        told = {EVENT: tell(name)} if tell is not None else {}
        tag = mirror.write_tag(name, commit, message(f"{name}: {title}", trailers | told), sign)
        try:
            mirror.push([RefUpdate(f"refs/tags/{name}", tag, ABSENT)])
        except RefMoved:
            continue


def assign(
    mirror: Mirror,
    version: Version,
    alias: str,
    because: str,
    tell: Callable[[str], str] | None = None,
    sign: Callable[[bytes], bytes] | None = None,
) -> Assignment:
    """Give a version an alias by a new assignment tag; a version that holds it already keeps its tag.

    `tell` makes the lineage event of an assignment of that name, one line; the gate tells of its own elsewhere. `sign`
    makes the signature of the tag object.
    """
    while True:
        mirror.fetch_record()
        own = [assignment for assignment in assignments(mirror, version.model) if assignment.alias == alias]
        if own and own[-1].commit == version.commit:
            return own[-1]
        name = _next_name(mirror, f"{version.model}#{alias}#", ASSIGNMENT_NAME)
        trailers = {"Retrace-Version": version.name, "Retrace-Because": because}
        trailers |= {EVENT: tell(name)} if tell is not None else {}
        tag = mirror.write_tag(name, version.commit, message(f"{name}: {version.name}", trailers), sign)
        try:
            mirror.push([RefUpdate(f"refs/tags/{name}", tag, ABSENT)])
        except RefMoved:
            continue


def previous_holder(git: Git, model: str, alias: str = CHAMPION, gone: Collection[str] = ()) -> Version:
    """The version to return to: the holder before the present one, where a return undoes what came in between.

    Versions that are `gone` are passed over.

    Raises `NothingToRollBackTo`, `UnknownModel`.
    """
    by_commit = {version.commit: version for version in versions_of(git, model)}
    stack: list[Version] = []
    for assignment in assignments(git, model):
        version = by_commit.get(assignment.commit)
        if assignment.alias != alias or version is None:
            continue
        if version in stack:
            del stack[stack.index(version) + 1 :]
        else:
            stack.append(version)
    before = [version for version in stack[:-1] if version.name not in gone]
    if before:
        return before[-1]
    raise NothingToRollBackTo(
        f"{model} has no earlier {alias} to return to; name a version with `retrace promote VERSION`"
    )
