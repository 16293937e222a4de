"""What all versions hold, read in a few git calls: ids of objects first, then each distinct object once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import Any

import yaml

from retrace import verdicts, versions, yaml12
from retrace.git import Git, GitError
from retrace.verdicts import Verdict

_AT_ONCE = 64  # a manifest of a thousand partitions is 0.1 MB
_READERS = 2


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
        """Each distinct object with its content, in this order; git reads some ahead, and few are in memory."""
        wanted = list(dict.fromkeys(ids))
        parts = iter([wanted[start : start + _AT_ONCE] for start in range(0, len(wanted), _AT_ONCE)])
        with ThreadPoolExecutor(_READERS) as pool:
            ahead = deque((part, pool.submit(self.git.read_many, part)) for part in islice(parts, _READERS))
            while ahead:
                part, reading = ahead.popleft()
                contents = reading.result()
                ahead.extend((part, pool.submit(self.git.read_many, part)) for part in islice(parts, 1))
                for oid, content in zip(part, contents, strict=True):
                    if content is None:
                        raise GitError(f"{self.git.directory} lacks the object {oid[:12]}; run git fsck there")
                    yield oid, content

    def trees(self, ids: Iterable[str]) -> dict[str, dict[str, str]]:
        """Id of a folder -> name -> id of all that is directly in it."""
        return {oid: dict(_entries(content, len(oid) // 2)) for oid, content in self.contents(ids)}

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


def _entries(content: bytes, size: int) -> Iterator[tuple[str, str]]:
    """What a tree object lists: `mode name NUL id`, without anything between entries."""
    position = 0
    while position < len(content):
        end = content.index(b"\0", position)
        name = content[position:end].split(b" ", 1)[1].decode(errors="replace")
        position = end + 1 + size
        yield name, content[end + 1 : position].hex()
