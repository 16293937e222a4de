"""The standing proof: on a schedule the champion and the version that went longest without a verdict are rebuilt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from retrace import verdicts, versions
from retrace.config import Settings
from retrace.errors import RetraceError
from retrace.git import Git, Mirror
from retrace.reproduce import reproduce
from retrace.verdicts import IDENTICAL, Verdict
from retrace.versions import CHAMPION, Version

_NEVER = datetime.min.replace(tzinfo=UTC)


class NotReproduced(RetraceError):
    """A version of the audit could not be made again bit for bit."""


def due(git: Git, model: str) -> list[Version]:
    """A model's versions that an audit rebuilds: its champion, then the one that went longest without a verdict.

    What was forgotten on request is never due: it is known that it cannot be rebuilt, and why.
    """
    own = versions.versions(git, model)
    known = verdicts.newest(git, own)
    possible = [version for version in own if version.name not in known or known[version.name].ticket is None]
    champion = versions.champions(git, own).get((model, CHAMPION))
    first = [champion] if champion in possible else []
    others = [version for version in possible if version != champion]

    def last_judged(version: Version) -> datetime:
        return known[version.name].when if version.name in known else _NEVER

    return first + sorted(others, key=last_judged)[:1]


def audit(settings: Settings, model: str, follow: Callable[[str], None]) -> Iterator[Verdict]:
    """Rebuild what is due of a model, one after the other; the verdicts, each of which is kept.

    Raises what `reproduce` may raise.
    """
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    for version in due(mirror, model):
        follow(f"rebuilds {version.name}")
        verdict = reproduce(settings, version, mirror, lambda step, text: follow(f"{step} {text}".strip())).verdict
        follow(f"{version.name}: {verdict.verdict} {verdict.reason}".rstrip())
        yield verdict


def require_identical(found: Sequence[Verdict]) -> None:
    """Raise `NotReproduced` with all that was not made again bit for bit."""
    bad = [verdict for verdict in found if verdict.verdict != IDENTICAL]
    if bad:
        said = "; ".join(f"{verdict.version} is {verdict.verdict}: {verdict.reason}" for verdict in bad)
        raise NotReproduced(f"{said}. Look closer with `retrace reproduce {bad[0].version} --keep`")
