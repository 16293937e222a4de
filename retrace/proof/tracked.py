"""What a version's record says of the files that it tracks: raw partitions and what its stages made."""

from __future__ import annotations

from dataclasses import dataclass

from retrace.dvcfiles import RAW
from retrace.hashing import directory_object
from retrace.record import Record


@dataclass(frozen=True)
class RecordedFile:
    """A file as the signed commit lists it."""

    path: str
    md5: str
    sha256: str


@dataclass(frozen=True)
class Tracked:
    """What DVC tracks under one md5: a file, or (`.dir`) a folder of files."""

    path: str
    md5: str
    files: tuple[RecordedFile, ...]

    @property
    def listing(self) -> dict[str, str]:
        """Path in the folder -> md5."""
        return {file.path.removeprefix(f"{self.path}/"): file.md5 for file in self.files}

    @property
    def directory_object(self) -> bytes:
        """The object that DVC keeps of a folder: the list of its files."""
        return directory_object(self.listing)


def tracked(record: Record) -> tuple[Tracked, ...]:
    """Everything that the version was made of or made, raw data first."""
    raw = [
        Tracked(
            f"{RAW}/{dataset.name}",
            dataset.md5,
            tuple(RecordedFile(part.path, part.md5, part.sha256) for part in dataset.partitions),
        )
        for dataset in record.datasets
    ]
    made = [
        Tracked(
            output["path"],
            output["md5"],
            tuple(RecordedFile(file["path"], file["md5"], file["sha256"]) for file in output["files"]),
        )
        for stage in record.stages
        for output in stage.facts["outputs"]
    ]
    return (*raw, *made)
