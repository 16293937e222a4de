"""The two sides that a user names: which model it is about, and what git reads each of them by."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from retrace import versions
from retrace.config import Settings
from retrace.errors import RetraceError
from retrace.git import Git, GitError
from retrace.versions import Version

WORKING_COPY = "."
Kind = Literal["version", "commit", "working copy"]
_NAMED = re.compile(r"(?P<model>[a-z][a-z0-9_]*)?@(?P<which>[a-z][a-z0-9_-]*)")


class NotComparable(RetraceError):
    """Two sides that have no common ground: no version, or versions of different models."""


class UnknownRevision(RetraceError):
    """What a side names is neither a version nor anything that git knows."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison. `tree` is what git reads it by, `commit` what a working copy was checked out at."""

    name: str
    kind: Kind
    tree: str
    commit: str
    version: Version | None = None


def model_of(a: str, b: str) -> str:
    """The model that the named versions are of. Raises `NotComparable`."""
    named = {side: match["model"] for side in (a, b) if (match := _NAMED.fullmatch(side))}
    models = {model for model in named.values() if model}
    if not models:
        raise NotComparable(
            f"neither {a!r} nor {b!r} is a version, and one must be: it says which model is compared; `retrace log` "
            "lists them"
        )
    if len(models) > 1:
        raise NotComparable(
            f"{a} and {b} are of different models, which have nothing to compare; name two versions of one model"
        )
    return models.pop()


def side(git: Git, settings: Settings, model: str, asked: str, working_copy: str | None) -> Side:
    """What a side is; `working_copy` is the tree of that. Raises `UnknownVersion`, `UnknownRevision`."""
    if asked == WORKING_COPY:
        assert working_copy is not None
        head = Git(settings.root).resolve("HEAD")
        if head is None:
            raise GitError(f"{settings.root} has no commit yet; commit your files first")
        return Side("working copy", "working copy", working_copy, head)
    named = _NAMED.fullmatch(asked)
    if named is not None:
        version = versions.find(git, f"{model}@{named['which']}")
        return Side(version.name, "version", version.commit, version.commit, version)
    # A name is what the user's own checkout takes it for; a mirror of the origin knows no HEAD of theirs.
    commit = Git(settings.root).resolve(asked) or git.resolve(asked)
    if commit is None:
        raise UnknownRevision(
            f"{asked!r} is no version such as {model}@v1, no branch, tag or commit, and not . for the working copy"
        )
    return Side(asked, "commit", commit, commit)
