"""PSI of a raw dataset of two sides, from the files that this machine's DVC cache or a remote folder has of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from retrace.comparison.content import Content
from retrace.comparison.exact import PartitionsUnreadable, psi_of_files
from retrace.comparison.psi import ColumnPsi
from retrace.comparison.raw import Dataset
from retrace.config import Settings
from retrace.dvcfiles import RAW, object_path
from retrace.errors import RetraceError
from retrace.git import Git
from retrace.manifest import Partition
from retrace.statistics import EXACT_ROWS
from retrace.workspace import NoRemote, remote_of


class ObjectsMissing(RetraceError):
    """Partitions that are neither in this machine's cache nor in a remote that is a folder."""


def exact_psi(settings: Settings, git: Git, a: Content, b: Content, name: str) -> tuple[ColumnPsi, ...]:
    """The index of each column that both sides have of a raw dataset.

    Raises `ObjectsMissing`, `PartitionsUnreadable`.
    """
    datasets = [side.data.datasets[name] for side in (a, b)]
    before, after = (_files(settings, git, side, dataset) for side, dataset in zip((a, b), datasets, strict=True))
    try:
        return psi_of_files(before, after, exact=datasets[0].rows <= EXACT_ROWS)
    except PartitionsUnreadable as error:
        reason = str(error).replace(f"{settings.var}{os.sep}", "var/")
        raise PartitionsUnreadable(f"{RAW}/{name} cannot be read: {reason}; `retrace doctor --rehash` looks") from None


def _files(settings: Settings, git: Git, side: Content, dataset: Dataset) -> list[Path]:
    """The objects of a dataset's partitions. Raises `ObjectsMissing`."""
    stores = [settings.cache]
    config = git.read(side.side.tree, ".dvc/config")
    try:
        remote = remote_of(settings, config.decode() if config is not None else "").folder
    except NoRemote:
        remote = None
    stores += [remote] if remote is not None else []
    found: list[Path] = []
    lost: list[Partition] = []
    for partition in dataset.partitions:
        place = next((place for store in stores if (place := object_path(store, partition.md5)).is_file()), None)
        if place is None:
            lost.append(partition)
        else:
            found.append(place)
    if lost:
        raise ObjectsMissing(_said_missing(side, dataset, lost))
    return found


def _said_missing(side: Content, dataset: Dataset, lost: Sequence[Partition]) -> str:
    names = ", ".join(f"{partition.path} (md5 {partition.md5[:12]})" for partition in lost[:3])
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    how = f"retrace checkout {side.side.version.name}" if side.side.version is not None else "retrace data pull"
    return (
        f"{names}{more} of {dataset.name} of {side.side.name} are neither in this machine's cache nor in a remote that "
        f"is a folder; `{how}` brings them, or leave out --psi"
    )
