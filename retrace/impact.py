"""`retrace impact`: from a thing to the versions that it went into, and who of them holds an alias; from git alone.

There is no index that could be stale: what all versions hold is read anew, in a few git calls.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from retrace.config import Settings
from retrace.dvcfiles import RAW
from retrace.errors import RetraceError
from retrace.git import Git
from retrace.impact_text import json_text, text_lines
from retrace.reader import reader
from retrace.usage import code, hashes, packages, raw
from retrace.usage.answer import Answer, UnknownThing
from retrace.usage.holdings import Holdings

_HASH = re.compile(r"[0-9a-f]{32}(\.dir)?|[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{4,40}")


class NotOneThing(RetraceError):
    """Asked about nothing, or about several things at once."""


def impact_lines(
    settings: Settings,
    thing: str | None,
    *,
    package: str | None,
    where: str | None,
    dataset: str | None,
    as_json: bool,
) -> Iterator[str]:
    """Which versions something went into; `where` is a condition on the rows of a raw dataset.

    Raises `NotOneThing`, `UnknownThing`, and what the kinds of things may raise.
    """
    if sum(item is not None for item in (thing, package, where)) != 1:
        raise NotOneThing("ask about one thing: a path, a hash or a commit, or --package, or --where with a condition")
    if dataset is not None and where is None:
        raise NotOneThing(f"--dataset says what --where is about; for the whole dataset ask for {RAW}/{dataset}")
    holdings = Holdings(reader(settings))
    answer = _answer(settings, holdings, thing, package, where, dataset)
    if as_json:
        yield json_text(holdings, answer)
    else:
        yield from text_lines(holdings, answer)


def _answer(
    settings: Settings,
    holdings: Holdings,
    thing: str | None,
    package: str | None,
    where: str | None,
    dataset: str | None,
) -> Answer:
    if package is not None:
        return packages.about_package(holdings, package)
    if where is not None:
        from retrace.usage.records import about_records  # what runs DVC's process is slow to import

        return about_records(settings, holdings, where, dataset)
    assert thing is not None
    return _about_thing(settings, holdings, thing)


def _about_thing(settings: Settings, holdings: Holdings, thing: str) -> Answer:
    """By its form: a hash, a commit, or else a path, which may be as of a commit."""
    git, lower = holdings.git, thing.lower()
    if _HASH.fullmatch(lower):
        return hashes.about_hash(holdings, lower)
    if _COMMIT.fullmatch(lower):
        commit = git.resolve(lower)
        if commit is not None:
            return code.about_commit(holdings, commit)
    if thing in holdings.named:
        raise UnknownThing(f"{thing} is a version: `retrace lineage {thing} --down` tells what it led to")
    given, at, revision = thing.partition("@")
    path = _path(settings, given)
    commit = _revision(git, revision) if at else None
    if path == RAW or path.startswith(f"{RAW}/"):
        return raw.about_path(holdings, path, commit)
    answer = code.about_path(holdings, path, commit)
    if answer is None and commit is None:
        answer = hashes.about_output(holdings, path)
    if answer is None:
        raise UnknownThing(
            f"{thing}: no version has a file, a folder or an output of that path, and it is no commit or hash here; "
            f"name one such as pipeline/train.py, {RAW}/DATASET, an md5, or a commit"
        )
    return answer


def _path(settings: Settings, given: str) -> str:
    """The path as git has it: below the project, wherever the command is called. Raises `UnknownThing`."""
    if not given.isprintable() or not given:
        raise UnknownThing(f"{given!r} is not a path")
    path = Path(given)
    if path.is_absolute():
        if not path.is_relative_to(settings.root):
            raise UnknownThing(f"{given} lies outside the project; name a path in it")
        given = str(path.relative_to(settings.root))
    normal = os.path.normpath(given)
    if ".." in PurePosixPath(normal).parts:
        raise UnknownThing(f"{given} lies outside the project; name a path in it")
    return normal


def _revision(git: Git, revision: str) -> str:
    commit = git.resolve(revision) if revision else None
    if commit is None:
        raise UnknownThing(f"{revision!r} names no commit here; after @ give a commit, a branch or a version")
    return commit
