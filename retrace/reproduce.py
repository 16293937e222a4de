"""`retrace reproduce`: a version made again, and the verdict on it, which is kept."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retrace import verdicts, versions
from retrace.config import Settings
from retrace.git import Mirror
from retrace.progress import overwritten
from retrace.rebuild.conditions import Conditions, varied
from retrace.rebuild.rebuild import Follow, Rebuilt, rebuild
from retrace.rebuild.sandbox import Kind, in_words, kinds
from retrace.rebuild.stage import disk_full_told
from retrace.verdicts import DIFFERENT, EQUIVALENT, IDENTICAL, IMPOSSIBLE, Verdict
from retrace.versions import Version
from retrace.workspace import Workspace, passing_logs, workspace

EXIT_CODES = {IDENTICAL: 0, EQUIVALENT: 3, DIFFERENT: 4, IMPOSSIBLE: 5}
REBUILDS, PARTIAL = "rebuilds", ".part"  # the folder below var/, and how what is not whole in it ends
_SHOWN = 5  # of what is missing, in one line


@dataclass(frozen=True)
class Reproduction:
    """A verdict that was reached and kept, and where the rebuilt files are if they were to stay."""

    verdict: Verdict
    rebuilt: Rebuilt
    kept: Path | None


def reproduce(
    settings: Settings,
    version: Version,
    mirror: Mirror,
    follow: Follow,
    vary: bool = False,
    keep: bool = False,
    kind: Kind | None = None,
) -> Reproduction:
    """Make a version again and keep the verdict. `kind` is the sandbox, by default this machine's strongest.

    Raises what says nothing about the version: an index or remote that is down, a full disk, a timeout.
    """
    kind = kind or kinds()[0]
    conditions = varied(kind) if vary else Conditions()
    key = f"{version.model}--rebuild-v{version.number}"
    with (
        disk_full_told(settings.var),
        workspace(settings, mirror, version.commit, key) as space,
        passing_logs(settings.logs / version.model / space.path.name) as logs,
    ):
        result = rebuild(settings, mirror, version, space, kind, conditions, logs.folder, follow)
        _refuse_forgotten(mirror, result)
        logs.needed = judge(result) != IDENTICAL and result.ticket is None
        kept = _keep(settings, version, space, conditions) if keep and result.ticket is None else None
    kept_verdict = verdicts.keep(mirror, version, judge(result), facts(result))
    return Reproduction(kept_verdict, result, kept)


def _refuse_forgotten(mirror: Mirror, result: Rebuilt) -> None:
    """Of what was forgotten while it was made again nothing is kept, and no other verdict than that."""
    head = mirror.fetch_ref(verdicts.ref_of(result.version.name))
    ticket = verdicts.ticket_of(mirror, result.version, head)
    if ticket is not None:
        result.ticket, result.missing = ticket, [f"forgotten on request {ticket}"]


def _keep(settings: Settings, version: Version, space: Workspace, conditions: Conditions) -> Path:
    """Put a rebuild's checkout and its stages' views, as far as there are any, where nobody removes them.

    Until it is whole it has a name by which the doctor knows what a killed process has left of it.
    """
    kept = settings.var / REBUILDS / f"{version.name}--{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
    partial = kept.with_name(f"{kept.name}-{os.getpid()}{PARTIAL}")
    partial.mkdir(parents=True)
    shutil.move(space.path, partial / "tree")
    views = space.site_cache / conditions.folder
    if views.exists():
        shutil.move(views, partial / "views")
    return partial.rename(kept)


def judge(result: Rebuilt) -> str:
    """The verdict on what a rebuild found."""
    if result.missing:
        return IMPOSSIBLE
    if result.first is None:
        return IDENTICAL
    failed = any(outcome.failure or _not_made(outcome.departures) for outcome in result.stages)
    return DIFFERENT if failed or result.metrics else EQUIVALENT


def _not_made(departures: Any) -> bool:
    return any(item.found == "not made" for item in departures)


def facts(result: Rebuilt) -> dict[str, Any]:
    """What a verdict keeps of a rebuild."""
    changed = {key: [result.recorded[key], result.here.get(key)] for key in result.recorded}
    first = result.first
    forgotten = {"ticket": result.ticket} if result.ticket is not None else {}
    return {
        **forgotten,
        "reason": _reason(result),
        "first": first.stage.address if first else None,
        "stages": [outcome.as_dict() for outcome in result.stages],
        "missing": result.missing,
        "metrics": [vars(change) for change in result.metrics] if first else [],
        "platform": result.here,
        "platformChanged": {key: pair for key, pair in changed.items() if pair[0] != pair[1]} if first else {},
        "sandbox": in_words(result.sandbox),
        "varied": list(result.conditions.names),
        "seconds": round(result.seconds, 1),
        "where": socket.gethostname(),
    }


def _reason(result: Rebuilt) -> str:
    if result.missing:
        more = len(result.missing) - _SHOWN
        return "; ".join(result.missing[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    first = result.first
    if first is None:
        return ""
    if first.failure:
        return "; ".join([first.failure, *(f"it {text}" for text in first.undeclared)])
    named = [file for item in first.departures for file in item.files or (item.path,)]
    return f"{first.stage.address} made other bytes: {', '.join(named[:_SHOWN])}"


def run_reproduce(settings: Settings, name: str, *, vary: bool, keep: bool, as_json: bool) -> int:
    """`retrace reproduce`: the exit code, see `EXIT_CODES`."""
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    version = versions.find(mirror, name)
    stream = sys.stderr if as_json else sys.stdout

    def say(text: str) -> None:
        print(text, file=stream, flush=True)

    ticket = verdicts.ticket_of(mirror, version)
    if ticket is not None:
        return _forgotten(version, ticket, as_json)
    say(f"{version.name}  commit {version.commit[:8]}, made {version.created:%Y-%m-%d}")
    with overwritten(stream) as show:
        found = reproduce(settings, version, mirror, _told(say, show), vary, keep)
    if as_json:
        print(json.dumps({**found.verdict.facts, "kept": str(found.kept) if found.kept else None}, indent=1))
    else:
        for line in _closing(found):
            say(line)
    return EXIT_CODES[found.verdict.verdict]


def _forgotten(version: Version, ticket: str, as_json: bool) -> int:
    """What was removed for good is not tried again: the verdict that says why stands."""
    reason = f"forgotten on request {ticket}"
    told = {"version": version.name, "verdict": IMPOSSIBLE, "reason": reason, "ticket": ticket}
    print(json.dumps(told, indent=1) if as_json else f"{version.name} is {IMPOSSIBLE} to make again: {reason}")
    return EXIT_CODES[IMPOSSIBLE]


def _told(say: Callable[[str], None], show: Callable[[str], None]) -> Follow:
    """Steps as lines; one that goes on is shown where somebody watches."""

    def follow(step: str, text: str) -> None:
        if text:
            show("")
            say(f"  {step:<12} {text}")
        else:
            show(f"  {step:<12} ...")

    return follow


def _closing(found: Reproduction) -> list[str]:
    verdict, result = found.verdict, found.rebuilt
    files = sum(len(outcome.stage.outputs) for outcome in result.stages)
    lines = []
    if verdict.verdict == IDENTICAL:
        lines.append(f"identical: {files} outputs of {len(result.stages)} stages, the same bytes")
    else:
        lines.append(f"{verdict.verdict}: {verdict.reason}")
        lines += [f"  metric       {change.text}" for change in result.metrics] if result.first else []
        changed = verdict.facts["platformChanged"]
        lines += [f"  {key:<12} then {then}, now {now}" for key, (then, now) in changed.items()]
        if result.first and not changed:
            lines.append("  platform     processor, system, libc and Python are those of the run")
    undeclared = {text: outcome.stage.address for outcome in result.stages for text in outcome.undeclared}
    lines += [f"  undeclared   {address} {text}" for text, address in undeclared.items() if text not in lines[0]]
    varied_names = f", with another {', '.join(verdict.facts['varied'])}" if verdict.facts["varied"] else ""
    lines.append(
        f"in {result.seconds:.1f} s, sandbox: {verdict.facts['sandbox']}{varied_names}; "
        f"kept as {verdicts.ref_of(verdict.version)}"
    )
    lines += [f"the rebuilt files are in {found.kept}"] if found.kept else []
    return lines
