"""Ingestion: partitions from the source into DVC, and a commit on the branch `data` per interval.

The branch holds pointers and manifests below `data/raw` and nothing else. A partition that comes again with the same
bytes is no change; one that differs replaces the old in a commit that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from retrace import manifest, statistics
from retrace.config import IngestSettings, Params, Settings
from retrace.dvcfiles import RAW, pointer_md5
from retrace.errors import RetraceError, TransientError
from retrace.git import ABSENT, Mirror, RefMoved, RefUpdate, message
from retrace.intervals import Interval, intervals
from retrace.lineage import event
from retrace.lineage.hide import hide
from retrace.lineage.jobs import documentation
from retrace.lineage.project import places, project_at
from retrace.manifest import Partition
from retrace.process import Job, run_job
from retrace.runs import (
    DATA_BRANCH,
    INGEST_EVENT,
    THROUGH,
    code_commit,
    data_commits,
    params_at,
    with_data,
)
from retrace.workspace import Workspace, workspace

Fetch = Callable[[IngestSettings, str, Interval, Path, str], Partition]


class NothingToIngest(RetraceError):
    """No whole interval lies in the time that was asked for."""


class DataMoved(RefMoved, TransientError):
    """Another ingestion was faster; one that starts again sees what it brought."""


@dataclass(frozen=True)
class Ingested:
    """What became of one interval: a commit on `data`, or None when nothing had changed."""

    interval: str
    commit: str | None
    summary: str


@dataclass(frozen=True)
class IngestCall:
    """What to ingest: everything up to `until` (exclusive), from `since` or from where the last one ended."""

    until: datetime
    since: datetime | None
    run_id: str
    lineage_run_id: str
    parent: event.Parent | None = None


def ingest(settings: Settings, call: IngestCall, fetch: Fetch, follow: Callable[[Ingested], None]) -> list[Ingested]:
    """Bring the branch `data` up to a date; `follow` hears of each interval when it is done.

    Raises `NothingToIngest`, the source's errors, those of `retrace.process`, `DataMoved`.
    """
    mirror = Mirror.open(settings.mirror, settings.origin)
    mirror.fetch_record()
    code = code_commit(settings, mirror)
    params = params_at(mirror, code)
    wanted = list(intervals(_since(mirror, params, call), call.until, params.ingest.every))
    if not wanted:
        raise NothingToIngest(
            f"no whole {params.ingest.every} lies between {_since(mirror, params, call):%Y-%m-%d} and "
            f"{call.until:%Y-%m-%d}; give a later --until"
        )
    # Others on this machine move the mirror's ref, too: the tip is read once, so that whoever was faster is noticed.
    tip = mirror.resolve(DATA_BRANCH)
    base = mirror.write_commit(code, with_data(mirror, code, tip), [code], "workspace of ingestion")
    done: list[Ingested] = []
    with workspace(settings, mirror, base, f"ingest--{call.run_id}") as space:
        for interval in wanted:
            # A consumer keeps one version of a dataset per run, and each commit is a version: the first is the task's
            # own run, each further one a run of its own.
            made = any(result.commit for result in done)
            run_id = event.fallback_run_id(call.lineage_run_id, interval.name) if made else call.lineage_run_id
            step = _Step(settings, mirror, params, call, space, interval, tip, code, run_id)
            result = step.run(fetch)
            tip = result.commit or tip
            follow(result)
            done.append(result)
    return done


def _since(mirror: Mirror, params: Params, call: IngestCall) -> datetime:
    """Without a date: the newest interval that is there is looked at once more, since rows come late."""
    if call.since is not None:
        return max(call.since, params.ingest.start)
    known = data_commits(mirror)
    if not known:
        return params.ingest.start
    newest = max(data.through for data in known)
    all_intervals = list(intervals(params.ingest.start, newest, params.ingest.every))
    return all_intervals[-1].start if all_intervals else params.ingest.start


@dataclass(frozen=True)
class _Step:
    """One interval of an ingestion."""

    settings: Settings
    mirror: Mirror
    params: Params
    call: IngestCall
    space: Workspace
    interval: Interval
    tip: str | None
    code: str
    run_id: str

    def run(self, fetch: Fetch) -> Ingested:
        started = datetime.now(UTC)
        manifests = {name: self._manifest(name) for name in self.params.ingest.datasets}
        fetched = {}
        for name in self.params.ingest.datasets:
            path = f"{RAW}/{name}/{self.interval.name}.parquet"
            fetched[name] = fetch(self.params.ingest, name, self.interval, self.space.path, path)
        changed = {name: part for name, part in fetched.items() if part not in manifests[name]}
        if not changed:
            self._clear(fetched)
            return Ingested(self.interval.name, None, "unchanged")
        summary = self._summary(changed, manifests)
        commit = self._commit(changed, manifests, summary, started)
        self._clear(fetched)
        return Ingested(self.interval.name, commit, summary)

    def _manifest(self, name: str) -> tuple[Partition, ...]:
        text = self.mirror.read(self.tip, f"{RAW}/{name}.manifest") if self.tip else None
        return manifest.parse_manifest(text.decode() if text else "", f"{RAW}/{name}.manifest on data")

    def _clear(self, fetched: Mapping[str, Partition]) -> None:
        """A partition that is pushed need not stay in the workspace: disk use is bounded by one interval."""
        for part in fetched.values():
            path = self.space.path / part.path
            path.unlink(missing_ok=True)

    def _summary(self, changed: Mapping[str, Partition], manifests: Mapping[str, tuple[Partition, ...]]) -> str:
        parts = []
        for name, part in changed.items():
            old = next((row for row in manifests[name] if row.path == part.path), None)
            verb = f"replaces {old.rows:,} rows with" if old else "adds"
            parts.append(f"{name} {verb} {part.rows:,} rows")
        return "; ".join(parts)

    def _commit(
        self,
        changed: Mapping[str, Partition],
        manifests: Mapping[str, tuple[Partition, ...]],
        summary: str,
        started: datetime,
    ) -> str:
        request = {
            "operation": "add",
            "add": {f"{RAW}/{name}": [part.path] for name, part in changed.items()},
        }
        log = self.settings.logs / "ingest" / f"{self.interval.name}.log"
        result = run_job(self.settings, Job(f"ingest of {self.interval.name}", self.space, request, log))
        changes: dict[str, bytes | str | None] = {path: text.encode() for path, text in result["pointers"].items()}
        for name, part in changed.items():
            rows = {row.path: row for row in manifests[name]} | {part.path: part}
            changes[f"{RAW}/{name}.manifest"] = manifest.format_manifest(rows.values()).encode()
        changes[INGEST_EVENT] = self._event(changed, manifests, changes, started)
        known = data_commits(self.mirror)
        through = max([self.interval.end, *(data.through for data in known)])
        text = message(
            f"data: {self.interval.name}: {summary}",
            {"Retrace-Stage": "ingest", "Retrace-Run": self.call.run_id, THROUGH: through.isoformat()},
        )
        commit = self.mirror.write_commit(self.tip, changes, [self.tip] if self.tip else [], text)
        try:
            self.mirror.push([RefUpdate(DATA_BRANCH, commit, self.tip or ABSENT)])
        except RefMoved as moved:
            raise DataMoved(f"{moved}; ingest again") from None
        self.mirror.out("update-ref", DATA_BRANCH, commit)
        return commit

    def _event(
        self,
        changed: Mapping[str, Partition],
        manifests: Mapping[str, tuple[Partition, ...]],
        changes: Mapping[str, bytes | str | None],
        started: datetime,
    ) -> bytes:
        from retrace.lineage.facets import as_json  # the client of OpenLineage is slow to import

        outputs = []
        for name, part in changed.items():
            pointer = changes[f"{RAW}/{name}.dvc"]
            assert isinstance(pointer, bytes)
            rows = {row.path: row for row in manifests[name]} | {part.path: part}
            outputs.append(self._output(part, pointer_md5(pointer, f"{RAW}/{name}.dvc"), rows.values()))
        facts = {
            "interval": self.interval.name,
            "run": self.call.run_id,
            "partitions": [
                {"path": part.path, "md5": part.md5, "sha256": part.sha256, "rows": part.rows}
                for part in changed.values()
            ],
        }
        told = event.Event(
            "COMPLETE",
            self.run_id,
            "ingest.ingest",
            started,
            datetime.now(UTC),
            outputs=outputs,
            facts=facts,
            parent=self.call.parent,
            documentation=documentation("ingest", "ingest"),
            code="params.yaml",
            commit=self.code,
            query=";\n".join(self.params.ingest.datasets[name].query for name in changed),
        )
        return as_json(told, project_at(self.settings, self.mirror, self.code, self.params.ingest.owner))

    def _output(self, part: Partition, md5: str, rows: Collection[Partition]) -> event.Output:
        """A raw dataset as this commit leaves it; the statistics are of the partition that is new."""
        name = part.path.rpartition("/")[0]
        said = f"{len(rows)} partitions, {sum(row.rows for row in rows):,} rows; the statistics are of what the run "
        said += f"brought, {self.interval.name}: {part.rows:,} rows"
        try:
            found = statistics.kept(self.settings.var / "statistics", part.md5, self.space.path, part.path)
        except statistics.StatisticsFailed as failure:
            found, said = None, f"{said}; {failure}"
        return event.Output(
            name,
            md5,
            size=(self.space.path / part.path).stat().st_size,
            files=1,
            format="parquet",
            statistics=found,
            documentation=hide(said, places(self.settings, (self.space.path, "."))),
        )
