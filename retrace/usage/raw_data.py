"""The raw data of all versions, and of the branch data through its whole history: pointers and manifests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from typing import Any

from retrace.dvcfiles import RAW
from retrace.manifest import Partition, parse_manifest
from retrace.runs import DATA_BRANCH
from retrace.usage.holdings import Holdings

POINTER, MANIFEST = ".dvc", ".manifest"

Pick = Callable[[bytes], Iterable[bytes]]


@dataclass(frozen=True)
class Held:
    """Some contents of a partition, the names of the versions that have it, and whether the branch data has it now."""

    partition: Partition
    versions: tuple[str, ...]
    in_newest: bool

    @property
    def facts(self) -> dict[str, Any]:
        """The partition as JSON can hold it."""
        named = {key: getattr(self.partition, key) for key in ("path", "md5", "sha256", "rows")}
        return named | {"inNewestData": self.in_newest}


class RawData:
    """Pointers and manifests of all versions and of every commit on the branch data.

    A set of manifests is a number with a bit for each: a thousand versions of a thousand partitions stay small.
    """

    def __init__(self, holdings: Holdings) -> None:
        self.holdings = holdings
        log = holdings.git.run("log", "--first-parent", "--format=%H", DATA_BRANCH, "--")
        commits = log.stdout.decode().split() if log.returncode == 0 else []
        known = holdings.versions
        ids = holdings.ids([f"{commit}:{RAW}" for commit in (*(version.commit for version in known), *commits)])
        trees = holdings.trees(oid for oid in ids if oid is not None)
        files = [trees[oid] if oid is not None else {} for oid in ids]
        self._of_version = dict(zip(holdings.named, files, strict=False))
        self._of_data = files[len(known) :]

    @cached_property
    def datasets(self) -> list[str]:
        """The names of all datasets that there ever were."""
        return sorted(set(self.ids(MANIFEST).values()))

    def ids(self, suffix: str, dataset: str | None = None) -> dict[str, str]:
        """Id -> dataset of every distinct pointer or manifest (of one dataset), the oldest first."""
        found = {}
        for files in (*reversed(self._of_data), *self._of_version.values()):
            for name, oid in files.items():
                if name.endswith(suffix) and dataset in (None, name.removesuffix(suffix)):
                    found[oid] = name.removesuffix(suffix)
        return found

    def holding(self, ids: Iterable[str]) -> dict[str, set[str]]:
        """Version name -> which of these pointers or manifests it has, of datasets that its model reads."""
        wanted = set(ids)
        having = [name for name, files in self._of_version.items() if not wanted.isdisjoint(files.values())]
        reads = self.holdings.datasets(having)
        found = {}
        for version in having:
            files = self._of_version[version].items()
            used = {oid for file, oid in files if oid in wanted and file.rpartition(".")[0] in reads[version]}
            if used:
                found[version] = used
        return found

    @cached_property
    def newest(self) -> frozenset[str]:
        """The ids of the pointers and manifests that the branch data has now."""
        return frozenset(self._of_data[0].values()) if self._of_data else frozenset()

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {oid: number for number, oid in enumerate(self.ids(MANIFEST))}

    def manifests(self, ids: Iterable[str]) -> int:
        """A set of manifests by their ids; what is none is left out."""
        return reduce(or_, (1 << self._numbers[oid] for oid in ids if oid in self._numbers), 0)

    def lines(self, pick: Pick, dataset: str | None = None) -> dict[Partition, int]:
        """Partition -> the manifests that have it, for the lines that `pick` takes out of each distinct manifest.

        In the order of paths, and of one path the oldest first.
        """
        found: dict[bytes, int] = defaultdict(int)
        for oid, content in self.holdings.contents(self.ids(MANIFEST, dataset)):
            bit = self.manifests([oid])
            for line in pick(content):
                found[line] |= bit
        partitions = {parse_manifest(line.decode(), f"a {MANIFEST}")[0]: held for line, held in found.items()}
        return dict(sorted(partitions.items(), key=lambda item: item[0].path))

    def held(self, found: Mapping[Partition, int]) -> list[Held]:
        """Which versions have each of these partitions."""
        every = reduce(or_, found.values(), 0)
        having = self.holding(oid for oid, number in self._numbers.items() if every >> number & 1)
        own = {version: self.manifests(ids) for version, ids in having.items()}
        newest = self.manifests(self.newest)

        def versions(held: int) -> tuple[str, ...]:
            return tuple(version for version, manifests in own.items() if manifests & held)

        return [Held(partition, versions(held), bool(held & newest)) for partition, held in found.items()]


def by_version(holdings: Holdings, held: Sequence[Held]) -> dict[str, list[Held]]:
    """Version name -> the partitions among these that it has, in the order of the versions."""
    found: dict[str, list[Held]] = {}
    for item in held:
        for version in item.versions:
            found.setdefault(version, []).append(item)
    return {name: found[name] for name in holdings.named if name in found}


def containing(text: str) -> Pick:
    """Takes the lines that contain this text, and does not look at the others."""
    needle = text.encode()

    def pick(content: bytes) -> Iterable[bytes]:
        position = content.find(needle)
        while position >= 0:
            end = content.find(b"\n", position)
            end = len(content) if end < 0 else end
            yield content[content.rfind(b"\n", 0, position) + 1 : end]
            position = content.find(needle, end)

    return pick
