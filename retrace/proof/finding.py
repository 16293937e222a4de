"""What one check of a version found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """A check that could not be made is neither: it says nothing for the version, and nothing against it."""

    HOLDS = "holds"
    FAILS = "fails"
    UNCHECKED = "unchecked"


@dataclass(frozen=True)
class Finding:
    """One check: its name, which programs may rely on, how it came out, and words for a person.

    `ticket` is the request on which what was to be checked was forgotten.
    """

    check: str
    outcome: Outcome
    text: str
    ticket: str | None = None


def holds(check: str, text: str) -> Finding:
    return Finding(check, Outcome.HOLDS, text)


def fails(check: str, text: str) -> Finding:
    return Finding(check, Outcome.FAILS, text)


def unchecked(check: str, text: str, ticket: str | None = None) -> Finding:
    return Finding(check, Outcome.UNCHECKED, text, ticket)
