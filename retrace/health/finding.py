"""What the doctor says of one subject: a line of summary, and what was found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

State = Literal["found", "fixed", "noted"]
_NUMBERED = re.compile(r"(?P<model>.+@v)(?P<number>[0-9]+)")


@dataclass(frozen=True)
class Finding:
    """One thing in words for a person; `facts` are the same for programs.

    `found` is somebody's to act on, `fixed` was put right just now, `noted` is known and in order.
    """

    kind: str
    text: str
    state: State = "found"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON can hold it."""
        return {"kind": self.kind, "state": self.state, "text": self.text, **self.facts}


@dataclass(frozen=True)
class Section:
    """A subject: what was looked at in a few words, and the findings."""

    name: str
    summary: str
    findings: tuple[Finding, ...] = ()


def named(names: Iterable[str]) -> str:
    """Version names in one phrase, neighbours joined: `late_arrival@v1 .. v3, air_time@v2`."""
    parts = {name: _NUMBERED.fullmatch(name) for name in sorted(set(names))}
    plain = [name for name, match in parts.items() if match is None]
    numbered = sorted((match["model"], int(match["number"])) for match in parts.values() if match is not None)
    shown = []
    for model, own in groupby(numbered, key=lambda item: item[0]):
        numbers = [number for _, number in own]
        # What grows with its place in the list by one is a run of neighbours.
        for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
            together = [number for _, number in run]
            span = f"{together[0]}" if len(together) == 1 else f"{together[0]} .. v{together[-1]}"
            shown.append(f"{model}{span}")
    return ", ".join([*shown, *plain])


def size_of(number: int) -> str:
    """A number of bytes for people."""
    value = float(number)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
