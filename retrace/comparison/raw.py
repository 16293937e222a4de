"""The raw data of a side: its partitions, by the manifests that are committed beside DVC's pointers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from retrace import manifest
from retrace.comparison.sides import Side
from retrace.dvcfiles import RAW, pointer_md5
from retrace.git import Git, GitError, is_commit_id
from retrace.manifest import Partition
from retrace.runs import data_as_of


@dataclass(frozen=True)
class Dataset:
    """A raw dataset as a side sees it."""

    name: str
    md5: str
    partitions: tuple[Partition, ...]

    @property
    def rows(self) -> int:
        return sum(partition.rows for partition in self.partitions)


@dataclass(frozen=True)
class Data:
    """The raw data of a side: its own, or (`newest`) what the branch `data` holds now, at that branch's `commit`."""

    commit: str | None
    through: datetime | None
    newest: bool
    datasets: Mapping[str, Dataset]


def raw_paths(names: Iterable[str]) -> list[str]:
    """The pointer and the manifest of each dataset."""
    return [f"{RAW}/{name}{suffix}" for name in names for suffix in (".dvc", ".manifest")]


def raw_data(git: Git, side: Side, names: Sequence[str], raw: Sequence[bytes | None], facts: Mapping[str, Any]) -> Data:
    """The raw data of a side: its own (`raw`: its pointers and manifests) or, of code that has none, the newest.

    Raises `GitError`, `ManifestError`, `NoData`.
    """
    if any(content is not None for content in raw):
        commit = side.version.data if side.version is not None else str(facts.get("data", ""))
        told = facts.get("dataThrough")
        moment = datetime.fromisoformat(told) if told else None
        return Data(commit if is_commit_id(commit) else None, moment, False, _datasets(names, raw, f"of {side.name}"))
    newest = data_as_of(git, None)
    raw = git.read_many([f"{newest.commit}:{path}" for path in raw_paths(names)])
    return Data(newest.commit, newest.through, True, _datasets(names, raw, f"of commit {newest.commit[:8]}"))


def _datasets(names: Iterable[str], raw: Sequence[bytes | None], where: str) -> dict[str, Dataset]:
    """The datasets that are there; one that a model names and nobody has ingested yet is not."""
    found = {}
    contents = iter(raw)
    for name in names:
        pointer, rows = next(contents), next(contents)
        if pointer is None:
            continue
        if rows is None:
            raise GitError(f"{RAW}/{name}.dvc {where} is there without its manifest; ingest the dataset again")
        path = f"{RAW}/{name}.manifest"
        partitions = manifest.parse_manifest(rows.decode(), f"{path} {where}")
        found[name] = Dataset(name, pointer_md5(pointer, f"{RAW}/{name}.dvc {where}"), partitions)
    return found
