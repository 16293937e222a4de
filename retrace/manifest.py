"""The manifest of a dataset: a line `path md5 sha256 rows` per partition, sorted by path.

It is committed beside the `.dvc` pointer, so that what a dataset holds can be asked of git alone, and so that md5 is
never the only hash of a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from retrace.errors import RetraceError

LINE = re.compile(r"(?P<path>\S+) (?P<md5>[0-9a-f]{32}) (?P<sha256>[0-9a-f]{64}) (?P<rows>0|[1-9][0-9]*)")


@dataclass(frozen=True, order=True)
class Partition:
    """A written partition; `path` is relative to the repository's root, as the manifest has it."""

    path: str
    md5: str
    sha256: str
    rows: int


class ManifestError(RetraceError):
    """A manifest that was not written by Retrace, or was edited or merged by hand."""


def parse_manifest(text: str, where: str) -> tuple[Partition, ...]:
    """Read a manifest's text, strictly; `where` names the file in messages. Raises `ManifestError`."""
    partitions: list[Partition] = []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        partition = _parse_line(line, f"{where}, line {number}")
        if partitions and partition.path <= partitions[-1].path:
            raise ManifestError(f"{where}, line {number}: {partition.path} stands twice or out of order; {_WAY_OUT}")
        partitions.append(partition)
    return tuple(partitions)


def format_manifest(partitions: Iterable[Partition]) -> str:
    """The text of a manifest; `parse_manifest` reads it back. Raises `ManifestError` for what it could not read."""
    lines = (f"{item.path} {item.md5} {item.sha256} {item.rows}\n" for item in sorted(partitions))
    text = "".join(lines)
    parse_manifest(text, "new manifest")
    return text


def span(text: bytes | None) -> str:
    """The names of the first and the last partition of a manifest, for people."""
    partitions = parse_manifest(text.decode() if text else "", "manifest")
    if not partitions:
        return "empty"
    first, last = (PurePosixPath(item.path).stem for item in (partitions[0], partitions[-1]))
    return first if first == last else f"{first} .. {last}"


def update_manifest(text: str, partition: Partition, where: str) -> str:
    """The manifest's text with this partition added or replaced; the same text when nothing changed."""
    kept = {item.path: item for item in parse_manifest(text, where)}
    return format_manifest({**kept, partition.path: partition}.values())


_NO_NAMES = frozenset(("", ".", ".."))  # where a path starts at the root, leads out, or is not in its normal form
_WAY_OUT = "restore the file from git (branch data), or run the ingestion again"


def _parse_line(line: str, where: str) -> Partition:
    match = LINE.fullmatch(line)
    if not match:
        raise ManifestError(f"{where}: {line[:80]!r} is not 'path md5 sha256 rows'; {_WAY_OUT}")
    if not _NO_NAMES.isdisjoint(match["path"].split("/")):
        raise ManifestError(f"{where}: {match['path']!r} is not a path inside the repository; {_WAY_OUT}")
    return Partition(match["path"], match["md5"], match["sha256"], int(match["rows"]))
