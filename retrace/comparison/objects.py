"""Where two sides are read: one repository that sees the objects of all, the working copy's as a tree among them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from retrace.config import Settings
from retrace.git import Git, Mirror
from retrace.reader import reader

_ALTERNATES = "GIT_ALTERNATE_OBJECT_DIRECTORIES"


class GitWithObjects(Git):
    """A repository that also sees the objects in other folders; nothing is copied into it."""

    def __init__(self, directory: Path, folders: Iterable[Path]) -> None:
        super().__init__(directory)
        self._seen = {_ALTERNATES: _alternates(folders)}

    def run(
        self, *arguments: str, stdin: bytes | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run git and return the finished process, whatever its exit code."""
        return super().run(*arguments, stdin=stdin, environment={**self._seen, **(environment or {})})


@contextmanager
def repository(settings: Settings, files: Iterable[str] | None) -> Iterator[tuple[Git, str | None]]:
    """Where both sides can be read, and the working copy as a tree, if `files` is not None.

    `files` are those of the working copy that count although git ignores them. Raises `GitError`.
    """
    git = reader(settings)
    folders = [_git_path(Git(settings.root), "objects")] if isinstance(git, Mirror) and _is_checkout(settings) else []
    if files is None:
        yield (GitWithObjects(git.directory, folders) if folders else git), None
        return
    with tempfile.TemporaryDirectory(prefix="retrace-diff-") as scratch:
        tree = _write_tree(Git(settings.root), Path(scratch), files)
        yield GitWithObjects(git.directory, [Path(scratch, "objects"), *folders]), tree


def _is_checkout(settings: Settings) -> bool:
    return Git(settings.root).run("rev-parse", "--git-dir").returncode == 0


def _git_path(git: Git, name: str) -> Path:
    return git.directory / git.out("rev-parse", "--git-path", name)


def _alternates(folders: Iterable[Path]) -> str:
    """Paths as git's variable takes them: quoted, since a colon would end one."""
    escaped = (str(folder.absolute()).replace("\\", "\\\\").replace('"', '\\"') for folder in folders)
    return ":".join(f'"{path}"' for path in escaped)


def _write_tree(git: Git, scratch: Path, files: Iterable[str]) -> str:
    """The id of a tree of all files of a checkout as they are now, but for those that git ignores.

    Its index and objects are in `scratch`: the checkout's own are only read.
    """
    index, objects = scratch / "index", scratch / "objects"
    objects.mkdir()
    own = _git_path(git, "index")
    if own.is_file():
        shutil.copy2(own, index)  # what git knows of unchanged files saves reading them
    apart = {
        "GIT_INDEX_FILE": str(index),
        "GIT_OBJECT_DIRECTORY": str(objects),
        _ALTERNATES: _alternates([_git_path(git, "objects")]),
        "GIT_LITERAL_PATHSPECS": "1",
    }
    git.out("add", "--all", environment=apart)
    here = [file for file in files if (git.directory / file).is_file()]
    if here:
        git.out("add", "--force", "--", *here, environment=apart)
    return git.out("write-tree", environment=apart)
