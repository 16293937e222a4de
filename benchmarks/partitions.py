"""The partitions of a raw dataset, one for each day: invented, or as real objects of DVC's."""

from __future__ import annotations

import hashlib
import json
import textwrap
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow

from retrace.config import DatasetSettings
from retrace.dvcfiles import RAW, object_path
from retrace.manifest import Partition
from retrace.partition import arrow_schema, write_partition

BEGIN = datetime(2013, 1, 1, tzinfo=UTC)
CONDITION = "tail_number = 'N14228'"
SOUGHT_EVERY = 10  # in every tenth partition the condition holds, for one row


@dataclass(frozen=True)
class Partitions:
    """A dataset that grew by a partition a day; `days` says below how many of them it had."""

    name: str
    items: tuple[Partition, ...]
    _as_json: list[str] = field(default_factory=list, repr=False)

    @cached_property
    def _lines(self) -> list[str]:
        return [f"{item.path} {item.md5} {item.sha256} {item.rows}\n" for item in self.items]

    @cached_property
    def _entries(self) -> list[str]:
        names = (Path(item.path).name for item in self.items)
        return [json.dumps({"md5": item.md5, "relpath": name}) for item, name in zip(self.items, names, strict=True)]

    def as_json(self, indent: str) -> list[str]:
        """Every partition as an event lists it."""
        if not self._as_json:
            for item in self.items:
                file = {"md5": item.md5, "path": item.path, "sha256": item.sha256, "size": 10_000}
                self._as_json.append(textwrap.indent(json.dumps(file, indent=1), indent))
        return self._as_json

    def manifest(self, days: int) -> bytes:
        return "".join(self._lines[:days]).encode()

    def listing(self, days: int) -> bytes:
        """The folder as DVC's `.dir` object lists it."""
        return f"[{', '.join(self._entries[:days])}]".encode()

    def directory(self, days: int) -> str:
        """DVC's md5 of the folder."""
        return f"{hashlib.md5(self.listing(days)).hexdigest()}.dir"

    def pointer(self, days: int) -> bytes:
        """The `.dvc` file."""
        text = f"outs:\n- md5: {self.directory(days)}\n  size: {days * 10_000}\n  nfiles: {days}\n  hash: md5\n"
        return f"{text}  path: {self.name}\n".encode()


def day(number: int) -> str:
    """The name of a partition; the first one is of day 1."""
    return f"{BEGIN + timedelta(days=number - 1):%Y-%m-%d}"


def invented(name: str, days: int) -> Partitions:
    """Partitions of which there are hashes only."""
    paths = [f"{RAW}/{name}/{day(number)}.parquet" for number in range(1, days + 1)]
    return Partitions(
        name,
        tuple(
            Partition(path, hashlib.md5(path.encode()).hexdigest(), hashlib.sha256(path.encode()).hexdigest(), 1000)
            for path in paths
        ),
    )


def real(settings: DatasetSettings, days: int, rows: int, scratch: Path, cache: Path) -> Partitions:
    """Partitions that are in DVC's cache as Retrace's ingestion writes them; they differ in one value."""
    schema = arrow_schema(settings)
    columns = {field.name: [_value(field.type, row) for row in range(rows)] for field in schema}
    table = pyarrow.table(columns, schema=schema)
    place = next(index for index, field in enumerate(schema) if field.type == pyarrow.float64())
    items = []
    for number in range(1, days + 1):
        varied = pyarrow.array([float(number), *columns[schema.names[place]][1:]], schema.types[place])
        own = table.set_column(place, schema.field(place), varied)
        if number % SOUGHT_EVERY == 0 and "tail_number" in schema.names:
            tails = ["N14228", *columns["tail_number"][1:]]
            own = own.set_column(schema.get_field_index("tail_number"), "tail_number", pyarrow.array(tails))
        item = write_partition(own, settings.key, scratch, f"{RAW}/{settings.name}/{day(number)}.parquet")
        _store(scratch / item.path, cache, item.md5)
        items.append(item)
    return Partitions(settings.name, tuple(items))


def store_listings(partitions: Partitions, first: int, cache: Path) -> None:
    """Put the folder's `.dir` objects into the cache, from that of the first `first` days on."""
    for days in range(first, len(partitions.items) + 1):
        target = object_path(cache, partitions.directory(days))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(partitions.listing(days))


def _store(file: Path, cache: Path, md5: str) -> None:
    target = object_path(cache, md5)
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)
    target.chmod(0o444)


def _value(kind: Any, row: int) -> Any:
    if kind == pyarrow.string():
        return f"N{row % 40:05d}"
    if kind == pyarrow.timestamp("us"):
        return BEGIN.replace(tzinfo=None) + timedelta(minutes=row)
    return float(row % 17) if kind == pyarrow.float64() else row
