"""What differs in raw data, by the manifests: partitions, rows, md5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from retrace.comparison.content import Content
from retrace.comparison.psi import ColumnPsi
from retrace.comparison.raw import Dataset
from retrace.manifest import Partition


@dataclass(frozen=True)
class DatasetChange:
    """What differs in one raw dataset; a side that lacks it has None. `psi` is of all rows, if that was asked for."""

    name: str
    before: Dataset | None
    after: Dataset | None
    added: tuple[Partition, ...]
    removed: tuple[Partition, ...]
    replaced: tuple[tuple[Partition, Partition], ...]
    psi: tuple[ColumnPsi, ...] | None = None

    @property
    def same(self) -> bool:
        """Whether both sides have the very same files."""
        return self.before is not None and self.after is not None and self.before.md5 == self.after.md5


def data_changes(a: Content, b: Content) -> tuple[DatasetChange, ...]:
    """Every raw dataset that one of the sides reads, those that are the same too."""
    before, after = a.data.datasets, b.data.datasets
    return tuple(_change(name, before.get(name), after.get(name)) for name in {**before, **after})


def _change(name: str, before: Dataset | None, after: Dataset | None) -> DatasetChange:
    old, new = _partitions(before), _partitions(after)
    both = sorted(old.keys() & new.keys())
    return DatasetChange(
        name,
        before,
        after,
        added=tuple(new[path] for path in sorted(new.keys() - old.keys())),
        removed=tuple(old[path] for path in sorted(old.keys() - new.keys())),
        replaced=tuple((old[path], new[path]) for path in both if old[path].md5 != new[path].md5),
    )


def _partitions(dataset: Dataset | None) -> Mapping[str, Partition]:
    return {partition.path: partition for partition in dataset.partitions} if dataset is not None else {}
