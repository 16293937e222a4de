"""What differs in code: the files that each stage declares, its command, and the files of no stage."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from retrace.comparison.changes import Change, ChangeKind
from retrace.comparison.content import Content
from retrace.dvcfiles import LOCK, RAW, StageTemplate
from retrace.git import Git, GitError

_KINDS: Mapping[str, ChangeKind] = {"A": "added", "D": "removed"}
_PLACE = re.compile(r"\\\$\\\{[^}]*\\\}")  # as re.escape writes `${...}`


@dataclass(frozen=True)
class File:
    """A file that differs."""

    path: str
    kind: ChangeKind

    def as_dict(self) -> dict[str, str]:
        return {"path": self.path, "change": self.kind}


@dataclass(frozen=True)
class StageCode:
    """What differs in the code of one stage."""

    stage: str
    command: Change | None
    files: tuple[File, ...]


@dataclass(frozen=True)
class Code:
    """What differs in code; `outside` are files that no stage declares."""

    stages: tuple[StageCode, ...]
    outside: tuple[File, ...]

    @property
    def files(self) -> tuple[File, ...]:
        """Each file once."""
        own = (file for stage in self.stages for file in stage.files)
        return tuple(sorted({*own, *self.outside}, key=lambda file: file.path))


def changed_files(git: Git, before: str, after: str, templates: Iterable[StageTemplate]) -> dict[str, File]:
    """Every file that differs, but for what stages and the engine write: data, the lock, results, lineage.

    Raises `GitError`.
    """
    told = git.run("diff-tree", "-r", "-z", "--no-renames", before, after)
    if told.returncode != 0:
        raise GitError(f"git cannot compare {before[:8]} with {after[:8]}: part of the history is missing; fetch it")
    raw = told.stdout.decode(errors="surrogateescape").split("\0")  # a path need not be UTF-8
    written = _written(templates)
    heads, paths = raw[0::2], raw[1::2]
    found = (File(path, _KINDS.get(head.split()[4], "changed")) for head, path in zip(heads, paths, strict=False))
    return {file.path: file for file in found if not written.match(file.path)}


def _written(templates: Iterable[StageTemplate]) -> re.Pattern[str]:
    """What results of any model match: an output's own path, or one below it."""
    outputs = {_PLACE.sub("[^/]+", re.escape(path)) for template in templates for path in template.outputs}
    raw = re.escape(RAW)
    own = [f"{re.escape(LOCK)}$", "lineage/", f"{raw}/[^/]+[.](dvc|manifest)$", f"{raw}/ingest[.]json$"]
    return re.compile("|".join([*own, *(f"{path}(/|$)" for path in sorted(outputs))]))


def below(path: str, names: Iterable[str]) -> Iterator[str]:
    """Of the names, those that are this path or lie below it."""
    return (name for name in names if name == path or name.startswith(f"{path}/"))


def code_changes(changed: Mapping[str, File], a: Content, b: Content) -> Code:
    """What differs in code, stage by stage in the order in which they run."""
    first, second = ({stage.name: stage for stage in side.stages} for side in (a, b))
    stages = []
    declared: set[str] = set()
    for name in {**second, **first}:
        sides = [stages[name] for stages in (first, second) if name in stages]
        paths = {path for stage in sides for dependency in stage.dependencies for path in below(dependency, changed)}
        declared |= paths
        before, after = first.get(name), second.get(name)
        command = None
        if before is not None and after is not None and before.command != after.command:
            command = Change(name, "changed", before.command, after.command)
        stages.append(StageCode(name, command, tuple(changed[path] for path in sorted(paths))))
    outside = tuple(changed[path] for path in sorted(changed.keys() - declared))
    return Code(tuple(stage for stage in stages if stage.command or stage.files), outside)


def patch(git: Git, a: Content, b: Content, files: Sequence[File]) -> str:
    """git's own difference of these files, line by line."""
    if not files:
        return ""
    options = ("-p", "-r", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames")
    paths = [file.path for file in files]
    told = git.run(
        "diff-tree", *options, a.side.tree, b.side.tree, "--", *paths, environment={"GIT_LITERAL_PATHSPECS": "1"}
    )
    return told.stdout.decode(errors="replace")
