"""Tombstones: the md5s of what was forgotten, kept in git, so that no machine's old cache brings it back.

`refs/forgotten/tombstones` is a chain of commits with one file, `tombstones`, a line `md5 sha256 ticket date path` for
each object (`-` where no sha256 is known). Lines are only ever added, by compare-and-swap.

A raw object (below `data/raw`) stays forbidden for ever. What was derived from it may come out the same once the
records are gone, such as the features of another month: what a stage makes anew of data that nobody asked to forget is
free of them, so that `forbidden` leaves it out wherever the events of a checkout say that it was made so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from retrace.dvcfiles import RAW
from retrace.forgetting.derived import Made, made_by, tainted
from retrace.git import ABSENT, Git, GitError, Mirror, RefMoved, RefUpdate

REF = "refs/forgotten/tombstones"
FILE = "tombstones"
_LINE = re.compile(
    r"(?P<md5>[0-9a-f]{32}(?:\.dir)?) (?P<sha256>[0-9a-f]{64}|-) (?P<ticket>[A-Za-z0-9][A-Za-z0-9._-]{0,63}) "
    r"(?P<date>\d{4}-\d{2}-\d{2}) (?P<path>\S.*)"
)


@dataclass(frozen=True, order=True)
class Tombstone:
    """One forgotten object: its md5 as DVC names it, whose request it was, and the path that it stood for."""

    md5: str
    sha256: str | None
    ticket: str
    date: str
    path: str

    @property
    def raw(self) -> bool:
        """Whether it was raw data itself, not made of some."""
        return self.path.startswith(f"{RAW}/")


def tombstones(git: Git, at: str = REF) -> dict[str, Tombstone]:
    """md5 -> its tombstone, as this repository knows them. Raises `GitError` for a file that Retrace did not write."""
    content = git.read_many([f"{at}:{FILE}"])[0]
    stones = map(_parsed, content.decode().splitlines()) if content is not None else ()
    return {stone.md5: stone for stone in stones}


def current(mirror: Mirror) -> dict[str, Tombstone]:
    """The tombstones as the origin has them now. Raises `OriginUnavailable`."""
    head = mirror.fetch_ref(REF)
    return tombstones(mirror, head) if head is not None else {}


def bury(mirror: Mirror, stones: Iterable[Tombstone], ticket: str) -> int:
    """Add tombstones for what has none yet; how many. Loses no race."""
    stones = sorted(stones)
    while True:
        head = mirror.fetch_ref(REF)
        known = tombstones(mirror, head) if head is not None else {}
        new = [stone for stone in stones if stone.md5 not in known]
        if not new:
            return 0
        lines = "".join(f"{_line(stone)}\n" for stone in (*known.values(), *new))
        text = f"{len(new)} objects forgotten on request {ticket}\n"
        commit = mirror.write_commit(head, {FILE: lines.encode()}, [head] if head else [], text)
        try:
            mirror.push([RefUpdate(REF, commit, head or ABSENT)])
        except RefMoved:
            continue
        mirror.out("update-ref", REF, commit)
        return len(new)


def forbidden(stones: Mapping[str, Tombstone], folder: Path) -> dict[str, str]:
    """md5 -> ticket of what a job in this checkout may neither use nor push, by the events that it has."""
    if not stones:
        return {}
    files = sorted(folder.glob("lineage/*/*.json"))
    events = [made for made in (made_by(file.read_bytes()) for file in files) if made is not None]
    again = made_again(stones, events)
    return {md5: stone.ticket for md5, stone in stones.items() if md5 not in again}


def made_again(stones: Mapping[str, Tombstone], events: Iterable[Made]) -> set[str]:
    """The derived md5s among the tombstones that some run made without anything that was forgotten."""
    events = list(events)
    impure = tainted(events, {md5 for md5, stone in stones.items() if stone.raw}, stones.keys())
    pure = {md5 for made in events if made.run not in impure for md5 in made.objects}
    return {md5 for md5 in pure & stones.keys() if not stones[md5].raw}


def _line(stone: Tombstone) -> str:
    return f"{stone.md5} {stone.sha256 or '-'} {stone.ticket} {stone.date} {stone.path}"


def _parsed(line: str) -> Tombstone:
    match = _LINE.fullmatch(line)
    if match is None:
        raise GitError(f"{REF} has the line {line[:80]!r}, which is no tombstone; put back what Retrace wrote there")
    sha256 = None if match["sha256"] == "-" else match["sha256"]
    return Tombstone(match["md5"], sha256, match["ticket"], match["date"], match["path"])
