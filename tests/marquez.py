"""A double of Marquez 0.51 for tests: a real HTTP server that answers, and errs, as the real one does.

It keeps Marquez's rules, also where they are in the way:
- A run that is started again after its end is RUNNING again; one that only completed is shown as started in 1970.
- Datasets are versioned by the run that wrote them. A COMPLETE makes all versions of its run current, whenever it is
  sent; a version that a run only named in START, RUNNING or FAIL is never current but stays in the history: a ghost.
- An input binds to the version that is current at that moment. Bindings are never taken back.
- Facets of one name override each other by the *time of their event*, not in the order of arrival. Facets on an input
  are written over those of the version that is current.
- A run's bindings name a version by an id that `/versions` does not know: only the run joins the two.
- A `parent` facet prefixes the job's name and makes the parent's run.

Stricter than Marquez: a run id that is no UUID is refused, and times must have an offset.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

DEFAULT_LIMIT = 100
DEFAULT_DEPTH = 20
NO_RUN = "(no run)"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:\d\d)")
_STATES = {"START": "RUNNING", "COMPLETE": "COMPLETED", "FAIL": "FAILED", "ABORT": "ABORTED"}

Event = dict[str, Any]
Name = tuple[str, str]
"""Namespace and name, of a dataset or a job."""


class Refused(Exception):
    """The answer to a request that is not served."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Facets:
    """Facets by name; of several of one name the one whose event is the latest counts."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[datetime, Any]] = {}

    def add(self, facets: Mapping[str, Any] | None, event_time: datetime) -> None:
        for name, facet in (facets or {}).items():
            if name not in self._latest or event_time >= self._latest[name][0]:
                self._latest[name] = (event_time, facet)

    def as_json(self) -> dict[str, Any]:
        return {name: facet for name, (_, facet) in self._latest.items()}


@dataclass
class Version:
    """A dataset as one run wrote it; without a run where a reader came before any writer."""

    dataset: Name
    id: str
    created: datetime
    run: str | None
    facets: Facets = field(default_factory=Facets)

    @property
    def other_id(self) -> str:
        """The id by which runs name this version, unknown to `/versions`."""
        return str(uuid.uuid5(uuid.UUID(self.id), "version"))

    @property
    def label(self) -> str:
        """What the `version` facet says."""
        return str(self.facets.as_json().get("version", {}).get("datasetVersion", ""))


@dataclass
class Dataset:
    """The versions of a dataset by the run that wrote (or first read) them, and which is current."""

    versions: dict[str, Version] = field(default_factory=dict)
    current: Version | None = None


@dataclass
class Run:
    """A run and what is bound to it."""

    id: str
    job: Name
    created: datetime
    state: str
    told: bool = False
    """Whether an event of its own came, not only one that names it as parent."""
    started: datetime | None = None
    ended: datetime | None = None
    facets: Facets = field(default_factory=Facets)
    inputs: dict[str, Version] = field(default_factory=dict)
    outputs: dict[str, Version] = field(default_factory=dict)

    @property
    def is_committed(self) -> bool:
        """Whether our own facet says that the event came from a commit."""
        return bool(value_at(self.facets.as_json(), ("retrace", "source")) == "git")


@dataclass
class Job:
    """A job's runs and its place in the graph of current names."""

    runs: dict[str, Run] = field(default_factory=dict)
    inputs: list[Name] = field(default_factory=list)
    outputs: list[Name] = field(default_factory=list)


