"""What differs in tables: rows, columns, and how far each column's distribution has moved.

Statistics are those that committed events hold: of what stages made, as a whole; of raw datasets, of the partition that
was brought last. No data is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from retrace.comparison.changes import Change, changes
from retrace.comparison.content import Content
from retrace.comparison.psi import ColumnPsi, psi_of_quantiles
from retrace.dvcfiles import RAW
from retrace.git import Git
from retrace.lineage.event import dataset_name
from retrace.runs import INGEST_EVENT

# Whose distribution moves by nature.
_TIMES = ("timestamp", "date", "time")


@dataclass(frozen=True)
class Table:
    """A version of a table: `part` is the partition that the statistics are of, None if they are of all."""

    name: str
    version: str
    part: str | None
    rows: int
    columns: Mapping[str, str]
    metrics: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class TableChange:
    """What differs in one table that both sides have; the PSI is an estimate from quantiles."""

    name: str
    before: Table
    after: Table
    columns: tuple[Change, ...]
    psi: tuple[ColumnPsi, ...]


def table_changes(git: Git, a: Content, b: Content) -> tuple[TableChange, ...]:
    """Every table whose version differs and of which both sides have statistics."""
    before, after = ({table.name: table for table in _tables(git, side, other)} for side, other in ((a, b), (b, a)))
    both = [(before[name], after[name]) for name in before if name in after]
    return tuple(_change(old, new) for old, new in both if old.version != new.version)


def _change(old: Table, new: Table) -> TableChange:
    moved = []
    for column, kind in new.columns.items():
        if old.columns.get(column) is None or kind.startswith(_TIMES):
            continue
        known = (old.metrics.get(column), new.metrics.get(column))
        value = psi_of_quantiles(known[0], old.rows, known[1], new.rows) if known[0] and known[1] else None
        if value is not None:
            moved.append(ColumnPsi(column, value))
    return TableChange(old.name, old, new, changes(old.columns, new.columns), tuple(moved))


def _tables(git: Git, side: Content, other: Content) -> Iterator[Table]:
    """The raw datasets that differ, and what the stages of this very state made."""
    wanted = {
        name: dataset.md5
        for name, dataset in side.data.datasets.items()
        if name in other.data.datasets and other.data.datasets[name].md5 != dataset.md5
    }
    if side.data.commit is not None and wanted:
        yield from _raw_tables(git, side.data.commit, wanted)
    made = {dataset_name(path): md5 for stage in side.stages for path, md5 in stage.outputs.items()}
    for told in side.events.values():
        yield from (table for table in _told(told) if made.get(table.name) == table.version)


def _raw_tables(git: Git, data: str, wanted: Mapping[str, str]) -> Iterator[Table]:
    """The newest partition of each raw dataset, by the event of the ingestion that left it so."""
    found = _brought(git, data)
    for name, md5 in wanted.items():
        key = f"{RAW}/{name}"
        if key not in found:
            last = git.out("log", "-1", "--format=%H", data, "--", f"{key}.dvc")
            found = {**_brought(git, last), **found}
        if key in found and found[key].version == md5:
            yield found[key]


def _brought(git: Git, commit: str) -> dict[str, Table]:
    content = git.read_many([f"{commit}:{INGEST_EVENT}"])[0] if commit else None
    return {table.name: table for table in _told(json.loads(content))} if content is not None else {}


def _told(event: Mapping[str, Any]) -> Iterable[Table]:
    """The tables among what an event's run made."""
    parts = {
        str(part["path"]).rpartition("/")[0]: str(part["path"])
        for part in event["run"]["facets"].get("retrace", {}).get("partitions", ())
    }
    for output in event["outputs"]:
        facets = output.get("facets", {})
        if "schema" not in facets or "dataQualityMetrics" not in facets:
            continue
        told = facets["dataQualityMetrics"]
        yield Table(
            output["name"],
            str(facets["version"]["datasetVersion"]),
            parts.get(output["name"]),
            int(told["rowCount"]),
            {field["name"]: str(field["type"]) for field in facets["schema"]["fields"]},
            told["columnMetrics"],
        )
