"""`retrace doctor`: what can no longer be rebuilt and why, what is corrupt, left behind, unreachable, or not as git."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping

from retrace.config import Settings
from retrace.errors import RetraceError, TransientError
from retrace.health.finding import Finding, Section
from retrace.health.forgotten import forgotten
from retrace.health.holders import holders
from retrace.health.leftovers import leftovers
from retrace.health.needs import needs
from retrace.health.objects import objects
from retrace.health.packages import packages
from retrace.health.refs import refs
from retrace.health.rehash import rehash
from retrace.health.scope import look
from retrace.health.services import SILENT, services
from retrace.health.views import views
from retrace.progress import overwritten
from retrace.tombstones import tombstones
from retrace.wording import counted

_MARKS = {"found": "!", "fixed": "+", "noted": " "}


class NeedsAttention(RetraceError):
    """The doctor found what somebody has to act on."""


class ServicesSilent(TransientError):
    """The doctor found nothing but services that do not answer."""


def run_doctor(settings: Settings, *, fix: bool, stages: bool, rehash: bool, as_json: bool) -> int:
    """Look at everything and print it; 0 when all is well, 1 when something is somebody's to act on."""
    sections = []
    with overwritten(sys.stderr) as follow:
        for section in examine(settings, follow, fix=fix, stages=stages, read_all=rehash):
            follow("")
            sections.append(section)
            if not as_json:
                print("\n".join(text_of(section)), flush=True)
    well = not acted_on(sections)
    print(_as_json(sections, well) if as_json else _closing(sections), flush=True)
    return 0 if well else 1


def examine(
    settings: Settings,
    follow: Callable[[str], None],
    *,
    fix: bool = False,
    stages: bool = False,
    read_all: bool | None = False,
    environ: Mapping[str, str] = os.environ,
) -> Iterator[Section]:
    """Every subject, one after the other; `follow` hears what is being looked at.

    With `read_all` every object is read again; None is for a visit on schedule, for which params.yaml says it.

    Services come near the end: by then most of them have been asked for something.
    """
    follow("reads the record")
    scope = look(settings, follow)
    needed = needs(scope)
    yield refs(scope, needed)
    yield holders(scope)
    follow("asks the remote for every object")
    stones = tombstones(scope.mirror)
    yield objects(scope, needed, {md5: stone.ticket for md5, stone in stones.items()}, fix=fix)
    if stones:
        yield forgotten(scope, stones, fix=fix)
    if scope.schedule.rehash if read_all is None else read_all:
        yield rehash(scope, needed, fix=fix)
    yield packages(scope)
    if stages:
        yield _stages(settings, follow)
    yield services(scope, environ)
    yield views(scope, environ)
    yield leftovers(scope, fix=fix)


def _stages(settings: Settings, follow: Callable[[str], None]) -> Section:
    from retrace.stage_check import check_stages

    try:
        found = check_stages(settings, follow)
    except RetraceError as error:
        return Section("stages", "not checked", (Finding("stages-unchecked", str(error)),))
    findings = tuple(Finding("stage", text) for text in found)
    return Section("stages", "" if findings else "read what they declare, and nothing else", findings)


def acted_on(sections: list[Section]) -> list[Finding]:
    """What somebody has to act on."""
    return [finding for section in sections for finding in section.findings if finding.state == "found"]


def found(findings: list[Finding]) -> RetraceError:
    """All findings as one error; worth another try where they are services that do not answer."""
    kind = ServicesSilent if all(finding.kind == SILENT for finding in findings) else NeedsAttention
    return kind(f"{counted(len(findings), 'finding')}: {'; '.join(finding.text for finding in findings)}")


def text_of(section: Section) -> Iterator[str]:
    """A line for what was looked at, and one for each finding."""
    yield f"{section.name:<11}{section.summary}".rstrip()
    for finding in section.findings:
        yield f"  {_MARKS[finding.state]} {finding.text}"


def _closing(sections: list[Section]) -> str:
    found = len(acted_on(sections))
    fixed = sum(finding.state == "fixed" for section in sections for finding in section.findings)
    put_right = f"; {counted(fixed, 'thing')} put right" if fixed else ""
    return f"{'all is well' if not found else counted(found, 'finding')}{put_right}"


def _as_json(sections: list[Section], well: bool) -> str:
    told = [
        {
            "name": section.name,
            "summary": section.summary,
            "findings": [finding.as_dict() for finding in section.findings],
        }
        for section in sections
    ]
    return json.dumps({"well": well, "sections": told}, indent=1)