class Store:
    """What Marquez keeps in its database, and how an event changes it."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.jobs: dict[Name, Job] = {}
        self.datasets: dict[Name, Dataset] = {}

    def accept(self, event: Event) -> None:
        """Take in one event that was checked."""
        event_time = _time(event["eventTime"])
        run = self._run(event, event_time)
        run.told = True
        run.state = _state(event)
        if run.state == "RUNNING":
            run.started = event_time
        else:
            run.ended = event_time
        run.facets.add(event["run"].get("facets"), event_time)
        for dataset in event.get("inputs") or ():
            self._read(run, dataset, event_time)
        for dataset in event.get("outputs") or ():
            self._write(run, dataset, event_time)
        if run.state == "COMPLETED":
            for version in run.outputs.values():
                self.datasets[version.dataset].current = version
        if event["eventType"].upper() in _STATES:
            job = self.jobs[run.job]
            job.inputs = sorted({version.dataset for version in run.inputs.values()})
            job.outputs = sorted({version.dataset for version in run.outputs.values()})

    def snapshot(self, committed_only: bool) -> dict[str, Any]:
        """What is known without drawn ids and times, of all runs or of those that git records."""
        runs = {
            run.id: run
            for run in sorted(self.runs.values(), key=lambda run: run.id)
            if run.told and (run.is_committed or not committed_only)
        }
        written = {
            name: sorted((v.run or NO_RUN, v.label) for v in dataset.versions.values() if v.run in (None, *runs))
            for name, dataset in self.datasets.items()
        }
        return {
            "runs": {run.id: (run.job, run.state) for run in runs.values()},
            "jobs": {name: (job.inputs, job.outputs) for name, job in self.jobs.items() if job.runs.keys() & runs},
            "datasets": {name: versions for name, versions in written.items() if versions},
            "current": {name: _producer(self.datasets[name].current) for name, versions in written.items() if versions},
            "bindings": {
                run.id: sorted((version.dataset, _producer(version)) for version in run.inputs.values())
                for run in runs.values()
            },
        }

    def _run(self, event: Event, event_time: datetime) -> Run:
        name = _name(event["job"])
        parent = (event["run"].get("facets") or {}).get("parent")
        if parent:
            parent_job = _name(parent["job"])
            self._known_run(parent["run"]["runId"], parent_job, event_time, _state(event))
            if not name[1].startswith(parent_job[1] + "."):
                name = (name[0], f"{parent_job[1]}.{name[1]}")
        return self._known_run(event["run"]["runId"], name, event_time, _state(event))

    def _known_run(self, run_id: str, job: Name, event_time: datetime, state: str) -> Run:
        run = self.runs.setdefault(run_id, Run(run_id, job, event_time, state))
        self.jobs.setdefault(run.job, Job()).runs[run_id] = run
        return run

    def _read(self, run: Run, dataset: Mapping[str, Any], event_time: datetime) -> None:
        held = self.datasets.setdefault(_name(dataset), Dataset())
        version = held.current
        if version is None:
            version = self._version(held, dataset, run.id, event_time)
            held.current = version
        version.facets.add(dataset.get("facets"), event_time)
        run.inputs[version.id] = version

    def _write(self, run: Run, dataset: Mapping[str, Any], event_time: datetime) -> None:
        held = self.datasets.setdefault(_name(dataset), Dataset())
        version = self._version(held, dataset, run.id, event_time)
        version.run = run.id
        version.facets.add(dataset.get("facets"), event_time)
        run.outputs[version.id] = version

    @staticmethod
    def _version(held: Dataset, dataset: Mapping[str, Any], run_id: str, event_time: datetime) -> Version:
        if run_id not in held.versions:
            held.versions[run_id] = Version(_name(dataset), str(uuid.uuid4()), event_time, None)
        return held.versions[run_id]


class Views:
    """The answers to GET."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def answer(self, path: str, query: Mapping[str, list[str]]) -> dict[str, Any]:
        """The body for a path; Refused where Marquez would say 404."""
        parts = [unquote(part) for part in path.removeprefix("/api/v1/").split("/")]
        match parts:
            case ["namespaces"]:
                names = {name[0] for name in (*self._store.datasets, *self._store.jobs)} | {"default"}
                return self._page("namespaces", sorted(names), query, lambda name: {"name": name})
            case ["jobs", "runs", run_id]:
                return self._run(self._known(self._store.runs, run_id))
            case ["runlineage", "upstream"]:
                return self._upstream(query)
            case ["namespaces", namespace, "datasets"]:
                return self._page("datasets", self._names(self._store.datasets, namespace), query, self._dataset)
            case ["namespaces", namespace, "jobs"]:
                return self._page("jobs", self._names(self._store.jobs, namespace), query, self._job)
            case ["namespaces", namespace, "datasets", name]:
                return self._dataset((namespace, name))
            case ["namespaces", namespace, "datasets", name, "versions"]:
                dataset = self._known(self._store.datasets, (namespace, name))
                return self._page("versions", _newest_first(dataset.versions.values()), query, self._version)
            case ["namespaces", namespace, "jobs", name]:
                return self._job((namespace, name))
            case ["namespaces", namespace, "jobs", name, "runs"]:
                job = self._known(self._store.jobs, (namespace, name))
                return self._page("runs", _newest_first(job.runs.values()), query, self._run)
        raise Refused(404, f"no such resource: {path}")

    @staticmethod
    def _known(held: Mapping[Any, Any], key: Any) -> Any:
        if key not in held:
            raise Refused(404, f"not found: {key}")
        return held[key]

    def _names(self, held: Mapping[Name, Any], namespace: str) -> list[Name]:
        if not any(name[0] == namespace for name in (*self._store.datasets, *self._store.jobs)):
            raise Refused(404, f"namespace not found: {namespace}")
        return sorted(name for name in held if name[0] == namespace)

    @staticmethod
    def _page(
        key: str, items: list[Any], query: Mapping[str, list[str]], render: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        limit, offset = _number(query, "limit", DEFAULT_LIMIT), _number(query, "offset", 0)
        return {key: [render(item) for item in items[offset : offset + limit]], "totalCount": len(items)}

    def _run(self, run: Run) -> dict[str, Any]:
        return {
            "id": run.id,
            "createdAt": _shown(run.created),
            "state": run.state,
            "startedAt": _shown(run.started or _EPOCH),
            "endedAt": _shown(run.ended) if run.ended else None,
            "facets": run.facets.as_json(),
            "jobVersion": _named(run.job),
            "inputDatasetVersions": [self._bound(version) for version in run.inputs.values()],
            "outputDatasetVersions": [self._bound(version) for version in run.outputs.values()],
        }

    @staticmethod
    def _bound(version: Version) -> dict[str, Any]:
        return {"datasetVersionId": {**_named(version.dataset), "version": version.other_id}, "facets": {}}

    def _dataset(self, name: Name) -> dict[str, Any]:
        dataset = self._known(self._store.datasets, name)
        current = dataset.current
        return {
            "id": _named(name),
            **_named(name),
            "currentVersion": current.id if current else None,
            "facets": current.facets.as_json() if current else {},
        }

    def _version(self, version: Version) -> dict[str, Any]:
        return {
            "id": _named(version.dataset),
            **_named(version.dataset),
            "version": version.id,
            "createdAt": _shown(version.created),
            "createdByRun": self._run(self._store.runs[version.run]) if version.run else None,
            "facets": version.facets.as_json(),
        }

    def _job(self, name: Name) -> dict[str, Any]:
        job = self._known(self._store.jobs, name)
        return {
            "id": _named(name),
            **_named(name),
            "inputs": [_named(dataset) for dataset in job.inputs],
            "outputs": [_named(dataset) for dataset in job.outputs],
            "latestRun": self._run(_newest_first(job.runs.values())[0]),
        }

    def _upstream(self, query: Mapping[str, list[str]]) -> dict[str, Any]:
        if "runId" not in query:
            raise Refused(400, "runId must not be null")
        depth = _number(query, "depth", DEFAULT_DEPTH)
        frontier = [query["runId"][0]]
        seen: dict[str, Run] = {}
        for _ in range(depth + 1):
            level = [self._store.runs[run_id] for run_id in frontier if run_id in self._store.runs]
            seen.update((run.id, run) for run in level)
            producers = (version.run for run in level for version in run.inputs.values())
            frontier = [run_id for run_id in dict.fromkeys(producers) if run_id and run_id not in seen]
        return {"runs": [self._upstream_run(run) for run in seen.values()]}

    @staticmethod
    def _upstream_run(run: Run) -> dict[str, Any]:
        return {
            "id": run.id,
            "run": {"id": run.id, "start": _shown(run.started or _EPOCH), "status": run.state},
            "job": _named(run.job),
            "inputs": [
                {**_named(version.dataset), "version": version.other_id, "producedByRunId": version.run}
                for version in run.inputs.values()
            ],
            "outputs": [{**_named(version.dataset), "version": version.other_id} for version in run.outputs.values()],
        }


def parsed(body: bytes) -> Event:
    try:
        event = json.loads(body)
    except ValueError as malformed:
        raise Refused(400, "Unable to process JSON") from malformed
    if not isinstance(event, dict):
        raise Refused(400, "Unable to process JSON")
    return event


def check(event: Event) -> None:
    """Raise Refused, with Marquez's status, for an event that it does not take."""
    if not isinstance(event.get("eventType"), str):
        raise Refused(500, "eventType is missing")
    if any("\0" in text for text in _texts(event)):
        raise Refused(500, "unsupported Unicode escape sequence")
    _time(event.get("eventTime"))
    nominal = value_at(event, ("run", "facets", "nominalTime")) or {}
    for name in nominal.keys() & {"nominalStartTime", "nominalEndTime"}:
        _time(nominal[name])
    required = [("run", "runId"), ("job", "namespace"), ("job", "name"), ("producer",)]
    if value_at(event, ("run", "facets", "parent")) is not None:
        parent = ("run", "facets", "parent")
        required += [(*parent, "run", "runId"), (*parent, "job", "namespace"), (*parent, "job", "name")]
    for path in required:
        _require(event, path)
    for dataset in (*(event.get("inputs") or ()), *(event.get("outputs") or ())):
        _require(dataset, ("namespace",))
        _require(dataset, ("name",))
    try:
        uuid.UUID(event["run"]["runId"])
    except ValueError as malformed:
        raise Refused(422, "run.runId must be a UUID") from malformed


def _require(value: Any, path: tuple[str, ...]) -> None:
    found = value_at(value, path)
    if not isinstance(found, str) or not found:
        raise Refused(422, f"{'.'.join(path)} must not be null")


def _texts(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def value_at(value: Any, path: Iterable[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _time(value: Any) -> datetime:
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise Refused(500, f"Text '{value}' could not be parsed")
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except ValueError as impossible:
        raise Refused(500, f"Text '{value}' could not be parsed") from impossible


def _shown(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _state(event: Event) -> str:
    return _STATES.get(event["eventType"].upper(), "RUNNING")


def _name(thing: Mapping[str, Any]) -> Name:
    return thing["namespace"], thing["name"]


def _named(name: Name) -> dict[str, str]:
    return {"namespace": name[0], "name": name[1]}


def label(version: Mapping[str, Any]) -> str:
    return str(value_at(version, ("facets", "version", "datasetVersion")))


def _producer(version: Version | None) -> str | None:
    return (version.run or NO_RUN) if version else None


def _newest_first(items: Iterable[Any]) -> list[Any]:
    """By the time of the event that made them; of equal ones the later arrival first."""
    numbered = sorted(enumerate(items), key=lambda pair: (pair[1].created, pair[0]), reverse=True)
    return [item for _, item in numbered]


def _number(query: Mapping[str, list[str]], name: str, default: int) -> int:
    value = query.get(name, [str(default)])[0]
    if not value.isdecimal():
        raise Refused(400, f"{name} must be a whole number")
    return int(value)
