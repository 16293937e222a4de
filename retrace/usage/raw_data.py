"""The raw data of all versions, and of the branch data through its whole history: pointers and manifests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from pathlib import PurePosixPath
from typing import Any

from retrace.dvcfiles import RAW
from retrace.manifest import Partition, parse_manifest
from retrace.runs import DATA_BRANCH, INGEST_EVENT
from retrace.usage.contents import Step, Wanted, brought, contents
from retrace.usage.holdings import Holdings

POINTER, MANIFEST = ".dvc", ".manifest"
_EVENT = PurePosixPath(INGEST_EVENT).name
_BELOW = f"{RAW}/".encode()


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
        arguments = ("rev-list", "--first-parent", "--reverse", "--parents", DATA_BRANCH, "--")
        listed = holdings.git.run(*arguments).stdout.decode().splitlines()
        commits = [line.split() for line in listed]
        known = [version.commit for version in holdings.versions]
        files = holdings.folders([f"{commit}:{RAW}" for commit in (*known, *(own for own, *_ in commits))])
        self._of_version = dict(zip(holdings.named, files, strict=False))
        self._of_data = files[len(known) :]
        self._merged = [len(parents) > 1 for _, *parents in commits]

    def _named(self, suffix: str) -> list[str]:
        names = {name for files in (*self._of_data, *self._of_version.values()) for name in files}
        return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix))

    @cached_property
    def datasets(self) -> list[str]:
        """The names of all datasets that there ever were."""
        return self._named(MANIFEST)

    @cached_property
    def pointers(self) -> dict[str, str]:
        """Id -> dataset of every distinct pointer, the oldest first."""
        named = self._named(POINTER)
        return {
            files[name]: dataset
            for files in (*self._of_data, *self._of_version.values())
            for dataset in named
            if (name := f"{dataset}{POINTER}") in files
        }

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
        return frozenset(self._of_data[-1].values()) if self._of_data else frozenset()

    @cached_property
    def _told(self) -> list[dict[str, list[bytes]]]:
        """Of each commit on the branch data: dataset -> the lines that its own event says it brought.

        An event that was there before tells of another commit, and that of a merge tells of one of its sides.
        """
        first: dict[str, int] = {}
        for number, files in enumerate(self._of_data):
            if _EVENT in files:
                first.setdefault(files[_EVENT], number)
        told: list[dict[str, list[bytes]]] = [defaultdict(list) for _ in self._of_data]
        for oid, event in self.holdings.contents(oid for oid, number in first.items() if not self._merged[number]):
            for line in brought(event):
                told[first[oid]][line.removeprefix(_BELOW).partition(b"/")[0].decode()].append(line)
        return told

    @cached_property
    def _steps(self) -> dict[str, list[Step]]:
        """Dataset -> its manifests on the branch data, then those that versions have from elsewhere."""
        return {dataset: list(self._steps_of(f"{dataset}{MANIFEST}", dataset)) for dataset in self.datasets}

    def _steps_of(self, name: str, dataset: str) -> Iterator[Step]:
        before: str | None = None
        known: set[str | None] = set()
        for files, told in zip(self._of_data, self._told, strict=True):
            manifest = files.get(name)
            if manifest != before:
                yield Step(manifest, told.get(dataset) if manifest is not None else None)
                before = manifest
                known.add(manifest)
        elsewhere = dict.fromkeys(files[name] for files in self._of_version.values() if name in files)
        yield from (Step(manifest) for manifest in elsewhere if manifest not in known)

    @cached_property
    def _starts(self) -> dict[str, int]:
        """Dataset -> the number of its first step among those of all datasets."""
        starts, number = {}, 0
        for dataset, steps in self._steps.items():
            starts[dataset] = number
            number += len(steps)
        return starts

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Id of a manifest -> its number; what came twice had the same contents the first time."""
        found: dict[str, int] = {}
        for number, step in enumerate(step for steps in self._steps.values() for step in steps):
            if step.manifest is not None:
                found.setdefault(step.manifest, number)
        return found

    def manifests(self, ids: Iterable[str]) -> int:
        """A set of manifests by their ids; what is none is left out."""
        return reduce(or_, (1 << self._numbers[oid] for oid in ids if oid in self._numbers), 0)

    def contents(self, wanted: Wanted | None, dataset: str | None = None) -> dict[Partition, int]:
        """Partition -> the manifests that have it, of all lines of manifests (of one dataset) or the wanted ones.

        In the order of paths, and of one path the oldest first.
        """
        found: dict[bytes, int] = defaultdict(int)
        for name in self.datasets if dataset is None else [dataset]:
            for line, held in contents(self.holdings, self._steps[name], wanted).items():
                found[line] |= held << self._starts[name]
        partitions = {parse_manifest(line.decode(), f"a {MANIFEST}")[0]: held for line, held in found.items()}
        return dict(sorted(partitions.items(), key=lambda item: (item[0].path, item[1] & -item[1])))

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
    found: dict[str, list[Held]] = defaultdict(list)
    for item in held:
        for version in item.versions:
            found[version].append(item)
    return {name: found[name] for name in holdings.named if name in found}
