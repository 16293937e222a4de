"""Verdicts: what rebuilds of a version said, kept in `refs/verdicts/<version>`.

A chain of empty commits, the newest last, each with JSON in its message; pushed by compare-and-swap, so that rebuilds
on several machines lose nothing of each other's. A verdict names the tag object that it judged: a tag that was moved
inherits none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from retrace.git import ABSENT, Git, GitError, Mirror, RefMoved, RefUpdate
from retrace.versions import Version

IDENTICAL, EQUIVALENT, DIFFERENT, IMPOSSIBLE = "identical", "equivalent", "different", "impossible"
REFS = "refs/verdicts"


@dataclass(frozen=True)
class Verdict:
    """What one rebuild of a version said; `facts` is the whole of it as JSON."""

    version: str
    tag_object: str
    verdict: str
    when: datetime
    facts: Mapping[str, Any] = field(repr=False)

    @property
    def reason(self) -> str:
        """One line: what departs or what is missing; empty for what is identical."""
        return str(self.facts.get("reason", ""))

    @property
    def ticket(self) -> str | None:
        """The request on which the version's data was forgotten, if that is why it cannot be rebuilt."""
        return self.facts.get("ticket")


def ref_of(name: str) -> str:
    """The ref that keeps the verdicts on a version of that name."""
    return f"{REFS}/{name}"


def verdicts(git: Git, version: Version, head: str | None = None) -> list[Verdict]:
    """The verdicts on a version as it is tagged now, oldest first, up to `head` or to the end that is known here."""
    head = head or git.resolve(ref_of(version.name))
    found = _read(git, head) if head is not None else []
    return [verdict for verdict in found if verdict.tag_object == version.tag_object]


def newest(git: Git, known: Iterable[Version]) -> dict[str, Verdict]:
    """Version name -> its newest verdict, of those that have one. That it was forgotten is the last word on a version:
    a rebuild which had begun before may end later."""
    tags = {version.name: version.tag_object for version in known}
    found: dict[str, Verdict] = {}
    for verdict in _read(git, f"--glob={REFS}/*"):
        before = found.get(verdict.version)
        if tags.get(verdict.version) == verdict.tag_object and (before is None or before.ticket is None):
            found[verdict.version] = verdict
    return found


def ticket_of(git: Git, version: Version, head: str | None = None) -> str | None:
    """The request on which a version's data was forgotten, if it was."""
    return next((verdict.ticket for verdict in verdicts(git, version, head) if verdict.ticket is not None), None)


def forgotten(git: Git, known: Iterable[Version]) -> dict[str, str]:
    """Version name -> the request on which its data was forgotten, of those that can never be rebuilt or served."""
    return {name: found.ticket for name, found in newest(git, known).items() if found.ticket is not None}


def _read(git: Git, which: str) -> list[Verdict]:
    listing = git.out("log", "--reverse", "--topo-order", "--format=%B%x1e", which)
    return [_parsed(text) for text in listing.split("\x1e") if text.strip()]


def _parsed(text: str) -> Verdict:
    try:
        facts = json.loads(text.partition("\n\n")[2])
        when = datetime.fromisoformat(facts["when"]).astimezone(UTC)
        return Verdict(facts["version"], facts["tag"], facts["verdict"], when, facts)
    except (ValueError, KeyError, TypeError):
        raise GitError(
            f"a commit below {REFS} ({text.strip().splitlines()[0][:80]!r}) holds no verdict; remove its ref from the "
            "origin"
        ) from None


def keep(mirror: Mirror, version: Version, verdict: str, facts: Mapping[str, Any]) -> Verdict:
    """Add a verdict to a version's chain; `facts` are added to what every verdict says. Loses no race."""
    when = datetime.now(UTC)
    whole = {
        **facts,
        "version": version.name,
        "tag": version.tag_object,
        "commit": version.commit,
        "verdict": verdict,
        "when": when.isoformat(),  # to the microsecond: no two machines may write the very same commit
    }
    text = f"{version.name}: {verdict}\n\n{json.dumps(whole, indent=1, sort_keys=True)}\n"
    ref = ref_of(version.name)
    while True:
        head = mirror.fetch_ref(ref)
        commit = mirror.write_commit(None, {}, [head] if head else [], text)
        try:
            mirror.push([RefUpdate(ref, commit, head or ABSENT)])
        except RefMoved:
            continue
        return Verdict(version.name, version.tag_object, verdict, when, whole)
