"""Replace partitions by the same without some rows: a commit on the branch `data`, made as an ingestion makes one.

The rows that stay are written by the writer of ingestion, so that the bytes are those which the source would give
without the records, and the next ingestion finds nothing changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from retrace import manifest
from retrace.config import Settings
from retrace.dvcfiles import RAW, object_path, pointer_md5
from retrace.errors import RetraceError
from retrace.forgetting.plan import Plan, Replacement, newest
from retrace.git import Mirror, RefMoved, RefUpdate, message
from retrace.ingest import DataMoved
from retrace.lineage import event
from retrace.lineage.project import project_at
from retrace.manifest import Partition
from retrace.partition import write_partition
from retrace.process import Job, run_job
from retrace.runs import DATA_BRANCH, INGEST_EVENT, THROUGH, data_commits, params_at, with_data
from retrace.search import Place, remaining, search
from retrace.workspace import workspace

_JOB = "ingest.forget"


class NotRemoved(RetraceError):
    """A partition was written without the records and still matches: nothing was changed."""


def replace_partitions(
    settings: Settings, mirror: Mirror, code: str, plan: Plan, condition: str, files: Mapping[str, Path]
) -> str:
    """Write the partitions anew, push them, then commit them on the branch data; the commit.

    Raises `DataMoved` when an ingestion was faster, and what pushing may raise; nothing is changed then.
    """
    started = datetime.now(UTC)
    tip = mirror.resolve(DATA_BRANCH)
    assert tip is not None
    dataset, ticket = plan.request.dataset, plan.request.ticket
    key = params_at(mirror, code).ingest.datasets[dataset].key
    base = mirror.write_commit(code, with_data(mirror, code, tip), [code], "workspace of a request to be forgotten")
    with workspace(settings, mirror, base, f"forget--{ticket}") as space:
        new = [_without(condition, item, files[item.partition.md5], key, space.path) for item in plan.replacements]
        request = {"operation": "add", "add": {f"{RAW}/{dataset}": [part.path for part in new]}}
        log = settings.logs / "forget" / f"{ticket}.log"
        before = _lists(settings.cache)
        result = run_job(settings, Job(f"request {ticket}", space, request, log))
    md5 = pointer_md5(result["pointers"][f"{RAW}/{dataset}.dvc"].encode(), dataset)
    _remove_steps(_lists(settings.cache) - before - {object_path(settings.cache, md5)}, new)
    changes: dict[str, bytes | str | None] = {path: text.encode() for path, text in result["pointers"].items()}
    rows = {part.path: part for part in (*newest(mirror, dataset), *new)}
    changes[f"{RAW}/{dataset}.manifest"] = manifest.format_manifest(rows.values()).encode()
    told = _Told(plan, tuple(new), md5)
    changes[INGEST_EVENT] = told.event(settings, mirror, code, started, rows.values())
    return _commit(mirror, tip, changes, f"data: {told.intervals}: {told.summary}", ticket)


def _lists(cache: Path) -> set[Path]:
    """DVC's lists of folders' files."""
    return set((cache / "files/md5").glob("*/*.dir"))


def _remove_steps(lists: Iterable[Path], new: Sequence[Partition]) -> None:
    """DVC replaces one file after the other and leaves a list of each step. An ingestion's list, which may have come
    meanwhile, names none of the new partitions."""
    own = {part.md5 for part in new}
    for place in lists:
        if any(entry["md5"] in own for entry in json.loads(place.read_bytes())):
            place.unlink()


def _without(condition: str, item: Replacement, file: Path, key: Sequence[str], root: Path) -> Partition:
    """The partition without the matching rows, in `root`. Raises `NotRemoved`."""
    import pyarrow
    import pyarrow.parquet

    old = item.partition
    schema = pyarrow.parquet.read_schema(file).remove_metadata()
    with remaining(condition, Place(old.path, old.md5, file)) as batches:
        table = batches.read_all().cast(schema)
    new = write_partition(table, tuple(name for name in key if name in schema.names), root, old.path)
    left = search(condition, [Place(new.path, new.md5, root / new.path)])
    if left.hits or left.unsearchable or new.rows != old.rows - item.rows:
        raise NotRemoved(f"{old.path} cannot be written without the records: {new.rows:,} of {old.rows:,} rows stay")
    return new


def _commit(mirror: Mirror, tip: str, changes: Mapping[str, bytes | str | None], title: str, ticket: str) -> str:
    through = max(data.through for data in data_commits(mirror))
    trailers = {"Retrace-Stage": "ingest", "Retrace-Run": f"forget {ticket}", THROUGH: through.isoformat()}
    commit = mirror.write_commit(tip, changes, [tip], message(title, trailers))
    try:
        mirror.push([RefUpdate(DATA_BRANCH, commit, tip)])
    except RefMoved as moved:
        raise DataMoved(f"{moved}; run this again") from None
    mirror.out("update-ref", DATA_BRANCH, commit)
    return commit


@dataclass(frozen=True)
class _Told:
    """What a replacement says of itself: in its commit's title and in the event that lineage reads."""

    plan: Plan
    new: tuple[Partition, ...]
    md5: str

    @property
    def intervals(self) -> str:
        names = [PurePosixPath(part.path).stem for part in self.new]
        return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"

    @property
    def summary(self) -> str:
        request = self.plan.request
        parts = "1 partition" if len(self.new) == 1 else f"{len(self.new)} partitions"
        return f"{parts} of {request.dataset} replaced by request {request.ticket}"

    def event(
        self, settings: Settings, mirror: Mirror, code: str, started: datetime, rows: Iterable[Partition]
    ) -> bytes:
        from retrace.lineage.facets import as_json  # the client of OpenLineage is slow to import

        request = self.plan.request
        whole = list(rows)
        output = event.Output(
            f"{RAW}/{request.dataset}",
            self.md5,
            files=len(self.new),
            format="parquet",
            documentation=f"{len(whole)} partitions, {sum(row.rows for row in whole):,} rows; {self.summary}",
        )
        facts = {
            "interval": self.intervals,
            "run": f"forget {request.ticket}",
            "ticket": request.ticket,
            "partitions": [vars(part) for part in self.new],
        }
        told = event.Event(
            "COMPLETE",
            event.fallback_run_id("forget", request.dataset, request.ticket, self.md5),
            _JOB,
            started,
            datetime.now(UTC),
            outputs=[output],
            facts=facts,
            documentation="Replaces partitions by the same without the records of a person who asked to be forgotten.",
            code="params.yaml",
            commit=code,
        )
        return as_json(told, project_at(settings, mirror, code, params_at(mirror, code).ingest.owner))
