"""What all versions hold, read in a few git calls: ids of objects first, then each distinct object once."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import IO, Any

import yaml

from retrace import verdicts, versions, yaml12
from retrace.git import Git, GitError
from retrace.verdicts import Verdict


class Holdings:
    """All versions of a repository, and what their commits hold, by the versions' names."""

    def __init__(self, git: Git) -> None:
        self.git = git
        self.versions = versions.versions(git)
        self.named = {version.name: version for version in self.versions}
        self._settings: dict[str, dict[str, Any]] = {}

    @cached_property
    def aliases(self) -> dict[str, list[str]]:
        """Version name -> the aliases that it holds now."""
        held: dict[str, list[str]] = {}
        for (_, alias), version in sorted(versions.champions(self.git, self.versions).items()):
            held.setdefault(version.name, []).append(alias)
        return held

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """Version name -> what its newest rebuild said, if there was one."""
        return verdicts.newest(self.git, self.versions)

    def ids(self, objects: Sequence[str]) -> list[str | None]:
        """The ids of many objects (`commit:path`); None for those that are missing."""
        if not objects:
            return []
        request = "".join(f"{name}\n" for name in objects).encode()
        lines = self.git.out("cat-file", "--batch-check=%(objectname)", "--buffer", stdin=request).split("\n")
        return [None if line.endswith(" missing") else line for line in lines]

    def at(self, path: str) -> dict[str, str]:
        """Version name -> the id of what its commit has under a path, where it has something."""
        found = self.ids([f"{version.commit}:{path}" for version in self.versions])
        return {name: oid for name, oid in zip(self.named, found, strict=True) if oid is not None}

    def contents(self, ids: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Each distinct object with its content, in this order."""
        return self.stream(dict.fromkeys(ids))

    def stream(self, ids: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Objects with their contents, one in memory at a time: a thousand large ones come to a gigabyte.

        Git is quick where one after another is alike. Raises `GitError`.
        """
        wanted = list(ids)
        if not wanted:
            return
        command = ["git", "-C", str(self.git.directory), "cat-file", "--batch", "--buffer"]
        environment = self.git.base_environment()
        with (
            _request(wanted) as request,
            subprocess.Popen(
                command, stdin=request, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            ) as process,
        ):
            assert process.stdout is not None
            try:
                for oid in wanted:
                    header = process.stdout.readline().split()
                    if len(header) != 3:
                        raise GitError(f"{self.git.directory} lacks the object {oid[:12]}; run git fsck there")
                    yield oid, process.stdout.read(int(header[2]))
                    process.stdout.read(1)
            finally:
                process.kill()

    def sizes(self, ids: Sequence[str]) -> list[int]:
        """The sizes of objects, without reading them."""
        if not ids:
            return []
        request = "".join(f"{oid}\n" for oid in ids).encode()
        return [
            int(size)
            for size in self.git.out("cat-file", "--batch-check=%(objectsize)", "--buffer", stdin=request).splitlines()
        ]

    def folders(self, names: Sequence[str]) -> list[dict[str, str]]:
        """Name -> id of all that is directly in each of these folders: `commit:path`, with the commit's full id.

        Nothing for those that are missing.
        """
        size = len(names[0].partition(":")[0]) // 2 if names else 0
        entry = re.compile(rb"[0-7]+ ([^\0]+)\0(.{%d})" % size, re.DOTALL)  # a tree has nothing between its entries
        return [
            {name.decode(errors="replace"): oid.hex() for name, oid in entry.findall(content or b"")}
            for content in self.git.read_many(names)
        ]

    def datasets(self, wanted: Iterable[str]) -> dict[str, frozenset[str]]:
        """Version name -> the raw datasets that its model reads, by params.yaml of its commit. Raises `GitError`."""
        found = self.at("params.yaml")
        chosen = {name: found.get(name, "") for name in wanted}
        for oid, content in self.contents(oid for oid in chosen.values() if oid and oid not in self._settings):
            self._settings[oid] = _models(content)
        named = {}
        for name, oid in chosen.items():
            version = self.named[name]
            model = self._settings.get(oid, {}).get(version.model)
            if not isinstance(model, dict):
                raise GitError(
                    f"{name}: commit {version.commit[:8]} has no params.yaml with {version.model}: it is not a version "
                    "that Retrace made"
                )
            named[name] = frozenset(str(dataset) for dataset in model.get("datasets") or ())
        return named


def _models(content: bytes) -> dict[str, Any]:
    try:
        tree = yaml12.load(content.decode())
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    models = tree.get("models") if isinstance(tree, dict) else None
    return models if isinstance(models, dict) else {}


def _request(names: Iterable[str]) -> IO[bytes]:
    """Names as a file to read: who writes many into a pipe waits for the reader, and the reader for him."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - who calls closes it
    file.write("".join(f"{name}\n" for name in names).encode())
    file.seek(0)
    return file
