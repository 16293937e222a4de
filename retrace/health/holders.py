"""Whether who holds an alias can still be rebuilt, by its newest verdict."""

from __future__ import annotations

from collections.abc import Iterator

from retrace import verdicts, versions
from retrace.health.finding import Finding, Section
from retrace.health.scope import Scope
from retrace.verdicts import IDENTICAL, Verdict
from retrace.wording import counted

_SECTION = "aliases"
_LONGEST = 100


def holders(scope: Scope) -> Section:
    """Compare every holder of an alias with what its last rebuild said; one that nobody rebuilt yet is in order."""
    held: dict[str, list[str]] = {}
    for (_, alias), version in sorted(versions.champions(scope.mirror, scope.versions).items()):
        held.setdefault(version.name, []).append(alias)
    said = verdicts.newest(scope.mirror, scope.versions)
    findings = tuple(_findings(held, said))
    summary = counted(len(held), "holder")
    return Section(_SECTION, summary if findings or not held else f"{summary}, none known to depart", findings)


def _findings(held: dict[str, list[str]], said: dict[str, Verdict]) -> Iterator[Finding]:
    for name, aliases in held.items():
        verdict = said.get(name)
        if verdict is None or verdict.verdict == IDENTICAL:
            continue
        holds = f"{name} is {', '.join(aliases)}"
        facts = {"versions": [name], "aliases": aliases, "verdict": verdict.verdict, "ticket": verdict.ticket}
        if verdict.ticket is not None:
            text = f"{holds} and was forgotten on request {verdict.ticket}: promote another"
            yield Finding("holder-forgotten", text, facts=facts)
        else:
            reason = f": {_shortened(verdict.reason)}" if verdict.reason else ""
            text = f"{holds} and its last rebuild was {verdict.verdict}{reason}"
            yield Finding("holder-departs", text, facts=facts)


def _shortened(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1].rstrip()}…"
