"""An answer of `retrace impact` as text and as JSON: the versions, who of them holds an alias, and what they have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from retrace.reader import last_day
from retrace.usage.answer import Answer, Content, Use
from retrace.usage.holdings import Holdings
from retrace.verdicts import IMPOSSIBLE

_SHOWN_CONTENTS = 12
_HEADER = ("VERSION", "MADE", "DATA THROUGH", "ALIAS", "VERDICT", "WHAT")


def text_lines(holdings: Holdings, answer: Answer) -> Iterator[str]:
    """The answer for people."""
    yield _shown(answer.title)
    if len(answer.contents) > _SHOWN_CONTENTS:
        yield f"  … {len(answer.contents) - _SHOWN_CONTENTS} before these; --json has them all"
    for content in answer.contents[-_SHOWN_CONTENTS:]:
        yield f"  {_shown(content.text)}  {_went_into(content)}"
    if answer.uses:
        yield ""
        yield from _table(holdings, answer)
    yield ""
    for note in answer.notes:
        yield _shown(note)
    yield from _summary(holdings, answer)


def _shown(text: str) -> str:
    if text.isprintable():
        return text
    from retrace.trace_text import printable  # slow to import for what is hardly ever needed

    return printable(text)


def _went_into(content: Content) -> str:
    found = content.versions
    if not found:
        return "in no version"
    return f"in {found[0]}" if len(found) == 1 else f"in {len(found)} versions, {found[0]} .. {found[-1]}"


def _table(holdings: Holdings, answer: Answer) -> Iterator[str]:
    rows = [_HEADER]
    for use in answer.uses:
        version, verdict = use.version, holdings.verdicts.get(use.version.name)
        rows.append(
            (
                version.name,
                f"{version.created.astimezone():%Y-%m-%d %H:%M}",
                last_day(version.through),
                " ".join(holdings.aliases.get(version.name, ())),
                verdict.verdict if verdict is not None else "",
                _shown(use.text),
            )
        )
    shown = [column for column in range(len(_HEADER)) if any(row[column] for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in shown}
    for row in rows:
        yield "  ".join(row[column].ljust(widths[column]) for column in shown).rstrip()


def _summary(holdings: Holdings, answer: Answer) -> Iterator[str]:
    used = [use.version.name for use in answer.uses]
    holders = [f"{name} is {' and '.join(holdings.aliases[name])}" for name in used if name in holdings.aliases]
    standing = ", ".join(holders) or "none of them holds an alias"
    total = len(holdings.versions)
    yield f"{len(used)} of {total} version{'' if total == 1 else 's'}" + (f"; {standing}" if used else "")
    for name in used:
        verdict = holdings.verdicts.get(name)
        if verdict is not None and verdict.verdict == IMPOSSIBLE:
            yield _shown(f"{name} can no longer be rebuilt: {verdict.reason}".removesuffix(": "))


def json_text(holdings: Holdings, answer: Answer) -> str:
    """The answer for programs, complete."""
    whole = {
        "asked": dict(answer.asked),
        "versions": [_version(holdings, use) for use in answer.uses],
        "ofVersions": len(holdings.versions),
        "contents": [{**content.facts, "versions": list(content.versions)} for content in answer.contents],
        "notes": list(answer.notes),
        **answer.more,
    }
    return json.dumps(whole, indent=1, sort_keys=True)


def _version(holdings: Holdings, use: Use) -> dict[str, Any]:
    version, verdict = use.version, holdings.verdicts.get(use.version.name)
    return {
        "version": version.name,
        "commit": version.commit,
        "created": version.created.isoformat(),
        "dataThrough": version.through.isoformat() if version.through else None,
        "aliases": holdings.aliases.get(version.name, []),
        "verdict": verdict.verdict if verdict is not None else None,
        "what": dict(use.facts),
    }
