"""The answer to "which versions did this go into", for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retrace.errors import RetraceError
from retrace.versions import Version

SHORT = 12


class UnknownThing(RetraceError):
    """What is asked about is nothing that git knows."""


@dataclass(frozen=True)
class Use:
    """A version that the thing went into: what of it, in words and as facts."""

    version: Version
    text: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Content:
    """One of the contents that a thing had, in words and as facts, and the names of the versions it went into."""

    text: str
    facts: Mapping[str, Any]
    versions: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What is known of a thing. `asked` says what was asked about; of a condition on records nothing is in it."""

    title: str
    asked: Mapping[str, Any]
    uses: Sequence[Use]
    contents: Sequence[Content] = ()
    notes: Sequence[str] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 version`, `2 versions`, `no version`."""
    return f"{number or 'no'} {one if number < 2 else many or f'{one}s'}"
