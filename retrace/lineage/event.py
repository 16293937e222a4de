"""What Retrace tells of a run, and where: in the commit, at `lineage/<model>/<job>.json`, one JSON object a file.

Here are the facts of an event, the names of datasets, and how a committed event is read. `retrace.lineage.facets` makes
an OpenLineage event of it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from retrace.git import Git

if TYPE_CHECKING:
    from retrace.statistics import Statistics

PRODUCER = "https://github.com/retrace-ml/retrace"
EVENT = "Retrace-Event"  # the trailer of a tag that holds an event


@dataclass(frozen=True)
class Read:
    """A dataset that a run read: the version that the lock records, and the run that made it, if git knows.

    `checks` are what a validation found of it: {"check", "passed", "column", "partitions", "failed", "detail"}.
    """

    name: str
    version: str
    run: str | None
    checks: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Output:
    """A dataset that a run wrote, with the version that the lock records for it.

    `size` is in bytes; `essentials` say what a dataset is that is no file. `sources` says of each column of the dataset
    which columns it was made of, as (dataset, column).
    """

    name: str
    version: str
    size: int | None = None
    files: int | None = None
    format: str | None = None
    statistics: Statistics | None = None
    sources: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    documentation: str | None = None
    essentials: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Parent:
    """The run of the DAG that a task belongs to, by OpenLineage's run id; `nominal` is the date that it stands for."""

    job: str
    run_id: str
    nominal: datetime | None = None


@dataclass(frozen=True)
class Project:
    """What events say of the project: its namespace, its repository, where its files are stored; no machine's path."""

    namespace: str
    repository: str | None
    storage: str
    owner: str | None = None


@dataclass(frozen=True)
class Event:
    """What is told of one finished run; `facts` is the content of our own run facet, `error` and `trace` of a failure.

    `code` is a path in the repository, `commit` the commit that the run was checked out at.
    """

    state: str
    run_id: str
    job: str
    started: datetime
    ended: datetime
    inputs: Sequence[Read] = ()
    outputs: Sequence[Output] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    trace: str | None = None
    parent: Parent | None = None
    documentation: str | None = None
    code: str | None = None
    commit: str | None = None
    query: str | None = None


def path(model: str, job: str) -> str:
    """Where the event of a model's job stands in its commit."""
    return f"lineage/{model}/{job}.json"


def dataset_name(path_in_repository: str) -> str:
    """A dataset's name begins with its kind: raw data keeps its path, what is derived drops the `data/`."""
    if path_in_repository.startswith("data/") and not path_in_repository.startswith("data/raw/"):
        return path_in_repository.removeprefix("data/")
    return path_in_repository


def registry_name(model: str) -> str:
    """The dataset whose versions are a model's registered versions."""
    return f"registry/{model}"


def facts_of(event: bytes) -> dict[str, Any]:
    """Our own run facet of an event that was read from a commit."""
    facets = json.loads(event)["run"]["facets"]["retrace"]
    return dict(facets)


def run_id_of(event: bytes) -> str:
    """The run that an event tells of."""
    return str(json.loads(event)["run"]["runId"])


def trace_of(event: bytes) -> str | None:
    """The stage's own traceback in the event of a failure, where it left one."""
    trace: str | None = json.loads(event)["run"]["facets"]["errorMessage"].get("stackTrace")
    return trace


def fallback_run_id(*parts: str) -> str:
    """A run id for work that Airflow does not run, the same whenever the same work is named."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join((PRODUCER, *parts))))


def producers(git: Git, commit: str, model: str) -> dict[str, Read]:
    """Dataset -> what this commit of a run has of it and which run made that, by the events that it carries.

    Of raw data the snapshot's event knows who brought it.
    """
    files = git.files(commit, f"lineage/{model}/")
    found: dict[str, Read] = {}
    for content in git.read_many(list(files.values())):
        assert content is not None
        told = json.loads(content)
        if told["job"]["name"] == f"{model}.snapshot":
            reads = told["run"]["facets"]["retrace"]["reads"]
            found |= {read["dataset"]: Read(read["dataset"], read["version"], read["run"]) for read in reads}
        for output in told["outputs"]:
            version = output["facets"]["version"]["datasetVersion"]
            found[output["name"]] = Read(output["name"], version, told["run"]["runId"])
    return found


def reads_of(known: Mapping[str, Read], versions: Mapping[str, str]) -> Iterable[Read]:
    """Datasets (name -> version) with the runs that made them; of another version than the known one none is known."""
    for name, version in sorted(versions.items()):
        made = known.get(name)
        yield made if made is not None and made.version == version else Read(name, version, None)
